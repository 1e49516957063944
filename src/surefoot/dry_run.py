"""What a run would do, in words: resolved settings, sizes, memory. Nothing is written, no model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from surefoot.config_file import dump_config

if TYPE_CHECKING:
    from surefoot.config import Config, RewardConfig, SFTConfig


def describe(cfg: Config, verb: str, out: Path, seeds: int = 1) -> str:
    """The text of `--dry-run`. What follows the settings is commented, so that the whole is a configuration file itself.

    `seeds` are trained side by side: sizes are those of one, memory is that of all.
    """
    is_one = seeds == 1
    lines = [f"# surefoot {verb} --out {out}{'' if is_one else f' --seeds {seeds}'} (a dry run: nothing is written)"]
    lines += [dump_config(cfg, verb=verb, comments=True)]
    lines += ["# sizes" if is_one else "# sizes of one seed", *(f"#   {line}" for line in sizes(cfg, verb)), ""]
    lines += ["# memory" if is_one else f"# memory of {seeds} seeds"]
    plan = [(name, seeds * size) for name, size in _memory(cfg, verb)]
    width = max(len(name) for name, _ in [*plan, ("together", 0)])
    plan = [*plan, ("together", sum(size for _, size in plan))]
    lines += [f"#   {name:<{width}}  {gibibytes(size):>10}" for name, size in plan]
    return "\n".join(lines)


def memory_line(cfg: Config, verb: str) -> str:
    """The memory plan on one line, as a run says it before it starts."""
    plan = _memory(cfg, verb)
    parts = ", ".join(f"{name} {gibibytes(size)}" for name, size in plan)
    return f"memory: about {gibibytes(sum(size for _, size in plan))} ({parts})"


def _memory(cfg: Config, verb: str) -> list[tuple[str, int]]:
    if verb == "control":
        from surefoot.build_control import control_memory

        return control_memory(cfg)
    from surefoot.build import memory_plan

    return memory_plan(cfg, verb)


def gibibytes(size: int) -> str:
    """A number of bytes as GiB, or as MiB where that reads better."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def sizes(cfg: Config, verb: str) -> list[str]:
    """Updates, minibatches and steps, as far as they follow from the settings alone."""
    match verb:
        case "ppo":
            return _ppo_sizes(cfg)
        case "demo":
            return [*_ppo_sizes(cfg), *_epochs("SFT", "sequences", cfg.sft), *_epochs("reward model", "pairs", cfg.reward)]
        case "rounds":
            count = cfg.rounds.prompts_per_round
            each = cfg.pairs.max_pairs or f"about {count}"
            return [
                f"{cfg.rounds.num_rounds} rounds, each with {each} pairs to judge, from answers to {count} prompts",
                *_ppo_sizes(cfg),
            ]
        case "overoptimize":
            lab, looks = cfg.overoptimize, -(-cfg.ppo.num_updates // cfg.overoptimize.eval_every)
            if lab.join:
                return [f"{len(lab.join)} runs are put together; nothing is trained"]
            return [
                f"{len(lab.variants)} variants x {lab.num_seeds} seeds of PPO, each with about {looks} looks at "
                f"{lab.num_prompts} held-out prompts",
                f"best-of-n: {lab.num_prompts * lab.best_of} answers of the SFT model a seed",
                *_ppo_sizes(cfg),
            ]
        case "compare":
            return [
                f"{cfg.evaluate.num_prompts} prompts, one answer of each model, at most {cfg.rollout.response_length} tokens each"
            ]
        case "control":
            return _control_sizes(cfg)
        case "sft":
            return _epochs("SFT", "sequences", cfg.sft)
        case "reward":
            return _epochs("reward model", "pairs", cfg.reward)
        case "pairs":
            prompts = "all prompts" if cfg.pairs.max_prompts is None else f"at most {cfg.pairs.max_prompts} prompts"
            return [f"{cfg.pairs.num_answers} answers to {prompts}, at most {cfg.rollout.response_length} tokens each"]
        case "evaluate":
            best = f", and best of {cfg.evaluate.best_of}" if cfg.evaluate.best_of else ""
            answers = f"{cfg.evaluate.num_prompts} prompts, one answer of each model{best}"
            return [f"{answers}, at most {cfg.rollout.response_length} tokens each"]
        case _:
            return []


def _ppo_sizes(cfg: Config) -> list[str]:
    ppo = cfg.ppo
    steps = ppo.num_ppo_epochs * ppo.num_mini_batches
    rows, most = ppo.rollout_batch_size // ppo.num_mini_batches, ppo.micro_batch_tokens
    forwards = f"forwards of at most {most} tokens" if most else f"{-(-rows // ppo.micro_batch_size)} forwards"
    return [
        f"PPO: {ppo.num_updates} updates of {ppo.rollout_batch_size} answers "
        f"({ppo.rollout_batch_size // ppo.num_samples_per_prompt} prompts x {ppo.num_samples_per_prompt}), "
        f"{ppo.num_updates * ppo.rollout_batch_size} answers in all",
        f"PPO: an update has {ppo.num_ppo_epochs} epochs x {ppo.num_mini_batches} minibatches of {rows} rows, "
        f"{forwards} each; {ppo.num_updates * steps} optimiser steps in all",
        f"answers: at most {cfg.rollout.response_length} tokens, decoded {cfg.rollout.batch_size} at once",
    ]


def _control_sizes(cfg: Config) -> list[str]:
    control, epochs = cfg.control, cfg.ppo.num_ppo_epochs
    parts, updates = control.num_rows // control.batch_size, control.num_updates
    often = f"every {control.eval_every} updates and at the end" if control.eval_every else "at the end"
    return [
        f"PPO: {updates} updates of {control.num_rows} steps ({control.num_envs} environments x {control.num_steps}), "
        f"{updates * control.num_rows} steps in all",
        f"PPO: an update has {epochs} epochs x {parts} minibatches of {control.batch_size} steps; "
        f"{updates * epochs * parts} optimiser steps in all",
        f"evaluation: {control.eval_episodes} episodes {often}",
    ]


def _epochs(name: str, unit: str, section: SFTConfig | RewardConfig) -> list[str]:
    forwards = -(-section.batch_size // section.micro_batch_size)
    end = f", at most {section.max_steps} steps" if section.max_steps is not None else "; steps follow from the data"
    return [f"{name}: {section.num_epochs} epochs, {section.batch_size} {unit} a step in {forwards} forwards{end}"]
