"""Configuration to objects:

the only file that asks "which engine?", "which reward?". Objects already loaded are taken as given.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from surefoot.build_data import Rows, Say, and_too_long, dataset, divided, preferences, prompts_of
from surefoot.build_rewards import judges_of, reward_source
from surefoot.config import Config, ModelConfig
from surefoot.errors import ConfigError
from surefoot.lm.backbone import Backbone, from_objects, load_backbone
from surefoot.lm.batches import CompletionTask, PromptSet, completion_rows, pair_rows, prompt_set
from surefoot.lm.data import PromptRow
from surefoot.lm.roles import LanguageActorCritic
from surefoot.rewards.ensemble import EnsembleReward
from surefoot.rewards.function import load_function
from surefoot.rewards.novelty import FILE as NOVELTY
from surefoot.rewards.novelty import TrainedOn
from surefoot.rollout.local import LocalEngine
from surefoot.stages.answers import Author
from surefoot.stages.compare import CompareParts
from surefoot.stages.evaluate import EvaluateParts
from surefoot.stages.held_out import HeldOut, HeldOutPlan
from surefoot.stages.judging import Judge
from surefoot.stages.pairs import Annotator, PairsParts
from surefoot.stages.ppo_lm import PPOParts
from surefoot.stages.ppo_state import start_from
from surefoot.stages.reward import Heed, RewardParts, unheeding
from surefoot.stages.reward_ensemble import member_parts, member_scorers
from surefoot.stages.selection import Judgement
from surefoot.stages.sft import SFTParts, prepare
from surefoot.types import RolloutEngine


def backbone_of(model: Any, cfg: ModelConfig) -> Backbone:
    """`model` as a backbone: None (cfg.name is loaded), a Backbone, or a pair of transformers model and tokenizer."""
    if model is None:
        return load_backbone(cfg)
    if isinstance(model, Backbone):
        return replace(model, recompute=model.recompute or cfg.activation_checkpointing)
    loaded, tokenizer = model
    return from_objects(loaded, tokenizer, cfg)


def build_sft(cfg: Config, say: Say, *, model: Any = None, train: Rows | None = None, validation: Rows | None = None) -> SFTParts:
    backbone = backbone_of(model, cfg.model)
    data = dataset(train if train is not None else cfg.data.train, "completions", "data.train", say)
    kept, left = divided(cfg, data.rows, validation, "completions", say)
    adapter, parameters = prepare(backbone, cfg)
    tasks = []
    for name, rows in (("train", kept), ("validation", left)):
        tokens, too_long = completion_rows(rows, backbone.codec, completion_only=cfg.sft.completion_only) if rows else ([], "")
        say(f"{name}: {len(tokens)} sequences, {sum(len(row.ids) for row in tokens)} tokens{too_long}")
        tasks.append(CompletionTask(tokens, backbone, adapter))
    return SFTParts(backbone, tasks[0], tasks[1], parameters, adapter)


def build_reward(
    cfg: Config,
    folder: Path | None,
    say: Say,
    *,
    model: Any = None,
    train: Rows | None = None,
    validation: Rows | None = None,
    heed: Heed = unheeding,
) -> RewardParts:
    backbone = backbone_of(model, cfg.model)
    if cfg.reward.method == "full":
        backbone = backbone.trainable_copy()  # a model that was given stays as it is
        backbone.model.get_decoder().requires_grad_(True)
    rows = preferences(cfg, train, say)
    kept, left = divided(cfg, rows, validation, "preferences", say)
    scorers = member_scorers(backbone, cfg)
    (train_pairs, long_train), (left_pairs, long_left) = (pair_rows(part, backbone.codec) for part in (kept, left))
    parts = member_parts(scorers, train_pairs, left_pairs, cfg, folder, say, heed)
    cut = long_train + long_left
    say(
        f"train: {len(train_pairs)} pairs; held out: {len(left_pairs)}"
        + (f"; {cut} answers passed the context with their prompts and were cut on the left" if cut else "")
    )
    return parts


def build_ppo(
    cfg: Config,
    say: Say,
    *,
    model: Any = None,
    prompts: Rows | None = None,
    reward: Any = None,
    judges: Mapping[str, Judge] | None = None,
    held_out: HeldOutPlan | None = None,
) -> PPOParts:
    backbone = backbone_of(model, cfg.model)
    chosen = prompts_of(cfg, backbone, prompts if prompts is not None else cfg.data.prompts, "data.prompts", say)
    ppo = cfg.ppo
    tokens = ppo.rollout_batch_size * cfg.rollout.response_length
    if ppo.objective == "penalty" and ppo.beta_controller == "proportional" and tokens >= 5 * ppo.beta_horizon:
        raise ConfigError(
            f"ppo.beta_horizon = {ppo.beta_horizon} is too short for rollouts of up to {tokens} tokens: one step of the rule "
            f"could make beta 0. Use {tokens // 5 + 1} or more."
        )
    source = reward_source(cfg, backbone, reward)
    backbone.model.requires_grad_(False)  # a reward's adapter on this backbone is none of the policy's weights
    policy = LanguageActorCritic(
        backbone,
        cfg.model,
        critic=ppo.critic,
        critic_layer=ppo.critic_layer,
        temperature=cfg.rollout.temperature,
        entropy_gradient=ppo.ent_coef > 0,
        seed=cfg.seed,
    )
    if ppo.start is not None:
        start_from(policy, Path(ppo.start))
        say(f"policy and critic go on from {ppo.start}")
    if cfg.rollout.top_p < 1 or cfg.rollout.top_k:
        say(
            "warning: rollout.top_p or top_k cut the distribution that is sampled, not the one that is trained: "
            "the ratio is biased"
        )
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    every = sum(p.numel() for p in policy.parameters())
    say(f"policy: {trained / 1e6:.2f} M trainable weights of {every / 1e6:.1f} M; {len(chosen)} prompts")
    looked_at = None
    if held_out is not None:
        looked_at = HeldOut(held_out, prompts_of(cfg, backbone, held_out.prompts, "data.eval_prompts", say), cfg)
    sampled = ppo.old_logprobs == "sampled"
    engine = engine_of(cfg, policy.backbone, policy.policy_adapter, keeps_states=sampled, keeps_packed=True)
    asked = judges if judges is not None else judges_of(cfg)
    reference = (backbone, engine_of(cfg, backbone, None)) if ppo.alarms == "label" else None
    return PPOParts(policy, engine, source, chosen, asked, held_out=looked_at, reference=reference)


def build_evaluate(
    cfg: Config,
    say: Say,
    *,
    model: Any = None,
    against: Any = None,
    prompts: Rows | None = None,
    reward: Any = None,
    judges: Mapping[str, Judge] | None = None,
) -> EvaluateParts:
    policy = backbone_of(model, cfg.model)
    if against is None and cfg.evaluate.against is None:
        raise ConfigError("evaluate.against is not set. Name the model to compare with, for example runs/sft/final.")
    other = cfg.model.model_copy(update={"name": cfg.evaluate.against or cfg.model.name})
    reference = backbone_of(against, other)
    chosen = prompts_of(cfg, policy, prompts if prompts is not None else cfg.data.eval_prompts, "data.eval_prompts", say)
    source = reward_source(cfg, reference, reward) if reward is not None or cfg.reward_source.every else None
    if cfg.evaluate.best_of and source is None:
        raise ConfigError(
            f"evaluate.best_of = {cfg.evaluate.best_of} has no effect without a reward that tells the best. "
            "Set reward_source.source, or evaluate.best_of = 0."
        )
    _same_tokens(policy, reference, "evaluate.against")
    engines = (engine_of(cfg, policy, None), engine_of(cfg, reference, None))
    return EvaluateParts(policy, reference, engines, chosen, judges if judges is not None else judges_of(cfg), source)


def build_pairs(
    cfg: Config,
    say: Say,
    *,
    prompts: Rows | None = None,
    annotator: Any = None,
    reward: Any = None,
    tag: str = "",
    called: str | None = None,
) -> PairsParts:
    """`called`: by which name the store knows model.name, in place of its path."""
    names = cfg.pairs.models or (cfg.model.name,)
    backbones = [load_backbone(cfg.model.model_copy(update={"name": name})) for name in names]
    known = names if called is None else (called,)
    writers = authors(cfg, list(zip(known, backbones, strict=True)), prompts or cfg.data.prompts, "data.prompts", say)
    votes: tuple[str, Annotator] | None
    if annotator is not None:
        votes = (getattr(annotator, "__name__", type(annotator).__name__), annotator)
    else:
        name = cfg.pairs.annotator
        votes = None if name is None else (name, load_function(name))
    return PairsParts(writers, _judgement(cfg, backbones, reward), votes, tag)


def build_compare(
    cfg: Config,
    say: Say,
    *,
    prompts: Rows | None = None,
    judges: Mapping[str, Judge] | None = None,
    asks_people: bool = False,
) -> CompareParts:
    names = (cfg.model.name, cfg.evaluate.against or cfg.model.name)
    judged_by = judges if judges is not None else judges_of(cfg)
    if not judged_by and not asks_people:
        raise ConfigError("evaluate.judges is empty, so nobody compares the answers. Name judges, or add --people.")
    named = [(name, load_backbone(cfg.model.model_copy(update={"name": name}))) for name in names]
    first, second = authors(cfg, named, prompts or cfg.data.eval_prompts, "data.eval_prompts", say)
    return CompareParts((first, second), judged_by)


def _judgement(cfg: Config, backbones: Sequence[Backbone], reward: Any) -> Judgement:
    """What ranks pairs: only what pairs.select and pairs.best_of need is loaded."""
    source, against = None, None
    named = cfg.reward_source.every
    setting = (
        f"reward_source.sources = {list(named)!r}"
        if cfg.reward_source.sources
        else f"reward_source.source = {cfg.reward_source.source!r}"
    )
    if not cfg.pairs.needs_reward and named:
        raise ConfigError(
            f"{setting} has no effect: no pair is chosen by a score. "
            "Set pairs.best_of, or pairs.select = uncertainty, disagreement or distance."
        )
    if cfg.pairs.needs_reward:
        source = reward_source(cfg, backbones[0], reward)
    if cfg.pairs.select == "disagreement" and not isinstance(source, EnsembleReward):
        raise ConfigError(
            f"pairs.select = disagreement: {setting} is no ensemble, so nobody in it "
            "disagrees. Train one with `surefoot reward --reward.ensemble 4`, or use pairs.select = uncertainty."
        )
    if cfg.pairs.select == "distance" and not any(os.path.isdir(one) and TrainedOn.load(Path(one)) for one in named):
        raise ConfigError(
            f"pairs.select = distance: {setting} does not say what it was trained "
            f"on ({NOVELTY} is not there). Name a reward model that `surefoot reward` has trained."
        )
    if cfg.pairs.against is not None:
        against = load_backbone(cfg.model.model_copy(update={"name": cfg.pairs.against}))
        for backbone in backbones:
            _same_tokens(backbone, against, "pairs.against")
    return Judgement(source, against, cfg.rollout.temperature)


def authors(cfg: Config, named: Sequence[tuple[str, Backbone]], rows: Rows | None, setting: str, say: Say) -> tuple[Author, ...]:
    """Models that answer the same prompts, each in its own tokens. A prompt that is too long for one is dropped for all."""
    data = dataset(rows, "prompts", setting, say)

    def sets(kept: Sequence[PromptRow]) -> list[PromptSet]:
        length, rule = cfg.rollout.response_length, cfg.data.long_prompts
        return [prompt_set(kept, backbone.codec, length, rule) for _, backbone in named]

    every = sets(data.rows)
    common = set.intersection(*({id(row) for row in one.rows} for one in every))
    if any(len(one) > len(common) for one in every):
        every = sets([row for row in data.rows if id(row) in common])
    dropped, cut = len(data.rows) - len(every[0]), max(one.num_long for one in every)
    if dropped or cut:
        say(f"prompts: {len(every[0])} kept" + (and_too_long(dropped, "dropped") or and_too_long(cut, "cut on the left")))
    return tuple(
        Author(name, backbone, engine_of(cfg, backbone, None), one) for (name, backbone), one in zip(named, every, strict=True)
    )


def _same_tokens(first: Backbone, second: Backbone, setting: str) -> None:
    """Raises ConfigError where two models number their tokens differently: one's prompts would be noise to the other."""
    if not first.codec.has_ids_of(second.codec.tokenizer):
        raise ConfigError(f"{setting}: {first.source} and {second.source} have different tokenizers. Name models that share one.")


