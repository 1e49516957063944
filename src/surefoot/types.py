"""The hand-over types: what one part gives to the next, with shapes. B rows, T steps of a row (a token, or an env step).

There is ONE mask, True where a step counts. No sentinel values, no second mask. All types are frozen; data in, new data out.
`Opaque` things are indexable by row (`thing[rows]` with a LongTensor of rows) and otherwise private to the part that made them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Opaque(Protocol):
    """Something the loop carries and indexes by row but never looks into."""

    def __getitem__(self, rows: Tensor) -> Self: ...


@dataclass(frozen=True, slots=True)
class Prompts:
    """A batch of prompts, padded on the left. `key` is a stable identity; `columns` are the data set's further fields."""

    ids: Int[Tensor, "B P"]
    mask: Bool[Tensor, "B P"]
    text: tuple[str, ...]
    key: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def rows(self, index: Sequence[int]) -> Prompts:
        """The prompts at `index`, in that order; an index may occur more than once (several samples a prompt)."""
        where = torch.as_tensor(list(index), dtype=torch.long, device=self.ids.device)
        return Prompts(
            ids=self.ids[where],
            mask=self.mask[where],
            text=tuple(self.text[i] for i in index),
            key=tuple(self.key[i] for i in index),
            columns={name: tuple(column[i] for i in index) for name, column in self.columns.items()},
        )


@dataclass(frozen=True, slots=True)
class Completions:
    """Sampled answers, padded on the right. The end-of-sequence token counts; `finished` is False where length cut the answer.

    `logp_sampler` is the log-probability (nats) under the distribution that was sampled from: after temperature.
    `version` is the version of the weights that sampled. `states` is what the policy made of the text before each token, where
    the sampler keeps it (of a language model the final-normed state, [B, T, D]); of masked slots it says nothing.
    """

    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    logp_sampler: Float[Tensor, "B T"]
    finished: Bool[Tensor, " B"]
    text: tuple[str, ...]
    version: int
    states: Opaque | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """One number an answer, with its parts by name. `valid` False masks the whole row, before any standardising.

    `distance` is how far each answer lies from what a reward model was trained on, `percentile` the share of its held-out
    answers, 0 to 100, that lie nearer; None where the source is no reward model that knows.
    """

    value: Float[Tensor, " B"]
    parts: Mapping[str, Float[Tensor, " B"]]
    valid: Bool[Tensor, " B"]
    distance: Float[Tensor, " B"] | None = None
    percentile: Float[Tensor, " B"] | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an actor-critic says of given actions. `logp`, `entropy` in nats; `values` before the step, `next_values` after it."""

    logp: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    next_values: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    dist: Opaque


@dataclass(frozen=True, slots=True)
class PPOBatch:
    """All that `ppo_update` needs of a rollout. Control rows are [N*T, 1], token rows [B, T]; `states` are never looked into.

    `dist_old` is kept where an exact KL(pi_old || pi_theta) is wanted; `logp_ref` and `dist_ref` where the tether to the
    reference stands in the loss. `weights`, detached, multiply the advantages after they are standardised: importance weights of
    samples that another policy drew. `logp_rounding`, nats, is what rounding alone may do to `logp_old` where that can be much.
    `lengths` are the tokens that a forward reads of each row, where it reads more than the valid steps.
    """

    states: Opaque
    actions: Tensor
    logp_old: Float[Tensor, "B T"]
    values_old: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    dist_old: Opaque | None = None
    logp_ref: Float[Tensor, "B T"] | None = None
    dist_ref: Opaque | None = None
    weights: Float[Tensor, "B T"] | None = None
    logp_rounding: Float[Tensor, "B T"] | None = None
    lengths: Int[Tensor, " B"] | None = None

    def __len__(self) -> int:
        return self.mask.shape[0]

    def __getitem__(self, rows: Tensor) -> PPOBatch:
        values: list[Any] = [getattr(self, f.name) for f in fields(self)]
        parts: list[Any] = [None if value is None else value[rows] for value in values]
        return PPOBatch(*parts)


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one `ppo_update` did. Means are over valid steps of all minibatches unless said otherwise; KLs in nats a step.

    `approx_kl` is the mean over the update, `kl_after` KL(old || new) after the last step. `clip_fraction` counts steps where
    the clip cuts the gradient; `outside_fraction` those with |ratio - 1| > epsilon. `grad_norm` is before clipping,
    `grad_norm_clipped` after. `kl_tether` is the tether's mean KL where it stands in the loss, else 0. `skipped` counts steps
    that were not taken (the finite guard refused them, or every row was masked), `skip_reason` says why the first was not (""
    when none), `skipped_in_row` counts the refusals at the end of the update: hand it to the next one.
    """

    loss_policy: float
    loss_value: float
    loss_total: float
    approx_kl: float
    kl_after: float
    kl_tether: float
    clip_fraction: float
    outside_fraction: float
    value_clip_fraction: float
    ratio_mean: float
    ratio_var: float
    ratio_max: float
    first_log_ratio: float
    entropy: float
    explained_variance: float
    grad_norm: float
    grad_norm_clipped: float
    steps: int
    skipped: int
    skip_reason: str
    stopped_early: bool
    skipped_in_row: int = 0


