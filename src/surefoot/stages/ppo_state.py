"""What a PPO run carries from update to update, what of it must stay finite, and the way back to its last good checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from surefoot.config import Config, PPOConfig
from surefoot.errors import ConfigError, Diverged, TrainingError
from surefoot.lm.roles import LanguageActorCritic
from surefoot.optim import make_optimizer, trainable_names
from surefoot.runs import (
    RunFolder,
    State,
    all_finite,
    flatten_optimizer,
    load_manifest,
    not_finite_in,
    restore_optimizer,
    saved_state,
)
from surefoot.stages.alarms import Watch
from surefoot.stages.beginning import Beginning
from surefoot.stages.rollouts import Rollout, RunningDeviation
from surefoot.types import PPOBatch, UpdateStats

NUM_PROBED = 2  # rows of the rollout that the weights judge once more before they count as good
_OTHER_SEEDS = 104_729  # apart from each other by this, and so from the run's own two


@dataclass(frozen=True, slots=True)
class Carried:
    """What the loop carries, besides what a `Learner` holds. `rollbacks` counts over the whole run.

    `is_far`: the last look at held-out prompts found a KL at which the run is to end.
    """

    update: int = 0
    beta: float = 0.0
    kl_coef: float = 0.0
    skipped_in_row: int = 0
    rollbacks: int = 0
    is_far: bool = False
    watch: Watch = field(default_factory=Watch)
    beginning: Beginning = field(default_factory=Beginning)
    running: RunningDeviation = field(default_factory=RunningDeviation)


@dataclass(frozen=True, slots=True)
class Learner:
    """What an update moves: policy and critic, their optimiser, and the two sources of chance."""

    policy: LanguageActorCritic
    optimizer: torch.optim.Optimizer
    sampling: torch.Generator
    shuffling: torch.Generator

    @classmethod
    def fresh(cls, policy: LanguageActorCritic, cfg: Config) -> Self:
        sampling, shuffling = torch.Generator().manual_seed(cfg.seed), torch.Generator().manual_seed(cfg.seed + 1)
        return cls(policy, make_optimizer(policy, cfg.ppo), sampling, shuffling)

    def reseed(self, seed: int, rollbacks: int) -> None:
        """Other answers and another order of the rows than those that led astray."""
        self.sampling.manual_seed(seed + 2 * rollbacks * _OTHER_SEEDS)
        self.shuffling.manual_seed(seed + (2 * rollbacks + 1) * _OTHER_SEEDS)

    @property
    def trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        """(name, weight) of all that is trained, in the optimiser's order."""
        return trained_weights(self.policy)

    def _tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {
            "weights": {name: p.detach() for name, p in self.trained},
            "optimizer": flatten_optimizer(self.optimizer, trainable_names(self.policy)),
        }

    def state(self, at: Carried) -> State:
        """All that a resumed run needs."""
        rng = {"sampling": self.sampling.get_state(), "shuffling": self.shuffling.get_state()}
        values = asdict(replace(at, beginning=Beginning()))
        del values["beginning"]  # tensors
        return State(tensors={**self._tensors(), "rng": rng, "beginning": at.beginning.tensors()}, values=values)

    def load(self, state: State) -> Carried:
        """Puts `state` back, bit for bit."""
        with torch.no_grad():
            for name, p in self.trained:
                p.copy_(state.tensors["weights"][name])
        restore_optimizer(self.optimizer, trainable_names(self.policy), state.tensors["optimizer"])
        self.sampling.set_state(state.tensors["rng"]["sampling"])
        self.shuffling.set_state(state.tensors["rng"]["shuffling"])
        values = dict(state.values)
        running, watch = RunningDeviation(**values.pop("running")), Watch(**values.pop("watch", {}))
        beginning = Beginning.of(state.tensors.get("beginning", {}))
        return replace(Carried(**values), running=running, watch=watch, beginning=beginning)

    def check(self, batch: PPOBatch, update: int) -> None:
        """The state after an update must be worth saving: finite weights and moments, which say finite things of answers.

        Raises: Diverged where they are not.
        """
        if bad := not_finite_in(State(self._tensors(), {})):
            raise Diverged(f"{bad} after update {update}.")
        some = batch[batch.mask.any(1).nonzero()[:NUM_PROBED, 0]]
        with torch.no_grad():
            said = self.policy(some.states, some.actions)
        figures = {"log-probs": said.logp, "entropies": said.entropy, "values": said.values}
        if odd := _not_finite(figures, some.mask):
            raise Diverged(
                f"The weights after update {update} are finite, but the {odd} that they give the rollout's tokens are not."
            )

    def frozen_damage(self) -> str:
        """Name of a frozen weight that is not finite, which no checkpoint can mend; "" where there is none."""
        frozen = ((name, p) for name, p in self.policy.named_parameters() if not p.requires_grad)
        return next((name for name, p in frozen if not all_finite(p)), "")


def trained_weights(policy: LanguageActorCritic) -> list[tuple[str, torch.nn.Parameter]]:
    """(name, weight) of all of policy and critic that is trained."""
    both = [*policy.named_policy_parameters(), *policy.named_critic_parameters()]
    return [(name, p) for name, p in both if p.requires_grad]


