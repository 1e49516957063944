"""What an alarm sets going: a warning, and besides a stop, a stronger tether, or answers put before people (ppo.alarms)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from surefoot.config import Config, PPOConfig
from surefoot.errors import ConfigError, TrainingError
from surefoot.lm.backbone import Backbone
from surefoot.lm.batches import PromptSet
from surefoot.preferences import PreferenceStore
from surefoot.runs import RunFolder
from surefoot.stages.alarms import PATIENCE, advice
from surefoot.stages.pairs import Said, queue_pair, sampling_of
from surefoot.stages.ppo_state import Carried, last_good
from surefoot.stages.replay import most_suspicious
from surefoot.stages.rollouts import Rollout
from surefoot.types import RolloutEngine

_CHANCE = 15_485_863  # apart from the run's own seeds


@dataclass(frozen=True, slots=True)
class Suspects:
    """A rollout whose answers may be put before people. `index` are the rows of `prompts` that it answered.

    `reference` is the SFT model and its sampler, None where ppo.alarms does not ask for labels.
    """

    seen: Rollout
    judgements: Mapping[str, Sequence[float]]
    prompts: PromptSet
    index: Sequence[int]
    reference: tuple[Backbone, RolloutEngine] | None


def countered(
    at: Carried, ringing: Mapping[str, str], suspects: Suspects, cfg: Config, update: int, folder: RunFolder | None
) -> Carried:
    """An event for each alarm that began to ring, and what `ppo.alarms` asks for besides.

    Raises: TrainingError where alarms are to stop the run.
    """
    new = [name for name in ringing if at.watch.is_new(name)]
    told = [f"{name} alarm at update {update}: {ringing[name]}. {advice(name)}" for name in new]
    if folder is not None:
        for sentence in told:
            folder.note(sentence)
    match cfg.ppo.alarms:
        case "stop" if ringing:
            said = " ".join(told) or f"{', '.join(ringing)} alarm at update {update}: {'; '.join(ringing.values())}."
            raise TrainingError(f"{said} Stopped, since ppo.alarms = stop. {last_good(folder)}")
        case "tether":
            return tethered(at, ringing, cfg.ppo, update, folder)
        case "label" if new and suspects.reference is not None:
            _label(suspects, new, cfg, update, folder)
    return at


def tethered(at: Carried, ringing: Mapping[str, str], cfg: PPOConfig, update: int, folder: RunFolder | None) -> Carried:
    """With kl_coef times alarm_tether_factor, at most alarm_tether_max, where an alarm begins to ring or still does 2 updates on.

    Another kind of prompts is none of the policy's doing, and raises nothing. Nothing lowers kl_coef again but its own rule.
    """
    due = [name for name in ringing if name != "prompts" and at.watch.rows[name] % PATIENCE == 0]
    raised = min(at.kl_coef * cfg.alarm_tether_factor, cfg.alarm_tether_max)
    if not due or raised <= at.kl_coef:
        return at
    if folder is not None:
        folder.note(
            f"{' and '.join(due)} alarm at update {update}: kl_coef is raised from {at.kl_coef:.4g} to {raised:.4g} "
            f"(ppo.alarm_tether_factor = {cfg.alarm_tether_factor:g}, at most ppo.alarm_tether_max = {cfg.alarm_tether_max:g})."
        )
    return replace(at, kl_coef=raised)


def store_of(cfg: Config, folder: RunFolder | None) -> Path:
    """Where answers are queued: ppo.alarm_store, or preferences.db in the run folder.

    Raises: ConfigError where there is neither.
    """
    if cfg.ppo.alarm_store is not None:
        return Path(cfg.ppo.alarm_store)
    if folder is None:
        raise ConfigError("ppo.alarms = label has no store to queue answers in. Set ppo.alarm_store, or give the run a folder.")
    return folder.path / "preferences.db"


def _label(suspects: Suspects, names: Sequence[str], cfg: Config, update: int, folder: RunFolder | None) -> None:
    """Queues suspicious answers where alarms began to ring, and says so."""
    store = store_of(cfg, folder)
    reason = f"{' and '.join(names)} alarm"
    count = queue_suspects(store, suspects, cfg, update, reason)
    if folder is not None:
        folder.note(f"{reason} at update {update}: {count} answers queued in {store}, each against the SFT model's.")


def queue_suspects(store: Path, suspects: Suspects, cfg: Config, update: int, reason: str) -> int:
    """Queues the most suspicious answers of a rollout, each against one that the SFT model gives now; returns how many.

    The SFT model's chance comes from seed and update, and the store knows a pair that it holds: an update that is made again
    after a kill queues nothing twice.
    """
    assert suspects.reference is not None  # built wherever ppo.alarms asks for labels
    backbone, engine = suspects.reference
    seen, prompts = suspects.seen, suspects.prompts
    rows = [i for i in most_suspicious(seen, suspects.judgements) if seen.completions.text[i].strip()][: cfg.ppo.alarm_labels]
    if not rows:
        return 0
    chance = torch.Generator().manual_seed(cfg.seed * _CHANCE + update)
    others = engine.generate(seen.prompts.rows(rows), chance)
    count = 0
    with PreferenceStore.open(store) as opened, opened.batch():
        for k, i in enumerate(rows):
            own = Said(
                seen.completions.text[i],
                tuple(seen.completions.ids[i][seen.completions.mask[i]].tolist()),
                f"ppo, update {update}",
                backbone.fingerprint,
            )
            other = Said(others.text[k], tuple(others.ids[k][others.mask[k]].tolist()), backbone.source, backbone.fingerprint)
            if other.text.strip() and other.text != own.text:
                queue_pair(opened, prompts.rows[suspects.index[i]].prompt, own, other, sampling_of(cfg), reason)
                count += 1
    return count