class ActorCritic(Protocol):
    """A policy and a value function that speak of the same actions. `evaluate` goes through the module's `forward`."""

    def evaluate(self, states: Any, actions: Tensor) -> Evaluation: ...

    def kl(self, dist_p: Any, dist_q: Any) -> Float[Tensor, "B T"]:
        """Exact KL(p || q) in nats, differentiable in both arguments."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def named_policy_parameters(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        """What the policy's loss trains, a shared trunk included.

        With the critic's it covers every trainable weight, each once.
        """
        ...

    def named_critic_parameters(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        """What the critic alone owns; critic warm-up moves these and nothing else."""
        ...


class Judgement(NamedTuple):
    """What actor-critics say of chosen steps, as NumPy arrays [S, n] of S seeds; or the partial derivatives of a loss by each.

    Log-probabilities, entropy and `kl`, the exact KL(pi_old || pi_theta), in nats. None: `kl` where the rollout kept no
    `dist_old`, and a derivative that is 0 everywhere.
    """

    logp: Any
    values: Any
    entropy: Any
    kl: Any


class Nets(Protocol):
    """S actor-critics of one shape that are differentiated by hand, all at once. `seeds` is a slice of them.

    Between `open` and `close` they hold the rollouts and the optimisers' moments in memory of their own, which is that of the
    weights and of `optimizer.state`: nothing has to be copied back but the count of steps.
    """

    num_seeds: int

    def accepts(self, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        """Whether `step` does what each seed's optimiser would do: AdamW over all weights, on the CPU, in float32."""
        ...

    def open(self, batches: Sequence[PPOBatch], optimizers: Sequence[torch.optim.Optimizer]) -> None: ...

    def judge(self, seeds: slice, rows: Any) -> Judgement:
        """`rows` [S, n] are numbers of rows of each seed's rollout."""
        ...

    def backward(self, seeds: slice, slopes: Judgement) -> None:
        """Replaces the gradients by those of the loss whose partial derivatives by the last judgement are `slopes`."""
        ...

    def step(self, seeds: slice, max_grad_norm: float | None, *, critic_only: bool) -> list[tuple[float, bool]]:
        """As `Runtime.step`, for each seed with its own norm. `critic_only` leaves policies and their moments alone."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class NetsOwner(Protocol):
    """An actor-critic that `ppo_update` may differentiate by hand. None where its kind of head has no hand-written gradient."""

    def nets(self) -> Nets | None: ...


class RolloutEngine(Protocol):
    """Samples answers. Log-probs are those of the sampling distribution; sampled ids are returned as sampled."""

    def generate(self, prompts: Prompts, generator: torch.Generator) -> Completions: ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None: ...


class RewardSource(Protocol):
    """Scores answers. A row that cannot be scored is `valid=False`; a made-up score is never returned."""

    def score(self, prompts: Prompts, completions: Completions) -> Scores: ...


class Runtime(Protocol):
    """One process or many. Every rank calls the same methods equally often; `sum` is over all ranks."""

    rank: int
    world_size: int
    device: torch.device

    def shard(self, count: int) -> range:
        """This rank's rows of `count` rows; all ranks get equally many."""
        ...

    def sum(self, x: Tensor) -> Tensor: ...

    def max(self, x: Tensor) -> Tensor: ...

    def step(
        self, module: torch.nn.Module | ActorCritic, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
    ) -> tuple[float, bool]:
        """Clips the global gradient norm and steps if it is finite. Returns (norm before clipping, stepped)."""
        ...

    def full_weights(self, module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
        """(name, full tensor) one at a time; called on all ranks."""
        ...


RewardFunction = Callable[..., Sequence[float]]
