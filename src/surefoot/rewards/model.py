"""Reward models as sources: on the policy's own backbone, or loaded beside it.

A folder holds what AutoModelForSequenceClassification loads, and `reward.json`: the layer, how it was trained, the fingerprint of
the backbone it was trained on, and the mean and deviation that turn raw scores into units. With the same backbone under an
adapter only the head is read, and no second copy of the weights is loaded. With another tokenizer the model reads text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from surefoot.errors import ModelError, first_line
from surefoot.lm.adapters import plain_state_dict
from surefoot.lm.backbone import Backbone, save_weights
from surefoot.lm.roles import RewardScorer
from surefoot.lm.tokens import Codec, last_states, pad_right, reward_row
from surefoot.lm.trunk import cut_config
from surefoot.rewards.novelty import TrainedOn
from surefoot.types import Completions, Prompts, Scores

SIDECAR = "reward.json"


@dataclass(frozen=True, slots=True)
class RewardFacts:
    """The sidecar of a reward model. A score leaves as (raw - mean) / deviation; 0 and 1 where nothing was normalised.

    `temperature` is fitted on held-out pairs: P(a before b) = sigmoid((raw_a - raw_b) / temperature).
    """

    method: str = "full"
    layer: int | None = None
    base: str = ""
    mean: float = 0.0
    deviation: float = 1.0
    temperature: float = 1.0


def read_facts(folder: Path) -> RewardFacts:
    """The sidecar's facts; raw scores where a folder from elsewhere has none."""
    path = folder / SIDECAR
    if not path.exists():
        return RewardFacts()
    try:
        facts = RewardFacts(**json.loads(path.read_text(encoding="utf-8")))
        if not (math.isfinite(facts.mean) and 0 < facts.deviation < math.inf and 0 < facts.temperature < math.inf):
            raise ValueError(
                f"mean {facts.mean}, deviation {facts.deviation} and temperature {facts.temperature} are no unit of scores"
            )
        return facts
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path} is not a reward model's sidecar: {error}. Train the reward model again, or remove the file."
        ) from error


def save_reward_model(scorer: RewardScorer, facts: RewardFacts, folder: Path) -> None:
    """Writes `folder` so that AutoModelForSequenceClassification(num_labels=1) gives the scorer's raw scores."""
    from transformers import AutoModelForSequenceClassification

    config = cut_config(scorer.backbone.model.config, scorer.layer)
    config.num_labels = 1
    config.pad_token_id = scorer.backbone.codec.pad_id
    with torch.device("meta"):
        kind = type(AutoModelForSequenceClassification.from_config(config))
        names = set(kind(config).state_dict())
    prefix, weights = kind.base_model_prefix, plain_state_dict(scorer.backbone.model, scorer.adapter)
    kept = {name: tensor for name, tensor in weights.items() if name in names or f"{prefix}.{name}" in names}
    kept["score.weight"] = scorer.weight
    if missing := names - set(kept):
        raise ModelError(f"{kind.__name__} needs weights that the backbone does not have: {', '.join(sorted(missing)[:3])}.")
    save_weights(kind, config, kept, folder)
    scorer.backbone.codec.tokenizer.save_pretrained(folder)
    (folder / SIDECAR).write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")


class SharedRewardModel:
    """A reward head on the policy's bare backbone: no second copy of the weights."""

    def __init__(self, scorer: RewardScorer, facts: RewardFacts, batch_size: int, trained_on: TrainedOn | None = None) -> None:
        self.scorer, self.facts, self.batch_size, self.trained_on = scorer, facts, batch_size, trained_on

    @torch.no_grad()
    def score(self, prompts: Prompts, completions: Completions) -> Scores:
        raw, distance = shared_raw([self.scorer], prompts, completions, self)
        return measured(_scores(raw[0], self.facts), distance, self.trained_on)


def shared_raw(
    scorers: Sequence[RewardScorer], prompts: Prompts, completions: Completions, like: SharedRewardModel
) -> tuple[Float[Tensor, "K B"], Float[Tensor, " B"] | None]:
    """Raw scores of heads that read the states that `like` reads, and how far these are: the trunk runs once for all."""
    trunk = like.scorer
    trunk.backbone.shared.forget()  # of earlier answers

    def read(rows: list[list[int]]) -> Float[Tensor, "B K"]:
        features = trunk.features(rows)
        far = [] if like.trained_on is None else [like.trained_on.distances(features).to(features)]
        return torch.stack([*(scorer.head(features) for scorer in scorers), *far], 1)

    columns = _in_batches(read, _rows(prompts, completions, trunk.backbone.codec), like.batch_size).T
    return columns[: len(scorers)], columns[len(scorers)] if like.trained_on is not None else None


