"""The stage: runs, evaluates, resumes in the middle of episodes, refuses what has no effect."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from surefoot.build_control import build_control
from surefoot.config import UNREAD_IN_CONTROL, Config, PPOConfig
from surefoot.config_file import load_config
from surefoot.control import Collector, Normalizer, evaluate, make_actor_critic, make_env
from surefoot.diagnostics.charts import charts
from surefoot.diagnostics.metrics import is_known
from surefoot.diagnostics.run_view import read_report_view
from surefoot.diagnostics.summaries import durations
from surefoot.errors import ConfigError, RunError, TrainingError
from surefoot.progress import SilentProgress
from surefoot.runs import RunFolder, load_manifest, read_jsonl
from surefoot.stages import control_course, control_seeds, ppo_control
from walks import Broken, Forgetful, Walk

SMALL = {"total_timesteps": 320, "num_envs": 4, "num_steps": 20, "batch_size": 20, "hidden_sizes": (8,), "eval_episodes": 3}
NORMALISED = {"normalize_observations": True, "normalize_rewards": True}


def settings(seed: int = 0, ppo: dict[str, Any] | None = None, **control: Any) -> Config:
    chosen = {"num_ppo_epochs": 2, "save_every": 1, **(ppo or {})}
    return Config.model_validate({"seed": seed, "control": {**SMALL, **control}, "ppo": chosen})


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def envs_of(world: Any, count: int = 2) -> SyncVectorEnv:
    return SyncVectorEnv([world] * count, autoreset_mode=AutoresetMode.DISABLED)


def trained(folder: Path, cfg: Config, env: Any = Walk) -> list[dict[str, Any]]:
    with RunFolder.open(folder, verb="control", cfg=cfg) as run:
        ppo_control.run(cfg, run, SilentProgress(), env=env)
    return read_jsonl(folder / "metrics.jsonl")


def test_a_run_is_evaluated_every_n_updates_and_at_its_end(tmp_path: Path) -> None:
    rows = trained(tmp_path / "run", settings(eval_every=3))
    assert [row["step"] for row in rows if "eval/mean_reward" in row] == [3, 4]
    assert rows[-1]["eval/episodes"] == 3 and rows[-1]["time/total_timesteps"] == 320
    last = trained(tmp_path / "at-the-end", settings(eval_every=0))
    assert [row["step"] for row in last if "eval/mean_reward" in row] == [4]
    assert last[-1]["eval/mean_reward"] == rows[-1]["eval/mean_reward"]  # looking changes nothing


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "Hopper-v5", "HalfCheetah-v5"])
def test_environments_of_gymnasium_play_their_episodes_again_to_the_last_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log into the working directory
    if name.startswith("H"):
        pytest.importorskip("mujoco")
    collectors = [Collector(envs_of(lambda: make_env(name)), seed=5) for _ in range(2)]
    actor_critic = make_actor_critic(collectors[0].envs, (8,), generator())
    draws = generator()
    collectors[0].collect(actor_critic, 130, draws)  # in several of them beyond an end
    state, drawn, again = collectors[0].state(), draws.get_state(), generator()
    again.set_state(drawn)
    assert collectors[1].restore(state) == []
    expected, found = (one.collect(actor_critic, 60, each) for one, each in zip(collectors, (draws, again), strict=True))
    assert torch.equal(found.observations, expected.observations) and torch.equal(found.rewards, expected.rewards)


@pytest.mark.parametrize("world", [Walk, Forgetful])
def test_a_collector_that_is_restored_goes_on_where_it_was_or_says_where_it_could_not(world: Any) -> None:
    actor_critic = make_actor_critic(envs_of(world), (8,), generator())
    one, draws = Collector(envs_of(world), seed=5, normalizer=Normalizer(2, 2, **{**ALL})), generator()
    one.collect(actor_critic, 33, draws)
    state, drawn = {name: tensor.clone() for name, tensor in one.state().items()}, draws.get_state()
    assert state["lengths"].any()  # in the middle of an episode
    expected = one.collect(actor_critic, 10, draws)
    other, again = Collector(envs_of(world), seed=5, normalizer=Normalizer(2, 2, **{**ALL})), torch.Generator()
    again.set_state(drawn)
    strayed = other.restore(state)
    found = other.collect(actor_critic, 10, again)
    if world is Walk:
        assert strayed == []
        for name in ("observations", "actions", "rewards", "next_values", "ended"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        assert found.episode_returns == expected.episode_returns
    else:
        assert strayed == [i for i in range(2) if state["lengths"][i]]
        assert found.observations.isfinite().all()


ALL = {"observations": True, "rewards": True}


@pytest.mark.parametrize("world, objective", [(Walk, "clip"), (Walk, "penalty")])
def test_a_run_that_is_left_and_taken_up_again_records_the_same(world: Any, objective: str, tmp_path: Path) -> None:
    ppo = {"objective": objective, **({"beta_controller": "doubling"} if objective == "penalty" else {})}
    cfg = settings(ppo=ppo, **NORMALISED)
    whole = trained(tmp_path / "whole", cfg)
    with RunFolder.open(tmp_path / "cut", verb="control", cfg=cfg) as run:
        parts = build_control(cfg, lambda line: None, env=world)
        assert len(list(islice(ppo_control.steps(parts, cfg, run), 2))) == 2
    assert trained(tmp_path / "cut", cfg) == whole
    assert len({row["train/loss"] for row in whole}) == 4


def test_an_environment_that_does_not_repeat_itself_is_named_in_events(tmp_path: Path) -> None:
    cfg = settings()
    with RunFolder.open(tmp_path, verb="control", cfg=cfg) as run:
        next(ppo_control.steps(build_control(cfg, lambda line: None, env=Forgetful), cfg, run))
    trained(tmp_path, cfg, Forgetful)
    notes = [row["message"] for row in read_jsonl(tmp_path / "events.jsonl")]
    assert any("do not repeat an episode" in note for note in notes)


def test_evaluation_uses_the_statistics_as_they_are_and_repeats_itself() -> None:
    parts = build_control(settings(**NORMALISED), lambda line: None, env=Walk)
    parts.collector.collect(parts.actor_critic, 20, parts.generator)
    normalizer = parts.collector.normalizer
    before = {name: tensor.clone() for name, tensor in normalizer.tensors().items()}
    seen = [evaluate(parts.actor_critic, normalizer, envs_of(Walk, count), num_episodes=5, seed=1) for count in (1, 2, 5)]
    assert all(torch.equal(before[name], tensor) for name, tensor in normalizer.tensors().items())
    for other in seen[1:]:  # the same episodes, however many are played side by side
        assert other.lengths == seen[0].lengths
        np.testing.assert_allclose(other.returns, seen[0].returns, rtol=1e-6)
    assert evaluate(parts.actor_critic, normalizer, envs_of(Walk), num_episodes=5, seed=2).returns != seen[0].returns


@pytest.mark.parametrize("broken", [{"observation": np.nan}, {"reward": np.inf}, {"observation": -np.inf, "at": 50}])
def test_a_number_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(broken: Any, tmp_path: Path) -> None:
    at = {"at": 50, **broken}
    cfg = settings()
    with pytest.raises(
        TrainingError, match=rf"gave (an observation|a reward) that is not finite.*step {at['at']} of its episode 0"
    ):
        trained(tmp_path, cfg, lambda: Broken(**at))
    assert load_manifest(tmp_path)["status"] == "stopped"
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2]
    with RunFolder.open(tmp_path, verb="control", cfg=cfg) as run:
        state = run.restore()
    assert state is not None and state.values["update"] == 2
    assert all(tensor.isfinite().all() for tensor in state.tensors["weights"].values())


@pytest.mark.parametrize("name", sorted(UNREAD_IN_CONTROL))
def test_a_setting_that_does_nothing_in_control_is_refused_with_the_reason(name: str) -> None:
    default = PPOConfig.model_fields[name].default
    other = {"kl_estimator": "k3", "critic": "shared", "reward_scale": "running", "loss_aggregation": "sequence_mean"}
    other |= {
        "kl_controller": "doubling",
        "old_logprobs": "sampled",
        "kl_in": "loss",
        "kl_direction": "sft_policy",
        "rollout_batch_size": 128,
        "alarms": "off",
    }
    value = other[name] if name in other else not default if isinstance(default, bool) else (default or 0) + 2
    with pytest.raises(ConfigError, match=rf"^command line: ppo.{name} = .* has no effect in surefoot control: .*\.$"):
        load_config(None, [f"--ppo.{name}={str(value).lower()}"], verb="control", preset="default")
    with pytest.raises(ConfigError, match=rf"^ppo.{name} = .* has no effect in control: "):
        control_course.update_settings(Config().model_copy(update={"ppo": PPOConfig().model_copy(update={name: value})}))


def test_every_setting_of_ppo_is_read_in_control_or_refused() -> None:
    """What is in neither list would be a setting that nobody has thought of."""
    read = "objective cliprange cliprange_high beta beta_controller beta_estimator beta_target beta_rate beta_horizon target_kl"
    read += (
        " critic_learning_rate critic_warmup_steps vf_coef cliprange_value gamma lam ent_coef whiten_advantages num_ppo_epochs"
    )
    read += " max_skipped_steps save_every learning_rate lr_scheduler lr_min_share warmup_steps weight_decay max_grad_norm"
    assert set(PPOConfig.model_fields) == set(read.split()) | set(UNREAD_IN_CONTROL)


def test_every_number_is_documented_and_the_report_shows_betas_path_beside_the_kl_that_moves_it(tmp_path: Path) -> None:
    rows = trained(tmp_path / "run", settings(ppo={"objective": "penalty", "beta_controller": "doubling"}))
    view = read_report_view(tmp_path / "run")
    run = view.stage("control")
    assert run is not None and [key for key in run.recorded if not is_known(key)] == []
    shown = {chart.title: chart for chart in charts(run)}
    assert {"Episode return", "Clip fraction", "Entropy loss", "Explained variance", "Deviation of actions"} <= shown.keys()
    assert list(shown["Penalty coefficient"].figure["data"][0]["y"]) == [row["kl/beta"] for row in rows]
    kl = shown["KL of an update"].figure["data"]
    assert list(kl[0]["y"]) == [row["train/kl_after"] for row in rows]
    assert [trace["y"][0] for trace in kl if trace.get("meta") == {"role": "reference"}] == [0.01]
    assert all("fps" not in duration.name for duration in durations(view))


def test_several_seeds_have_a_folder_each_and_come_to_a_mean_with_its_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = settings(seed=3, env="CartPole-v1", total_timesteps=80)
    said: list[str] = []

    class Heard(SilentProgress):
        def say(self, line: str) -> None:
            said.append(line)

    control_seeds.run(cfg, 3, tmp_path, "auto", Heard())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-3", "seed-4", "seed-5", "seeds.json"]
    means = [read_jsonl(tmp_path / f"seed-{n}" / "metrics.jsonl")[-1]["eval/mean_reward"] for n in (3, 4, 5)]
    assert len(set(means)) > 1
    assert any(line.startswith(f"eval/mean_reward over 3 seeds: {np.mean(means):.1f}") for line in said)
    control_seeds.run(cfg, 3, tmp_path, "auto", Heard())  # nothing is left to do
    assert said[-3].endswith("is done.") or said[-4].endswith("is done.")


def test_a_report_of_several_seeds_names_the_folders_that_have_one(tmp_path: Path) -> None:
    control_seeds.run(settings(seed=3, env="CartPole-v1", total_timesteps=40), 2, tmp_path, "auto", SilentProgress())
    with pytest.raises(RunError, match=r"the runs of 2 seeds, and a report is of one: `surefoot report .*seed-3`"):
        read_report_view(tmp_path)
    assert read_report_view(tmp_path / "seed-4").stage("control") is not None


def test_the_interval_of_a_mean_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    for values in ([1.0, 2.0], [3.0, 5.0, 4.0, 8.0, 1.0], list(np.arange(31.0))):
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert control_seeds.interval(values) == pytest.approx((low, high), rel=2e-3)
