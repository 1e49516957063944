"""The face that someone who knows Stable-Baselines3 guesses: learn, predict, save, load, environments of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import surefoot
import surefoot.cli
from surefoot.api_control import ControlRun
from surefoot.control import record
from surefoot.errors import ConfigError, Interrupted, ModelError
from surefoot.runs import load_manifest, read_jsonl
from walks import Walk

SMALL = {
    "control.num_envs": 2,
    "control.num_steps": 20,
    "control.batch_size": 20,
    "control.total_timesteps": 80,
    "control.hidden_sizes": [8],
    "control.eval_episodes": 2,
    "ppo.num_ppo_epochs": 2,
}


def weights(run: ControlRun) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(run.parts.actor_critic.parameters()).detach()


def test_a_run_is_iterable_and_learn_finishes_what_is_left() -> None:
    run = surefoot.ControlRun(settings=SMALL)
    first = next(iter(run))
    assert (first.update, first.total, first.timesteps) == (1, 2, 40)
    assert first.metrics["train/learning_rate"] == 3e-4  # the defaults are those of the verb
    run.learn()
    assert list(run) == []
    whole = ControlRun("CartPole-v1", settings=SMALL).learn()
    assert torch.equal(weights(run), weights(whole))


def test_learn_takes_a_number_and_a_second_call_goes_on() -> None:
    settings = {**SMALL, "ppo.objective": "penalty", "ppo.beta_controller": "doubling", "ppo.beta_target": 10.0}
    run = ControlRun("CartPole-v1", settings=settings)
    run.learn(120)
    after, beta = weights(run), run._progress.beta  # type: ignore[union-attr]
    assert beta == 1 / 8  # three updates far below the target
    run.learn(40)
    assert not torch.equal(after, weights(run)) and run._progress.beta == 1 / 16  # type: ignore[union-attr]
    moments = [state["step"] for state in run.parts.optimizer.state.values()]
    assert {float(step) for step in moments} == {4 * 2 * 2}  # 4 updates, 2 epochs, 2 minibatches: one optimiser throughout


def test_actions_of_one_observation_and_of_several_are_what_the_environment_takes() -> None:
    run, box = ControlRun("CartPole-v1", settings=SMALL), ControlRun(Walk, settings=SMALL)
    env = gymnasium.make("CartPole-v1")
    seen, _ = env.reset(seed=0)
    action, nothing = run.predict(seen, deterministic=True)
    assert nothing is None and env.action_space.contains(action)
    assert run.predict(np.stack([seen] * 3), deterministic=True)[0].tolist() == [int(action)] * 3
    draws = {int(run.predict(seen)[0]) for _ in range(30)}
    assert draws == {0, 1}  # not deterministic: a policy at its start takes both
    with torch.no_grad():
        box.parts.actor_critic.policy_head.mean.bias.fill_(5.0)  # type: ignore[union-attr]
    assert box.predict(np.zeros(2), deterministic=True)[0].tolist() == [1.0]  # clipped to the box
    with pytest.raises(ModelError, match=r"An observation of shape \[3\] was given; the agent wants \[4\], or several of them\."):
        run.predict(np.zeros(3))
    with pytest.raises(ModelError, match="not finite"):
        run.predict(np.full(4, np.nan))


def test_an_agent_is_saved_loaded_and_learns_on_with_its_optimiser(tmp_path: Path) -> None:
    settings = {**SMALL, "control.normalize_observations": True, "seed": 4}
    run = ControlRun(Walk, settings=settings).learn()
    run.save(tmp_path / "agent")
    again = ControlRun.load(tmp_path / "agent", env=Walk, settings={"ppo.learning_rate": 0.5})
    assert torch.equal(weights(run), weights(again)) and again.config.seed == 4
    assert again.config.control.normalize_observations and again.config.ppo.learning_rate == 0.5
    seen = np.random.default_rng(0).normal(50, 2, (9, 2))
    assert np.array_equal(run.predict(seen, deterministic=True)[0], again.predict(seen, deterministic=True)[0])
    assert next(iter(again)).metrics["train/learning_rate"] == 0.5
    assert {float(state["step"]) for state in again.parts.optimizer.state.values()} == {12.0}  # 8 before, 4 now


def test_final_of_a_run_folder_is_an_agent_too(tmp_path: Path) -> None:
    ControlRun("CartPole-v1", settings=SMALL, out=tmp_path / "api").learn()
    assert len(read_jsonl(tmp_path / "api" / "metrics.jsonl")) == 2
    words = [f"--{name}={json.dumps(value)}" for name, value in SMALL.items()]
    assert surefoot.cli.run(["control", "CartPole-v1", *words, "--out", str(tmp_path / "run")]) == 0
    assert load_manifest(tmp_path / "run")["status"] == "done"
    one = ControlRun.load(tmp_path / "run" / "final")
    other = ControlRun("CartPole-v1", settings=SMALL).learn()
    assert torch.equal(weights(one), weights(other))


def test_what_is_no_agent_or_another_environments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no agent: config.yaml is missing"):
        ControlRun.load(tmp_path)
    run = ControlRun("CartPole-v1", settings=SMALL)
    run.save(tmp_path / "agent")
    with pytest.raises(ModelError, match=r"trained with observations \[4\] and actions Discrete\(2\); Pendulum-v1 has \[3\]"):
        ControlRun.load(tmp_path / "agent", env="Pendulum-v1")
    (tmp_path / "agent" / "weights.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"holds no agent that can be read"):
        ControlRun.load(tmp_path / "agent")


def test_a_registered_environment_of_ones_own_is_found_by_its_id() -> None:
    gymnasium.register("Walk-v0", entry_point=Walk, max_episode_steps=30)
    run = ControlRun("Walk-v0", settings=SMALL).learn()
    assert run.parts.collector.envs.single_action_space == Walk.action_space
    gymnasium.registry.pop("Walk-v0")


def test_an_environment_in_place_of_a_function_and_one_that_is_given_twice_are_refused() -> None:
    env = Walk()
    with pytest.raises(ConfigError, match=r"^env is <.*Walk.*>\. Give its id, or a function that makes one"):
        ControlRun(env, settings=SMALL)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gave the same one twice"):
        ControlRun(lambda: env, settings=SMALL)


def test_a_number_for_a_run_with_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learn\(100\) with out = .*: a run folder holds one plan"):
        ControlRun("CartPole-v1", settings=SMALL, out=tmp_path / "run").learn(100)


@pytest.mark.parametrize("env, why", [(Walk, "cannot be rendered"), (lambda: Painted(None), "renders NoneType, not pictures")])
def test_what_cannot_be_recorded_is_refused_before_anything_is_trained(env: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"^control.record: .* {why}.*--record"):
        ControlRun(env, settings={**SMALL, "control.record": True})


class Painted(Walk):
    def __init__(self, shade: int | None) -> None:
        self.shade = shade

    def render(self) -> Any:
        return None if self.shade is None else np.full((30, 40, 3), self.shade, np.uint8)


def test_what_mujoco_cannot_draw_with_is_named() -> None:
    pytest.importorskip("mujoco")
    command = [sys.executable, "-W", "ignore", "-c", "from surefoot import ControlRun; ControlRun('Hopper-v5')"]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "MUJOCO_GL": "no-such-library"}
    )
    last = ended.stderr.strip().splitlines()[-1]
    assert "ConfigError: control.env = 'Hopper-v5' cannot be made" in last
    assert "set MUJOCO_GL to egl or osmesa, it is no-such-library (Debian: apt install libegl1" in last


def test_a_recording_heeds_a_stop() -> None:
    run = ControlRun(lambda: Painted(7), settings=SMALL)
    seen: list[int] = []

    def stop() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise Interrupted("now")

    with pytest.raises(Interrupted):
        record(run.parts.actor_critic, run.parts.collector.normalizer, Painted(7), seed=0, heed=stop)


def test_an_episode_is_recorded_in_real_time(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("pygame")
    words = [f"--{name}={json.dumps(value)}" for name, value in SMALL.items()]
    assert surefoot.cli.run(["control", "CartPole-v1", *words, "--record", "--out", str(tmp_path / "run")]) == 0
    with image.open(tmp_path / "run" / "episode.gif") as gif:
        assert gif.format == "GIF" and gif.n_frames > 3
        assert gif.info["duration"] == 40  # CartPole has 50 pictures a second: every second one is kept