def measured(scores: Scores, distance: Float[Tensor, " B"] | None, trained_on: TrainedOn | None) -> Scores:
    """Scores with the answers' distances from what was trained on, and their percentiles."""
    if distance is None or trained_on is None:
        return scores
    return replace(scores, distance=distance, percentile=trained_on.percentiles(distance))


class SeparateRewardModel:
    """A sequence-classification model of any architecture. It reads sampled ids where `codec` is the policy's own, else text."""

    def __init__(
        self,
        model: Any,
        codec: Codec,
        facts: RewardFacts,
        batch_size: int,
        *,
        reads_ids: bool,
        trained_on: TrainedOn | None = None,
    ) -> None:
        self.model, self.codec, self.facts, self.batch_size, self.reads_ids = model, codec, facts, batch_size, reads_ids
        self.trained_on = trained_on

    @torch.no_grad()
    def score(self, prompts: Prompts, completions: Completions) -> Scores:
        rows = self._read(prompts, completions)
        if self.trained_on is None:
            return _scores(_in_batches(self._raw, rows, self.batch_size), self.facts)
        raw, distance = _in_batches(self._raw_and_distance, rows, self.batch_size).reshape(-1, 2).T
        return measured(_scores(raw, self.facts), distance, self.trained_on)

    def _read(self, prompts: Prompts, completions: Completions) -> list[list[int]]:
        if self.reads_ids:
            return _rows(prompts, completions, self.codec)
        return [self.text_row(p + c) for p, c in zip(prompts.text, completions.text, strict=True)]

    def text_row(self, text: str) -> list[int]:
        ids: list[int] = self.codec.tokenizer(text, truncation=True, max_length=self.codec.context)["input_ids"]
        return ids

    def _raw(self, rows: list[list[int]]) -> Float[Tensor, " B"]:
        ids, mask = pad_right(rows, self.codec.pad_id)
        device = next(self.model.parameters()).device
        logits: Tensor = self.model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).logits
        return logits[:, 0].float()

    def _raw_and_distance(self, rows: list[list[int]]) -> Float[Tensor, "B 2"]:
        """The head on the trunk's states, and how far these are: one pass. Models that know what they were trained on are
        Surefoot's own, whose head is the linear map `score`."""
        assert self.trained_on is not None  # the caller looked
        states = self._states(rows)
        raw: Tensor = self.model.score(states.to(self.model.dtype))
        return torch.stack([raw[:, 0].float(), self.trained_on.distances(states).to(states)], 1)

    def _states(self, rows: list[list[int]]) -> Float[Tensor, "B D"]:
        ids, mask = pad_right(rows, self.codec.pad_id)
        device = next(self.model.parameters()).device
        trunk = getattr(self.model, self.model.base_model_prefix)
        states: Tensor = trunk(input_ids=ids.to(device), attention_mask=mask.long().to(device)).last_hidden_state
        return last_states(states, mask.sum(1).to(device)).float()


def load_reward_model(
    folder: Path, backbone: Backbone, batch_size: int, *, may_share: bool
) -> SharedRewardModel | SeparateRewardModel:
    """The reward model in `folder`: its head on `backbone` where that is the one it was trained on, otherwise the whole model."""
    facts, trained_on = read_facts(folder), TrainedOn.load(folder)
    if may_share and facts.method == "head" and facts.base == backbone.fingerprint and backbone.fingerprint:
        scorer = RewardScorer(backbone, layer=facts.layer, adapter=None, seed=0)
        with torch.no_grad():
            scorer.score.weight.copy_(_score_weight(folder))
        scorer.score.requires_grad_(False)
        return SharedRewardModel(scorer, facts, batch_size, trained_on)
    separate = _separate(folder, facts, backbone.codec, batch_size, trained_on)
    separate.model.to(backbone.device)
    return separate


