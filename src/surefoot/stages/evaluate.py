"""Is it better, and at what price? Policy against reference on held-out prompts, by judges that never entered a reward."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from surefoot.config import Config
from surefoot.core import best_of_n_kl
from surefoot.diagnostics.calibration import win_rate
from surefoot.diagnostics.text import distinct_n, duplicate_share
from surefoot.errors import RewardError
from surefoot.lm.backbone import Backbone
from surefoot.lm.batches import PromptSet
from surefoot.progress import Progress
from surefoot.runs import RunFolder
from surefoot.stages.answers import sequence_kl
from surefoot.stages.inputs import digest
from surefoot.stages.judging import Judge, verdicts
from surefoot.types import Completions, Prompts, RewardSource, RolloutEngine, Scores


@dataclass(frozen=True, slots=True)
class EvaluateParts:
    """Two models, their engines, prompts nobody trained on, and who judges. `reward` is the proxy, shown beside the judges."""

    policy: Backbone
    reference: Backbone
    engines: tuple[RolloutEngine, RolloutEngine]  # of the policy, of the reference
    prompts: PromptSet
    judges: Mapping[str, Judge]
    reward: RewardSource | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """One model's answers to some prompts, with what every judge says of them."""

    prompts: Prompts
    completions: Completions
    judged: Mapping[str, list[float]]
    reward: list[float]


@dataclass(frozen=True, slots=True)
class EvaluateStep:
    """One batch of prompts, answered by both."""

    done: int
    total: int
    before: Answers
    after: Answers
    sequence_kl: list[float]  # of the policy's answers: log pi_theta - log pi_SFT, nats a sequence
    best: Answers | None = None


def steps(parts: EvaluateParts, cfg: Config, folder: RunFolder | None = None) -> Iterator[EvaluateStep]:
    """Yields a batch of prompts at a time. Both models sample with the same uniform numbers. With a folder it heeds signals."""
    total = min(cfg.evaluate.num_prompts, len(parts.prompts))
    size = cfg.rollout.batch_size
    for start in range(0, total, size):
        prompts = parts.prompts.take(range(start, min(start + size, total)), parts.policy.codec.pad_id)
        sides = []
        for engine in parts.engines:
            if folder is not None:
                folder.check_stop()
            chance = torch.Generator().manual_seed(cfg.seed * 7919 + start)
            sides.append(_answers(parts, prompts, engine.generate(prompts, chance)))
        after, before = sides
        if folder is not None:
            folder.check_stop()
        kl = sequence_kl(parts.policy, parts.reference, prompts, after.completions, cfg.rollout.temperature)
        yield EvaluateStep(start + len(prompts), total, before, after, kl, _best_of_n(parts, prompts, cfg, start))


def _answers(parts: EvaluateParts, prompts: Prompts, completions: Completions) -> Answers:
    judged = {name: verdicts(judge, name, prompts.text, completions.text) for name, judge in parts.judges.items()}
    if parts.reward is None:
        return Answers(prompts, completions, judged, [])
    scores = parts.reward.score(prompts, completions)
    if not bool(scores.valid.all()):
        raise RewardError(
            f"{int((~scores.valid).sum())} of {len(prompts)} answers have no score, so no mean over all prompts can be given. "
            "Let the reward score every answer, or evaluate with judges alone."
        )
    return Answers(prompts, completions, judged, scores.value.tolist())


def _best_of_n(parts: EvaluateParts, prompts: Prompts, cfg: Config, start: int) -> Answers | None:
    """The reference's answer that the reward likes best of n: the baseline without training (KL log n - (n-1)/n at most)."""
    n = cfg.evaluate.best_of
    if n < 1 or parts.reward is None:
        return None
    many = prompts.rows([i for i in range(len(prompts)) for _ in range(n)])
    completions = parts.engines[1].generate(many, torch.Generator().manual_seed(cfg.seed * 7919 + start + 1))
    scores: Scores = parts.reward.score(many, completions)
    ranked = scores.value.masked_fill(~scores.valid, -torch.inf)
    best = ranked.reshape(len(prompts), n).argmax(1) + torch.arange(len(prompts)) * n
    chosen = Completions(
        completions.ids[best],
        completions.mask[best],
        completions.logp_sampler[best],
        completions.finished[best],
        tuple(completions.text[i] for i in best.tolist()),
        completions.version,
    )
    return _answers(parts, prompts, chosen)


