"""Gymnasium environments: made by name or by a function, reset by seeds that follow from the run's. Bad names are told apart."""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import ControlConfig
from ..errors import ConfigError, told
from .vector import SteppedEnvs

if TYPE_CHECKING:
    import gymnasium

    Env = gymnasium.Env[Any, Any]

EnvFactory = Callable[[], "Env"]

TRAINING, EVALUATION, RECORDING = range(3)  # purposes: no episode of one has the seed of another's


def episode_seed(seed: int, purpose: int, env: int, episode: int) -> int:
    """The seed with which environment `env` of `purpose` begins its episode number `episode` in a run of `seed`."""
    return int(np.random.SeedSequence(seed, spawn_key=(purpose, env, episode)).generate_state(1)[0])


def make_env(name: str) -> Env:
    """One environment by its Gymnasium id; `module:Id-v0` imports a module, also of the working directory, that registers it.

    Raises: ConfigError where Gymnasium or what the environment is made of is not installed, or no environment has the name.
    """
    gym = _gymnasium()
    if ":" in name and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made: Env = gym.make(name)
    except gym.error.DependencyNotInstalled as missing:
        raise ConfigError(_missing(name, missing)) from missing
    except ModuleNotFoundError as missing:
        raise ConfigError(f"control.env = {name!r}: {missing}. Name a module that can be imported, module:Id-v0.") from missing
    except gym.error.Error as unknown:
        raise ConfigError(f"control.env = {name!r}: Gymnasium knows no such environment.{_nearest(name, gym)}") from unknown
    except (AttributeError, ImportError, OSError, RuntimeError) as broken:
        if "MUJOCO_GL" not in os.environ:
            raise  # nothing of the machine's graphics, so it is a fault of the environment
        raise ConfigError(
            f"control.env = {name!r} cannot be made ({told(broken)[:200]}). That may be what MUJOCO_GL names: {screenless()}."
        ) from broken
    return made


def screenless() -> str:
    """How MuJoCo draws where there is no screen, for a line about what went wrong."""
    tried = os.environ.get("MUJOCO_GL")
    now = f"it is {tried}" if tried else "it is not set"
    return f"for MuJoCo without a screen set MUJOCO_GL to egl or osmesa, {now} (Debian: apt install libegl1, or libosmesa6)"


def make_envs(cfg: ControlConfig, factory: EnvFactory | None = None, num_envs: int | None = None) -> SteppedEnvs:
    """`num_envs` environments, those of the configuration by default, made by `factory` or by the name in it.

    They reset when they are told to: whoever steps them knows an episode's last observation and seeds the next.

    Raises: ConfigError as `make_env`, and where `factory` gives one environment twice.
    """
    _gymnasium()
    make: EnvFactory = factory if factory is not None else lambda: make_env(cfg.env)
    envs = SteppedEnvs([make] * (num_envs or cfg.num_envs))
    if len({id(env) for env in envs.envs}) < envs.num_envs:
        raise ConfigError("The function that makes environments gave the same one twice. Make a new one at each call.")
    return envs


def observation_size(space: gymnasium.Space[Any]) -> int:
    """Numbers in an observation. Raises ConfigError for spaces that a network of layers cannot read."""
    from gymnasium.spaces import Box

    if not isinstance(space, Box):
        raise ConfigError(f"Observations are {space}. Box is supported; wrap the environment (FlattenObservation).")
    return math.prod(space.shape)


def flat(observations: np.ndarray) -> np.ndarray:
    """[N, ...] as float32 [N, D], in memory of its own."""
    return np.array(observations, dtype=np.float32).reshape(len(observations), -1)


def for_envs(actions: np.ndarray, space: gymnasium.Space[Any]) -> np.ndarray:
    """What environments are given for actions as sampled [N, ...]: numbers from the space's start on, or clipped to the box."""
    return bring_to(space)(actions)


def bring_to(space: gymnasium.Space[Any]) -> Callable[[np.ndarray], np.ndarray]:
    """`for_envs` of one space."""
    from gymnasium.spaces import Box, Discrete

    if isinstance(space, Discrete):
        first = space.start
        return lambda actions: actions + first
    assert isinstance(space, Box)
    shape, low, high, kind = space.shape, space.low, space.high, space.dtype

    def clipped(actions: np.ndarray) -> np.ndarray:
        return np.minimum(np.maximum(actions.reshape(-1, *shape), low), high).astype(kind, copy=False)

    return clipped


def _gymnasium() -> Any:
    try:
        import gymnasium
        from gymnasium.vector import AutoresetMode  # noqa: F401  since 1.1
    except ImportError as missing:
        raise ConfigError("Control needs gymnasium 1.1 or newer: pip install 'surefoot[control]'.") from missing
    return gymnasium


def _missing(name: str, missing: Exception) -> str:
    said = " ".join(str(missing).split())
    if "mujoco" in said.lower():
        return f"control.env = {name!r} needs MuJoCo, which is not installed: pip install 'surefoot[control]'."
    return f"control.env = {name!r} needs a package that is not installed: {said}"


def _nearest(name: str, gym: Any) -> str:
    """A question with up to three names, or where all of them are."""
    known = {key.lower(): key for key in gym.registry}
    bases = {key.rpartition("-v")[0]: full for key, full in known.items()}  # the newest version of each, as registered
    close = [known[key] for key in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.75)]
    close = close or [bases[key] for key in difflib.get_close_matches(name.lower(), bases, n=3, cutoff=0.6)]
    if not close:
        return " `python -c 'import gymnasium; gymnasium.pprint_registry()'` lists all."
    *head, tail = close
    return f" Did you mean {', '.join(head)} or {tail}?" if head else f" Did you mean {tail}?"
