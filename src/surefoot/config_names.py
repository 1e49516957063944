"""Names and values of settings: what exists, what is nearest to a name that does not, what a setting allows, in words.

Everything is read off the schema in config.py, but for the names that other systems use for the same thing.
"""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from surefoot.config import Config, Section

# What TRL, OpenRLHF, verl, Stable-Baselines3 and lm-human-preferences call it. A target without a section is looked up in the
# sections that the verb reads.
OTHER_NAMES = {
    "actor_learning_rate": "ppo.learning_rate",
    "adap_kl_ctrl": "ppo.kl_controller",
    "clip_coef": "ppo.cliprange",
    "clip_eps": "ppo.cliprange",
    "clip_epsilon": "ppo.cliprange",
    "clip_range": "ppo.cliprange",
    "clip_range_vf": "ppo.cliprange_value",
    "clip_ratio": "ppo.cliprange",
    "clip_ratio_high": "ppo.cliprange_high",
    "dataset_name": "data.train",
    "dataset": "data.train",
    "enable_gradient_checkpointing": "model.activation_checkpointing",
    "entropy_coef": "ppo.ent_coef",
    "entropy_coeff": "ppo.ent_coef",
    "entropy_loss_coef": "ppo.ent_coef",
    "eos_token": "rollout.stop_token",
    "epochs": "num_epochs",
    "eps_clip": "ppo.cliprange",
    "epsilon": "ppo.cliprange",
    "epsilon_high": "ppo.cliprange_high",
    "eta": "ppo.kl_coef",
    "eval_dataset": "data.validation",
    "gae_lambda": "ppo.lam",
    "generate_max_len": "rollout.response_length",
    "grad_clip": "max_grad_norm",
    "gradient_checkpointing": "model.activation_checkpointing",
    "horizon": "ppo.kl_horizon",
    "init_kl_coef": "ppo.kl_coef",
    "judge": "evaluate.judges",
    "kl_ctl": "ppo.kl_coef",
    "kl_loss_coef": "ppo.kl_coef",
    "lambd": "ppo.lam",
    "lambda": "ppo.lam",
    "local_rollout_forward_batch_size": "rollout.batch_size",
    "lora_r": "model.lora_rank",
    "loss_agg_mode": "ppo.loss_aggregation",
    "loss_type": "ppo.objective",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "max_epochs": "num_ppo_epochs",
    "max_new_tokens": "rollout.response_length",
    "max_response_length": "rollout.response_length",
    "micro_rollout_batch_size": "rollout.batch_size",
    "micro_train_batch_size": "micro_batch_size",
    "logger": "report_to",
    "max_token_len_per_gpu": "ppo.micro_batch_tokens",
    "mini_batch_size": "num_mini_batches",
    "model_name_or_path": "model.name",
    "model_path": "model.name",
    "n_epochs": "num_ppo_epochs",
    "n_samples_per_prompt": "ppo.num_samples_per_prompt",
    "non_eos_penalty": "ppo.missing_eos_penalty",
    "normalize_advantages": "ppo.whiten_advantages",
    "normalize_reward": "ppo.reward_scale",
    "num_episodes": "ppo.total_episodes",
    "num_generations": "ppo.num_samples_per_prompt",
    "num_train_epochs": "num_epochs",
    "packing_samples": "model.padding_free",
    "per_device_train_batch_size": "micro_batch_size",
    "ppo_epochs": "ppo.num_ppo_epochs",
    "ppo_max_token_len_per_gpu": "ppo.micro_batch_tokens",
    "ppo_mini_batch_size": "ppo.num_mini_batches",
    "pretrain": "model.name",
    "prompt_data": "data.prompts",
    "prompt_max_len": "model.max_length",
    "remote_rm_url": "reward_source.source",
    "reward_clip_range": "ppo.reward_clip",
    "reward_fn": "reward_source.source",
    "reward_func": "reward_source.source",
    "reward_funcs": "reward_source.sources",
    "reward_function": "reward_source.source",
    "reward_model": "reward_source.source",
    "reward_model_path": "reward_source.source",
    "reward_pretrain": "reward_source.source",
    "reward_weights": "reward_source.weights",
    "sft_model_path": "model.name",
    "steps": "max_steps",
    "train_batch_size": "rollout_batch_size",
    "train_max_tokens_per_gpu": "ppo.micro_batch_tokens",
    "use_kl_loss": "ppo.kl_in",
    "use_remove_padding": "model.padding_free",
    "value_clip": "ppo.cliprange_value",
    "value_coef": "ppo.vf_coef",
    "vf_coeff": "ppo.vf_coef",
    "warmup_ratio": "warmup_steps",
}


