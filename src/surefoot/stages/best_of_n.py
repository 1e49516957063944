"""The pool of best-of-n: many answers of the SFT model to each held-out prompt, judged once, and scored by each proxy reward.

Two stages, each in a run folder: `sample` writes the pool, `score` reads a pool and writes what one reward says of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from surefoot.config import Config
from surefoot.errors import RewardError
from surefoot.lm.tokens import pad_right
from surefoot.progress import Progress
from surefoot.runs import RunFolder, State, read_jsonl
from surefoot.stages.inputs import digest, source_digest
from surefoot.stages.judging import Judge, judged
from surefoot.types import Completions

POOL = "samples.jsonl"
SCORES = "scores.json"
SEEDS_APART = 1_000_003


def sample(cfg: Config, folder: RunFolder, progress: Progress, *, prompts: Any, judges: Mapping[str, Judge]) -> None:
    """overoptimize.best_of answers of model.name to each of overoptimize.num_prompts prompts, a batch of rows at a time.

    A batch's chance comes from (seed, first row), so a resumed pool is the same one.
    """
    from surefoot.build import backbone_of, engine_of
    from surefoot.build_data import prompts_of

    backbone = backbone_of(None, cfg.model)
    chosen = prompts_of(cfg, backbone, prompts, "data.eval_prompts", progress.say)
    engine = engine_of(cfg, backbone, None)
    folder.declare({"model": backbone.fingerprint, "prompts": digest(chosen.ids)})
    each, size = cfg.overoptimize.best_of, cfg.rollout.batch_size
    total = each * min(cfg.overoptimize.num_prompts, len(chosen))
    state = folder.restore()
    progress.start("best of n", total, "answers")
    for start in range(0 if state is None else int(state.values["done"]), total, size):
        index = range(start, min(start + size, total))
        asked = chosen.take([row // each for row in index], backbone.codec.pad_id)
        answers = engine.generate(asked, torch.Generator().manual_seed(cfg.seed * SEEDS_APART + start))
        said = judged(judges, asked.text, answers.text)
        folder.samples(
            index.stop,
            [
                {
                    "prompt": asked.text[i],
                    "completion": answers.text[i],
                    "ids": answers.ids[i][answers.mask[i]].tolist(),
                    "finished": bool(answers.finished[i]),
                    "judges": {name: round(numbers[i], 6) for name, numbers in said.items()},
                }
                for i in range(len(index))
            ],
        )
        folder.save(index.stop, State(tensors={}, values={"done": index.stop}))
        folder.check_stop()
        progress.update(index.stop, {})
    folder.finish()


def score(cfg: Config, folder: RunFolder, progress: Progress, *, prompts: Any, pool: Path) -> None:
    """What the reward source says of every answer of the pool in the folder `pool`. Interrupted, it begins again."""
    from surefoot.build import backbone_of
    from surefoot.build_data import prompts_of
    from surefoot.build_rewards import reward_source

    backbone = backbone_of(None, cfg.model)
    chosen = prompts_of(cfg, backbone, prompts, "data.eval_prompts", progress.say)
    source = reward_source(cfg, backbone)
    rows = read_jsonl(pool / POOL)
    inputs = {"model": backbone.fingerprint, "reward": source_digest(cfg.reward_source.every), "pool": digest(map(str, rows))}
    folder.declare(inputs)
    folder.restore()
    size, found = cfg.rollout.batch_size, []
    progress.start("scores", len(rows), "answers")
    for start in range(0, len(rows), size):
        folder.check_stop()
        part = range(start, min(start + size, len(rows)))
        asked = chosen.take([row // cfg.overoptimize.best_of for row in part], backbone.codec.pad_id)
        scores = source.score(asked, _completions([rows[i] for i in part], backbone.codec.pad_id))
        if not bool(scores.valid.all()):
            raise RewardError(
                f"{int((~scores.valid).sum())} of {len(part)} answers of the SFT model have no score, so none is the best of n. "
                "Let the reward score every answer."
            )
        found += [round(float(value), 6) for value in scores.value]
        progress.update(part.stop, {})
    folder.write(SCORES, json.dumps(found) + "\n")
    folder.finish()


def pool_judgements(pool: Path, each: int) -> dict[str, list[list[float]]]:
    """Each judge's numbers of a pool, [P][N]."""
    rows = read_jsonl(pool / POOL)
    return {name: _by_prompt([row["judges"][name] for row in rows], each) for name in rows[0]["judges"]}


def pool_scores(folder: Path, each: int) -> list[list[float]]:
    """A proxy's scores of a pool, [P][N]."""
    return _by_prompt(json.loads((folder / SCORES).read_text(encoding="utf-8")), each)


def _by_prompt(values: list[float], each: int) -> list[list[float]]:
    return [values[start : start + each] for start in range(0, len(values), each)]


def _completions(rows: list[dict[str, Any]], pad_id: int) -> Completions:
    """Answers of the pool as they were sampled; their log-probs are not kept and 0."""
    ids, mask = pad_right([row["ids"] for row in rows], pad_id)
    finished = torch.tensor([row["finished"] for row in rows])
    return Completions(ids, mask, torch.zeros(ids.shape), finished, tuple(row["completion"] for row in rows), 0)
