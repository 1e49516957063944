"""From settings to what pays and who judges: a reward source, or the weighted sum of several, and judges by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surefoot.config import Config, is_url
from surefoot.embedded.named_judges import NAMED_JUDGES, named_judge
from surefoot.errors import ConfigError
from surefoot.lm.backbone import Backbone
from surefoot.rewards.ensemble import load_reward, refuse_idle_rule
from surefoot.rewards.function import FunctionReward, load_function
from surefoot.rewards.http import HttpReward
from surefoot.rewards.model import text_judge
from surefoot.rewards.verifiable import verifiable
from surefoot.rewards.weighted import WeightedSum, source_names
from surefoot.runs.stop import STOP
from surefoot.stages.judging import Judge
from surefoot.types import RewardSource


def reward_source(cfg: Config, backbone: Backbone, given: Any = None) -> RewardSource:
    """A callable as it is, a source as it is, or what the settings name: one source, or the weighted sum of several."""
    if given is not None:
        source_given: RewardSource = given if callable(getattr(given, "score", None)) else FunctionReward(given)
        return source_given
    named = cfg.reward_source.every
    if not named:
        raise ConfigError(
            "reward_source.source is not set. Name a reward-model folder (runs/reward/final), module:function, or a server's URL."
        )
    refuse_idle_rule(cfg.reward_source)
    loaded = [_named_source(cfg, backbone, source) for source in named]
    if not cfg.reward_source.sources:
        return loaded[0]
    weights = cfg.reward_source.weights or (1.0,) * len(named)
    return WeightedSum(list(zip(source_names(named), loaded, weights, strict=True)))


def _named_source(cfg: Config, backbone: Backbone, source: str) -> RewardSource:
    if is_url(source):
        return HttpReward(source, cfg.reward_source, is_stopping=lambda: STOP.requested is not None)
    if (check := verifiable(source)) is not None:  # before any look for a file: a pattern may be longer than a name can be
        return FunctionReward(check, source)
    if Path(source).exists():
        return load_reward(Path(source), backbone, cfg.reward_source, may_share=cfg.model.tuning == "lora")
    if ":" in source:
        return FunctionReward(load_function(source), source)
    raise ConfigError(f"reward_source.source = {source!r}: no such folder, and no module:function. Name one of the two.")


def judges_of(cfg: Config) -> dict[str, Judge]:
    """The judges of evaluate.judges by name: embedded ones, functions of texts, or reward models' folders."""
    out: dict[str, Judge] = {}
    for name in cfg.evaluate.judges:
        if name in NAMED_JUDGES:
            out[name] = named_judge(name)
        elif Path(name).is_dir():
            out[source_names([name])[0]] = text_judge(Path(name))
        elif ":" in name:
            out[name.partition(":")[2]] = load_function(name)
        else:
            raise ConfigError(
                f"evaluate.judges: no judge {name!r}. Name {', '.join(NAMED_JUDGES)}, module:function, or a reward model's "
                "folder."
            )
    return out