def engine_of(cfg: Config, backbone: Backbone, adapter: str | None, **keeps: bool) -> RolloutEngine:
    """`keeps`: `keeps_states` and `keeps_packed` of LocalEngine."""
    match cfg.rollout.engine:
        case "local":
            return LocalEngine(backbone, cfg.rollout, adapter=adapter, **keeps)


def memory_plan(cfg: Config, verb: str) -> list[tuple[str, int]]:
    """What a run will hold, in bytes by name, from the model's configuration alone: nothing is loaded."""
    from surefoot.lm.plan import model_sizes

    sizes = model_sizes(cfg.model)
    width = 2 if cfg.model.dtype == "bfloat16" else 4
    full = cfg.model.tuning == "full"
    layers = None if verb == "demo" else cfg.model.lora_layers  # the demo's SFT adapts every block
    trained = sizes.total if full else sizes.adapter(cfg.model.lora_rank, layers)
    trained *= cfg.reward.ensemble if verb == "reward" else 1
    row = 32 + cfg.rollout.response_length
    rows = min(cfg.ppo.micro_batch_size, cfg.ppo.rollout_batch_size // cfg.ppo.num_mini_batches)
    tokens = {"sft": cfg.sft.micro_batch_size * 256, "reward": 2 * cfg.reward.micro_batch_size * 256}.get(
        verb, rows * row if cfg.ppo.micro_batch_tokens is None else max(cfg.ppo.micro_batch_tokens, row)
    )
    kept = sizes.activations(checkpointing=cfg.model.activation_checkpointing)
    plan = [("backbone", sizes.total * (4 if full else width))]
    runs_ppo = verb in ("ppo", "demo", "rounds", "overoptimize")
    if runs_ppo or verb == "sft" or (verb == "reward" and cfg.reward.method != "head"):  # a head reads frozen states
        plan += [("trained weights' gradients and Adam moments", trained * (12 if full else 16))]
        plan += [("activations of a micro-batch", tokens * kept * width)]
    if runs_ppo and full:
        plan += [("frozen reference", sizes.total * 4)]
    if runs_ppo and cfg.ppo.critic == "model":
        plan += [("critic model with gradients and moments", sizes.total * 16)]
    if runs_ppo or verb in ("pairs", "evaluate", "compare"):
        plan += [("key-value cache", cfg.rollout.batch_size * (32 + cfg.rollout.response_length) * sizes.cache_per_token * width)]
        plan += [("weights packed for sampling", sizes.total * width)]
    if verb in ("evaluate", "compare"):
        plan += [("model to compare with", sizes.total * width)]
    return plan