def sections() -> dict[str, type[Section]]:
    """The schema's sections by name."""
    kinds_by_name = {name: info.annotation for name, info in Config.model_fields.items()}
    return {name: kind for name, kind in kinds_by_name.items() if isinstance(kind, type) and issubclass(kind, Section)}


def fields() -> dict[str, FieldInfo]:
    """Every setting by its dotted name, in the schema's order: seed, threads, model.name, ..."""
    known = sections()
    found = {name: info for name, info in Config.model_fields.items() if name not in known}
    return found | {f"{name}.{key}": info for name, kind in known.items() for key, info in kind.model_fields.items()}


def nearest(name: str, read: Sequence[str]) -> str:
    """A question that leads from an unknown name to known ones, or "" when nothing is near.

    In this order: what another system calls so; the same setting in another section; a similar setting; a similar section. Of
    several settings of one name, those in the section that was written are meant, else those in the sections of `read`.
    """
    known = list(fields())
    home, _, key = name.rpartition(".")
    key = OTHER_NAMES.get(key, key)
    if key in known:
        return _ask([key])
    ends = sorted({full.rpartition(".")[2] for full in known})
    if close := difflib.get_close_matches(key, ends, n=1, cutoff=0.75):
        same = [full for full in known if full.rpartition(".")[2] == close[0]]
        at_home = [full for full in same if full.rpartition(".")[0] == home]
        return _ask(at_home or [full for full in same if full.partition(".")[0] in read] or same)
    return _ask(close) if (close := difflib.get_close_matches(name, sections(), n=1, cutoff=0.7)) else ""


def _ask(names: Sequence[str]) -> str:
    return f"Did you mean {listing(names)}?"


def listing(names: Sequence[str], last: str = "or") -> str:
    """a, b or c"""
    *head, tail = names
    return f"{', '.join(head)} {last} {tail}" if head else tail


def allowed(info: FieldInfo) -> str:
    """What a setting may be, in words: "a number above 0 and below 1", "clip, penalty or policy_gradient"."""
    return " or ".join(dict.fromkeys(_words(info.annotation, info.metadata)))


def kinds(annotation: Any) -> set[type]:
    """The Python types that a setting may have; a Literal counts as the types of its members."""
    if annotation is None or annotation is type(None):
        return {type(None)}
    origin = get_origin(annotation)
    if origin is Annotated:
        return kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return set().union(*(kinds(arg) for arg in get_args(annotation)))
    if origin is Literal:
        return {type(member) for member in get_args(annotation)}
    return {origin or annotation}


def item_type(annotation: Any) -> Any:
    """The annotation of an item of a setting that is a list, `tuple[ITEM, ...]`."""
    return get_args(annotation)[0]


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of every Literal in an annotation; () when it holds none."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(member for arg in get_args(annotation) for member in members(arg))


def shown(value: Any) -> str:
    """A value as YAML writes it, cut to what fits on a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:70]}... ({len(text)} characters)"


def _words(annotation: Any, metadata: Sequence[Any] = ()) -> Iterator[str]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        yield from _words(inner, [*extra, *metadata])
    elif origin in (Union, types.UnionType):
        for arg in get_args(annotation):
            yield from _words(arg, metadata)
    elif origin is Literal:
        yield listing([str(member) for member in get_args(annotation)])
    elif origin is tuple:
        items = " ".join(_words(get_args(annotation)[0]))
        yield f"a list, each item {items}"
    else:
        name = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}[annotation]
        yield name + (_range(metadata) if annotation in (int, float) else "")


def _range(metadata: Sequence[Any]) -> str:
    """The bounds that pydantic's Gt, Ge, Lt, Le (bare, or within a Field) put on a number."""
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    words = []
    for attribute, word in (("gt", "above"), ("ge", "of at least"), ("lt", "below"), ("le", "of at most")):
        bounds = [bound for part in flat if (bound := getattr(part, attribute, None)) is not None and math.isfinite(bound)]
        words += [f"{word} {bound:g}" for bound in bounds]
    return f" {' and '.join(words)}" if words else ""
