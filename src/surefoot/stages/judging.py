"""Judges: functions of text that no reward model was trained on. They look at a run; they never enter a reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from surefoot.errors import RewardError, told

Judge = Callable[[Sequence[str]], Sequence[float]]  # whole texts, prompt and answer together -> one number each


def verdicts(judge: Judge, name: str, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """The judge's number for each prompt with its answer.

    Raises: RewardError when the judge raises, or gives another count, or something that is not a finite number.
    """
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    try:
        numbers = [float(x) for x in judge(texts)]
    except (Exception, SystemExit) as error:  # a judge may be anybody's function
        raise RewardError(f"judge {name} raised {told(error)}. It must return one number a text.") from error
    if len(numbers) != len(answers):
        raise RewardError(f"judge {name} returned {len(numbers)} numbers for {len(answers)} answers; it must return one each.")
    for number, text in zip(numbers, texts, strict=True):
        if not math.isfinite(number):
            raise RewardError(f"judge {name} returned {number} for {text[:60]!r}; a judgement is a finite number.")
    return numbers


def judged(judges: Mapping[str, Judge], prompts: Sequence[str], answers: Sequence[str]) -> dict[str, list[float]]:
    """Each judge's numbers for a rollout's answers, by its name."""
    return {name: verdicts(judge, name, prompts, answers) for name, judge in judges.items()}