def text_judge(folder: Path, batch_size: int = 32) -> Callable[[Sequence[str]], list[float]]:
    """The reward model in `folder` as a judge of whole texts, in units of its deviation.

    A text is closed with EOS where Surefoot trained the model, which has seen closed answers alone.

    Raises: ModelError where the folder is no reward model of one label.
    """
    model = _separate(folder, read_facts(folder), None, batch_size, None)
    end = list(model.codec.eos_ids[:1]) if (folder / SIDECAR).exists() else []

    @torch.no_grad()
    def judge(texts: Sequence[str]) -> list[float]:
        rows = [[*model.text_row(text), *end][-model.codec.context :] for text in texts]
        found: list[float] = normalised(_in_batches(model._raw, rows, batch_size), model.facts).tolist()
        return found

    return judge


def _separate(
    folder: Path, facts: RewardFacts, policy: Codec | None, batch_size: int, trained_on: TrainedOn | None
) -> SeparateRewardModel:
    """`policy`: whose sampled ids it is to read; None: texts alone."""
    named = "evaluate.judges" if policy is None else "reward_source.source"
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # damaged files raise anything
        raise ModelError(
            f"{named} = {str(folder)!r} cannot be loaded as a reward model: {first_line(error).rstrip('.')}. "
            "Copy it again, or train it anew."
        ) from error
    if missing := sorted(found["missing_keys"]):  # transformers would make them up, the head of a language model for one
        raise ModelError(f"{named} = {str(folder)!r} is no reward model: {missing[0]} is not among its weights.")
    if model.config.num_labels != 1:
        raise ModelError(f"{named} = {str(folder)!r} has {model.config.num_labels} labels; a reward model has one.")
    same = policy is not None and policy.has_ids_of(tokenizer)
    tokenizer.truncation_side = "left"  # a long prompt is cut at its beginning, so that the answer is read whole
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else model.config.pad_token_id
    if pad is None:
        raise ModelError(f"{named} = {str(folder)!r} names no pad token, so answers cannot be scored together. Set pad_token.")
    if model.config.pad_token_id is None:
        model.config.pad_token_id = pad
    fallback = policy.context if policy is not None else tokenizer.model_max_length
    # some models have more positions than may be used (RoBERTa's first two are padding's); the tokenizer knows
    context = min(getattr(model.config, "max_position_embeddings", None) or fallback, tokenizer.model_max_length)
    codec = Codec(
        tokenizer, pad, (tokenizer.eos_token_id or tokenizer.sep_token_id or 0,), tokenizer.bos_token_id, context, "plain"
    )
    return SeparateRewardModel(
        model.eval().requires_grad_(False), codec, facts, batch_size, reads_ids=same, trained_on=trained_on
    )


def _score_weight(folder: Path) -> Tensor:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if "score.weight" in tensors.keys():  # noqa: SIM118 - not a dict
                weight: Tensor = tensors.get_tensor("score.weight")
                return weight
    raise ModelError(f"{folder} holds no head named score. Train the reward model again.")


def _rows(prompts: Prompts, completions: Completions, codec: Codec) -> list[list[int]]:
    return [
        reward_row(p[pm].tolist(), c[cm].tolist(), codec)
        for p, pm, c, cm in zip(prompts.ids, prompts.mask, completions.ids, completions.mask, strict=True)
    ]


def _in_batches(read: Callable[[list[list[int]]], Tensor], rows: list[list[int]], batch_size: int) -> Float[Tensor, "B ..."]:
    """What `read` says of each row, in the order of `rows`; like lengths are read together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = [read([rows[i] for i in order[start : start + batch_size]]).cpu() for start in range(0, len(order), batch_size)]
    return torch.cat(parts)[torch.tensor(order).argsort()] if parts else torch.zeros(0)


def normalised(raw: Float[Tensor, " B"], facts: RewardFacts) -> Float[Tensor, " B"]:
    """(raw - mean) / deviation. Raises ModelError where a raw score is not finite."""
    if not bool(raw.isfinite().all()):
        raise ModelError(f"the reward model gave a score that is not finite for answer {int((~raw.isfinite()).nonzero()[0, 0])}.")
    return (raw - facts.mean) / facts.deviation


def _scores(raw: Float[Tensor, " B"], facts: RewardFacts) -> Scores:
    value = normalised(raw, facts)
    return Scores(value=value, parts={"reward_model": value}, valid=torch.ones_like(value, dtype=torch.bool))
