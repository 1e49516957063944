"""The Python face of control, for those who know Stable-Baselines3: learn, predict, save, load. It loads no language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from surefoot.api_steps import Settings, configuration, stepped
from surefoot.build_control import build_control
from surefoot.config import Config
from surefoot.config_file import load_config
from surefoot.config_names import fields
from surefoot.control import EnvFactory
from surefoot.control.saved import load_agent, load_weights
from surefoot.errors import ConfigError, ModelError
from surefoot.optim import trainable_names
from surefoot.runs import restore_optimizer
from surefoot.runs.durable import open_like_folder
from surefoot.stages import ppo_control
from surefoot.stages.control_course import ControlProgress, ControlStep


class ControlRun:
    """PPO in an environment: a Gymnasium id, one of your own registered, or a function that makes an environment at each call.

    `settings` are names of the configuration: {"control.num_envs": 4, "ppo.objective": "penalty"}. What is not set has the
    defaults of `surefoot control`. With `out` the run has a folder: it saves, resumes, and can be reported on.

    >>> run = ControlRun("CartPole-v1", settings={"seed": 1}).learn(50_000)  # doctest: +SKIP
    >>> action, _ = run.predict(observation, deterministic=True)  # doctest: +SKIP
    """

    def __init__(
        self,
        env: str | EnvFactory = "CartPole-v1",
        *,
        settings: Settings | None = None,
        out: str | Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not isinstance(env, str) and not callable(env):
            raise ConfigError(f"env is {env}. Give its id, or a function that makes one: several are needed, for evaluation too.")
        name = env if isinstance(env, str) else _name_of(env)
        self.config, self.out = configuration("control", {"control.env": name, **(settings or {})}, preset="default"), out
        self.parts = build_control(self.config, say, env=None if isinstance(env, str) else env)
        self._progress: ControlProgress | None = None
        self._steps = self._planned()

    def _planned(self) -> Iterator[ControlStep]:
        """The steps of one plan. A second goes on with the weights, the optimiser, the episodes and the beta of the first."""
        cfg, begin = self.config, self._progress
        for step in stepped(
            self.out,
            "control",
            cfg,
            lambda: ppo_control.inputs(self.parts),
            lambda folder: ppo_control.steps(self.parts, cfg, folder, begin=begin),
        ):
            self._progress = step.progress
            yield step

    def __iter__(self) -> Iterator[ControlStep]:
        return self._steps

    def learn(self, total_timesteps: int | None = None) -> Self:
        """Trains to the end of the plan, or for `total_timesteps` from here on (the last rollout is a whole one); returns itself.

        The learning-rate schedule spans this call, as in Stable-Baselines3.

        Raises: ConfigError where the run has a folder and a number: a folder holds one plan, set it as control.total_timesteps.
        """
        if total_timesteps is not None:
            if self.out is not None:
                raise ConfigError(
                    f"learn({total_timesteps}) with out = {str(self.out)!r}: a run folder holds one plan. "
                    'Give settings={"control.total_timesteps": ...} and call learn().'
                )
            control = type(self.config.control).model_validate(
                {**self.config.control.model_dump(), "total_timesteps": total_timesteps}
            )
            self.config = self.config.model_copy(update={"control": control})
            self._steps = self._planned()
        for _ in self._steps:
            pass
        return self

    def predict(self, observation: Any, deterministic: bool = False) -> tuple[np.ndarray, None]:
        """(action, None) of one observation, or actions of several, as the environment takes them.

        Statistics of normalisation are applied and not moved. The second value stands where Stable-Baselines3 has the state of
        recurrent policies. `deterministic` takes the likeliest action, else one is drawn with the run's generator.
        """
        action = self.parts.agent.act(observation, deterministic=deterministic, generator=self.parts.generator)
        return action, None

    def save(self, folder: str | Path) -> None:
        """Writes the agent, its statistics, the optimiser and the settings; `load` reads it."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        ppo_control.save(path, self.parts, self.config, {})
        open_like_folder(path)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        env: str | EnvFactory | None = None,
        settings: Settings | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> Self:
        """An agent of `save`, or of a run's final/, that acts and can learn on. `env`: in place of the one it was trained in.

        Learning goes on with the weights, the statistics and the optimiser, in new episodes.

        Raises: ModelError where the folder holds no agent, or one of other spaces than the environment's.
        """
        path = Path(folder)
        if not (path / "config.yaml").is_file():
            raise ModelError(
                f"{path} holds no agent: config.yaml is missing. Name the folder that surefoot control or save wrote."
            )
        cfg = load_config(path / "config.yaml", [], verb="control", preset="default")
        run = cls(cfg.control.env if env is None else env, settings={**_trained_with(cfg), **(settings or {})}, say=say)
        agent, moments = load_agent(path, num_envs=run.config.control.num_envs)
        parts = run.parts
        if (parts.agent.observation_shape, parts.agent.action_space) != (agent.observation_shape, agent.action_space):
            raise ModelError(
                f"{path} was trained with observations {list(agent.observation_shape)} and actions {agent.action_space}; "
                f"{run.config.control.env} has {list(parts.agent.observation_shape)} and {parts.agent.action_space}."
            )
        load_weights(parts.actor_critic, dict(agent.actor_critic.named_parameters()))
        parts.collector.normalizer.load(agent.normalizer.tensors())
        rates = [group["initial_lr"] for group in parts.optimizer.param_groups]  # `settings` may name another
        restore_optimizer(parts.optimizer, trainable_names(parts.actor_critic), moments)
        for group, rate in zip(parts.optimizer.param_groups, rates, strict=True):
            group["initial_lr"] = rate
        return run


def _trained_with(cfg: Config) -> dict[str, Any]:
    """The settings of a control run by their dotted names, but for its environment."""
    dotted = {name: value for name in fields() if (value := _value(cfg, name)) is not None}
    return {
        name: value for name, value in dotted.items() if name.startswith(("control.", "ppo.", "seed")) and name != "control.env"
    }


def _value(cfg: Config, name: str) -> Any:
    home, _, key = name.rpartition(".")
    return getattr(getattr(cfg, home) if home else cfg, key)


def _name_of(factory: EnvFactory) -> str:
    """How a function that makes environments is called in settings and reports."""
    return str(getattr(factory, "__qualname__", type(factory).__qualname__))