def start_from(policy: LanguageActorCritic, run: Path) -> None:
    """Puts policy and critic where the PPO run in the folder `run` left them. The reference stays the model as it is.

    Raises:
        ConfigError: the folder holds no finished PPO run, one on another model, or one that trained other weights.
    """
    manifest = load_manifest(run)
    what = f"ppo.start = {str(run)!r}"
    if manifest["verb"] != "ppo" or manifest["status"] != "done":
        raise ConfigError(
            f"{what} holds a run of {manifest['verb']} ({manifest['status']}), not a finished one of ppo. Name one."
        )
    if not policy.backbone.fingerprint or manifest["inputs"].get("model") != policy.backbone.fingerprint:
        raise ConfigError(f"{what} was trained on another model than model.name. Name the model that both begin from.")
    found = saved_state(run)
    weights = found.tensors["weights"]
    own = dict(trained_weights(policy))
    if {name: p.shape for name, p in own.items()} != {name: tensor.shape for name, tensor in weights.items()}:
        raise ConfigError(
            f"{what} trained other weights ({len(weights)} tensors; here {len(own)}). Use its model.tuning, model.lora_rank, "
            "model.lora_layers and ppo.critic."
        )
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(weights[name])


def check_rollout(seen: Rollout, update: int) -> None:
    """What policy, critic and reference say of the answers must be finite: a state from which it is not is not good.

    Raises: Diverged where it is not.
    """
    batch = seen.batch
    said = {
        "policy's log-probs": batch.logp_old,
        "critic's values": batch.values_old,
        "reference's log-probs": seen.logp_ref,
        "KLs to the reference": seen.kl,
    }
    if odd := _not_finite(said, batch.mask):
        raise Diverged(f"The {odd} of the rollout of update {update} are not finite.")


def check_limits(seen: Rollout, stats: UpdateStats, cfg: PPOConfig, update: int, kept: str) -> None:
    """Raises TrainingError where KL, ratio or gradient norm has passed the limit at which the run is to stop."""
    kl = seen.metrics["objective/kl"]
    if cfg.kl_max is not None and kl > cfg.kl_max:
        raise TrainingError(
            f"KL(policy || SFT) = {kl:.2f} nats a sequence passed ppo.kl_max = {cfg.kl_max} at update {update}. {kept} "
            "Raise ppo.kl_coef, lower ppo.learning_rate, or set ppo.target_kl."
        )
    figures = (
        f"(ratio max {stats.ratio_max:.3g}, gradient norm {stats.grad_norm:.3g}, approx KL {stats.approx_kl:.3g} nats a token)"
    )
    if cfg.ratio_max is not None and cfg.objective != "policy_gradient" and stats.ratio_max > cfg.ratio_max:
        raise TrainingError(
            f"The ratio exploded at update {update}: one token's passed ppo.ratio_max = {cfg.ratio_max:g} {figures}. The samples "
            f"say nothing of such a policy. {kept} Lower ppo.learning_rate or ppo.num_ppo_epochs, or set ppo.target_kl."
        )
    if cfg.grad_norm_max is not None and stats.grad_norm > cfg.grad_norm_max:
        parts = f"policy loss {stats.loss_policy:.3g}, value loss {stats.loss_value:.3g}"
        raise TrainingError(
            f"The gradient exploded at update {update}: its mean norm passed ppo.grad_norm_max = {cfg.grad_norm_max:g} "
            f"{figures}; {parts}. {kept} Scale large rewards (ppo.reward_scale, ppo.reward_clip), lower ppo.vf_coef or "
            "ppo.learning_rate."
        )


def gone_back(trouble: Diverged, learner: Learner, folder: RunFolder | None, cfg: Config, rollbacks: int) -> Carried:
    """The last good checkpoint's state, put back, with other seeds. `rollbacks` were made before.

    A run that is killed before its next checkpoint comes the same way again: what leads it astray and the seeds that follow are
    functions of the checkpoint.

    Raises: TrainingError where there is no way back, or it was gone ppo.max_rollbacks times; it says why the run diverged.
    """
    allowed = cfg.ppo.max_rollbacks
    if frozen := learner.frozen_damage():
        why = f"{frozen} is frozen and not finite, and no checkpoint holds it; the same command loads it anew."
    elif folder is None or folder.newest is None:
        why = "There is no checkpoint to go back to."
    elif rollbacks >= allowed:
        times = {0: "Going back is off", 1: "The run went back once before"}.get(
            rollbacks, f"The run went back {rollbacks} times before"
        )
        why = f"{times} (ppo.max_rollbacks = {allowed})."
    else:
        folder.note(f"{trouble} Going back to {folder.newest} with other seeds, {rollbacks + 1} of {allowed} times.")
        state = folder.restore()
        assert state is not None  # `newest` is whole
        at = replace(learner.load(state), rollbacks=rollbacks + 1)
        learner.reseed(cfg.seed, at.rollbacks)
        return at
    raise TrainingError(f"{trouble} {why} {last_good(folder)} Lower ppo.learning_rate, or set ppo.target_kl.") from trouble


def last_good(folder: RunFolder | None) -> str:
    """Where a stopped run can be had from, as a sentence."""
    if folder is None or folder.newest is None:
        return "Nothing was saved yet."
    return f"Last good checkpoint: {folder.path / folder.newest}."


def _not_finite(figures: Mapping[str, Tensor], mask: Tensor) -> str:
    """Names of the figures that are not finite somewhere in the mask."""
    return ", ".join(name for name, x in figures.items() if not bool(x[mask].isfinite().all()))
