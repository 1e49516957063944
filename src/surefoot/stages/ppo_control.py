"""PPO in Gymnasium (8.3.3, 8.3.4): collect, estimate advantages, update, move beta; one rollout a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from surefoot.config import Config
from surefoot.config_file import dump_config
from surefoot.control import EnvFactory, record
from surefoot.control.saved import save_agent
from surefoot.optim import trainable_names
from surefoot.progress import Progress
from surefoot.runs import RunFolder, flatten_optimizer, read_jsonl, write_atomic
from surefoot.stages.cards import write_control_card
from surefoot.stages.control_course import ControlProgress, ControlStep, Course, Parts, advance


def steps(
    parts: Parts, cfg: Config, folder: RunFolder | None = None, *, begin: ControlProgress | None = None
) -> Iterator[ControlStep]:
    """Yields after every update, until control.total_timesteps. `begin` goes on from an earlier plan's last step."""
    course = Course(parts, cfg, folder, begin=begin)
    while not course.is_over:
        yield advance([course])[0]


def save(folder: Path, parts: Parts, cfg: Config, figures: Mapping[str, float]) -> None:
    """The agent, what training goes on with (optimiser, settings), and a card. `ControlRun.load` reads it."""
    save_agent(folder, parts.agent, flatten_optimizer(parts.optimizer, trainable_names(parts.actor_critic)))
    (folder / "config.yaml").write_text(dump_config(cfg, verb="control"), encoding="utf-8")
    write_control_card(folder, cfg, figures)


def inputs(parts: Parts) -> dict[str, str]:
    """What the run was made from, for its manifest."""
    spaces = parts.collector.envs
    return {"observations": str(spaces.single_observation_space), "actions": str(spaces.single_action_space)}


def run(cfg: Config, folder: RunFolder, progress: Progress, *, env: EnvFactory | None = None) -> None:
    from surefoot.build_control import build_control

    parts = build_control(cfg, progress.say, env=env)
    folder.declare(inputs(parts))
    progress.start("control", cfg.control.num_updates, "updates")
    for step in steps(parts, cfg, folder):
        progress.update(step.update, {**step.metrics, "time/fps": cfg.control.num_rows / max(sum(step.seconds.values()), 1e-9)})
    finish(parts, cfg, folder, progress)


def finish(parts: Parts, cfg: Config, folder: RunFolder, progress: Progress) -> None:
    """What stands at the end of a run: the agent, a picture of it, and its last figures."""
    last = read_jsonl(folder.path / "metrics.jsonl")[-1]  # not of the loop: a run resumed after its last update has no step left
    figures = {key: value for key, value in last.items() if key.startswith(("eval/", "rollout/", "time/"))}
    with folder.final() as final:
        save(final, parts, cfg, figures)
    if parts.picture is not None:
        normalizer = parts.collector.normalizer
        gif = record(parts.actor_critic, normalizer, parts.picture, seed=cfg.seed, heed=folder.check_stop)
        write_atomic(folder.path / "episode.gif", gif)
        progress.say(f"control: an episode, {folder.path / 'episode.gif'}")
    if "eval/mean_reward" in last:
        mean, deviation, count = (last[f"eval/{name}"] for name in ("mean_reward", "std_reward", "episodes"))
        progress.say(f"control: {mean:.1f} +- {deviation:.1f} over {count:.0f} episodes by the likeliest actions")
    folder.finish(**figures)
