"""Environments that tests of control share."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Walk(gymnasium.Env[np.ndarray, Any]):
    """A walk on a line, pushed by the action and by chance; ends beyond 3, pays its position. The start is drawn."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space: gymnasium.Space[Any] = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=2) * 0.3 + 50.0
        return self.place.astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = self.place + 0.3 * float(np.asarray(action).sum()) + self.np_random.normal(size=2) * 0.3
        return self.place.astype(np.float32), float(100 * self.place[0]), bool(abs(self.place[0] - 50) > 3), False, {}


class Forgetful(Walk):
    """Draws from a generator that no reset seeds: an episode cannot be played again."""

    chance = np.random.default_rng(0)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = self.place + self.chance.normal(size=2) * 0.1
        return super().step(action)


class Broken(Walk):
    """Gives `bad` as an observation or a reward from step `at` of each episode on."""

    def __init__(self, *, observation: float = 0.0, reward: float = 0.0, at: int = 20) -> None:
        self.bad, self.at = (observation, reward), at

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps = 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        seen, reward, _, _, _ = super().step(action)
        self.steps += 1
        if self.steps >= self.at:
            seen, reward = seen + np.float32(self.bad[0]), reward + self.bad[1]
        return seen, reward, False, self.steps >= 200, {}