def result_rows(step: EvaluateStep) -> Iterator[dict[str, object]]:
    """A row for each prompt: both answers, and every number about them."""
    for i, prompt in enumerate(step.after.prompts.text):
        row: dict[str, object] = {"prompt": prompt}
        for name, answers in (("before", step.before), ("after", step.after), ("best", step.best)):
            if answers is None:
                continue
            row[name] = answers.completions.text[i]
            row[f"length_{name}"] = int(answers.completions.mask[i].sum())
            row[f"finished_{name}"] = bool(answers.completions.finished[i])
            row |= {f"{judge}_{name}": numbers[i] for judge, numbers in answers.judged.items()}
            if answers.reward:
                row[f"reward_{name}"] = answers.reward[i]
        yield row | {"kl": step.sequence_kl[i]}


def summary(rows: list[dict[str, object]], judges: tuple[str, ...], best_of: int) -> dict[str, object]:
    """Means before and after, and the win rate of the last judge named with its interval; ties count half."""

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows]  # type: ignore[arg-type]

    def mean(name: str) -> float:
        return sum(column(name)) / len(rows)

    out: dict[str, object] = {"num_prompts": len(rows), "kl_policy_sft": mean("kl")}
    for side in ("before", "after"):
        texts = [str(row[side]) for row in rows]
        out |= {
            f"distinct2_{side}": distinct_n(texts, 2),
            f"duplicates_{side}": duplicate_share(texts),  # of answers alone: no two prompts are equal
            f"length_{side}": mean(f"length_{side}"),
            f"eos_rate_{side}": mean(f"finished_{side}"),
        }
        out |= {f"{name}_{side}": mean(f"{name}_{side}") for name in (*judges, "reward") if f"{name}_{side}" in rows[0]}
    out["win_rates"] = {}
    for judge in judges:
        rate = win_rate(column(f"{judge}_after"), column(f"{judge}_before"))
        out["win_rates"][judge] = {"win_rate": rate.value, "interval": rate.as_list()}  # type: ignore[index]
    if "best" in rows[0]:
        best: dict[str, object] = {"n": best_of, "kl": best_of_n_kl(best_of), "reward": mean("reward_best")}
        for judge in judges:
            rate = win_rate(column(f"{judge}_best"), column(f"{judge}_before"))
            best[judge] = mean(f"{judge}_best")
            best[f"{judge}_win_rate"] = rate.value
        out["best_of_n"] = best
    return out


def run(cfg: Config, folder: RunFolder, progress: Progress, **given: Any) -> None:
    from surefoot.build import build_evaluate

    parts = build_evaluate(cfg, progress.say, **given)
    models = {"model": parts.policy.fingerprint, "against": parts.reference.fingerprint}
    folder.declare({**models, "prompts": digest(parts.prompts.ids)})
    folder.restore()  # an interrupted evaluation begins again: it is short, and nothing of it is half written
    progress.start("evaluate", min(cfg.evaluate.num_prompts, len(parts.prompts)), "prompts")
    rows: list[dict[str, object]] = []
    for step in steps(parts, cfg, folder):
        new = list(result_rows(step))
        rows += new
        folder.samples(step.done, new)
        progress.update(step.done, {"kl": sum(step.sequence_kl) / len(step.sequence_kl)})
    figures = summary(rows, tuple(parts.judges), cfg.evaluate.best_of)
    folder.record(len(rows), {key: value for key, value in figures.items() if isinstance(value, (int, float))})
    folder.write("evaluation.json", json.dumps(figures, indent=2) + "\n")
    folder.finish(evaluation=figures)
    for line in _said(figures):
        progress.say(line)


def _said(figures: Mapping[str, Any]) -> Iterator[str]:
    """The result on the terminal: each judge's win rate, and what it cost."""
    for judge, rate in figures["win_rates"].items():
        low, high = rate["interval"]
        yield (
            f"{judge}: the model's answer wins on {rate['win_rate']:.1%} of {figures['num_prompts']} prompts "
            f"(95 % interval {low:.0%} to {high:.0%}; ties count half)"
        )
    yield (
        f"KL {figures['kl_policy_sft']:.2f} nats a sequence, "
        f"length {figures['length_before']:.1f} to {figures['length_after']:.1f}, "
        f"distinct-2 {figures['distinct2_before']:.3f} to {figures['distinct2_after']:.3f}"
    )
