"""Item 62: what is normalised in training is frozen where the agent is judged or used, and travels with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from surefoot.api_control import ControlRun
from surefoot.control import Collector, Normalizer, evaluate, make_actor_critic
from walks import Walk

SETTINGS = {
    "control.num_envs": 2,
    "control.num_steps": 20,
    "control.batch_size": 20,
    "control.total_timesteps": 120,
    "control.eval_episodes": 2,
    "control.normalize_observations": True,
    "control.normalize_rewards": True,
    "control.hidden_sizes": [8],
}


@pytest.fixture(scope="module")
def run() -> ControlRun:
    return ControlRun(Walk, settings=SETTINGS).learn()


def statistics(run: ControlRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.parts.collector.normalizer.tensors().items()}


def test_item_62_evaluation_and_prediction_move_no_statistics(run: ControlRun) -> None:
    before = statistics(run)
    assert run.parts.evaluation is not None
    evaluate(run.parts.actor_critic, run.parts.collector.normalizer, run.parts.evaluation, num_episodes=3, seed=0)
    for deterministic in (True, False):
        run.predict(np.array([1e6, -1e6]), deterministic=deterministic)
    after = statistics(run)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    run.parts.collector.collect(run.parts.actor_critic, 5, run.parts.generator)  # training does move them
    assert not any(torch.equal(before[name], tensor) for name, tensor in statistics(run).items())


def test_item_62_evaluation_reports_the_rewards_of_the_environment(run: ControlRun) -> None:
    """A walk pays about 5,000 a step; scaled and clipped rewards are at most 10."""
    assert run.parts.evaluation is not None
    seen = evaluate(run.parts.actor_critic, run.parts.collector.normalizer, run.parts.evaluation, num_episodes=3, seed=0)
    assert all(total > 4_000 * length for total, length in zip(seen.returns, seen.lengths, strict=True))


def test_item_62_statistics_are_saved_with_the_agent_and_predict_the_same(run: ControlRun, tmp_path: Path) -> None:
    run.save(tmp_path / "agent")
    again = ControlRun.load(tmp_path / "agent", env=Walk)
    expected, found = statistics(run), statistics(again)
    moments = [name for name in expected if name != "returns"]  # those of episodes that the loaded agent has not begun
    assert len(moments) == 6 and all(torch.equal(expected[name], found[name]) for name in moments)
    seen = np.array([[51.0, 49.0], [48.0, 52.0]], dtype=np.float32)
    assert np.array_equal(run.predict(seen, deterministic=True)[0], again.predict(seen, deterministic=True)[0])
    again.parts.collector.normalizer.load(Normalizer(2, 2, observations=True, rewards=True).tensors())
    assert not np.array_equal(run.predict(seen, deterministic=True)[0], again.predict(seen, deterministic=True)[0])


class Cut(Walk):
    """Ends nothing by itself; a time limit cuts after 3 steps."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        seen, reward, _, _, about = super().step(action)
        self.steps = getattr(self, "steps", 0) + 1
        return seen, reward, False, self.steps % 3 == 0, about


def test_item_62_the_last_observation_of_a_cut_episode_is_normalised_like_the_others() -> None:
    """V of it, which bootstraps, is V of the observation that the statistics of its step give."""
    envs = SyncVectorEnv([Cut], autoreset_mode=AutoresetMode.DISABLED)
    actor_critic = make_actor_critic(envs, (8,), torch.Generator().manual_seed(0))
    collector = Collector(envs, seed=0, normalizer=Normalizer(2, 1, observations=True))
    shown: list[np.ndarray] = []
    observed = collector.normalizer.observed

    def remembering(raw: np.ndarray) -> np.ndarray:
        shown.append(observed(raw))
        return shown[-1]

    collector.normalizer.observed = remembering  # type: ignore[method-assign]
    rollout = collector.collect(actor_critic, 3, torch.Generator().manual_seed(0))
    assert rollout.ended[0].tolist() == [False, False, True] and not rollout.terminated.any()
    last, first_of_the_next = (torch.from_numpy(each) for each in shown[-2:])
    with torch.no_grad():
        torch.testing.assert_close(rollout.next_values[0, 2], actor_critic(last)[1].squeeze())
        assert float(actor_critic(last)[1] - actor_critic(first_of_the_next)[1]) != 0
    assert abs(last).max() <= 10
