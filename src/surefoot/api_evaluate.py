"""The Python face of `surefoot evaluate`: two models' answers to held-out prompts, and who finds which better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from surefoot.api_steps import Settings, configuration
from surefoot.build import build_evaluate
from surefoot.build_data import Rows
from surefoot.errors import RewardError
from surefoot.stages.evaluate import EvaluateStep, result_rows, steps, summary
from surefoot.stages.judging import Judge


class EvaluateRun:
    """`model` and `against` answer the same prompts with the same uniform numbers. `judges` are names (vader, minilm,
    module:function, a reward model's folder) or callables by name, each a list of whole texts -> one number a text. `reward`, as
    PPORun takes it, is shown beside them.

    >>> found = EvaluateRun(run.model, against=sft.model, prompts=held_out, judges=["vader"])  # doctest: +SKIP
    >>> found.figures["win_rates"]["vader"]  # doctest: +SKIP
    {'win_rate': 0.91, 'interval': [0.87, 0.94]}
    """

    def __init__(
        self,
        model: Any,
        *,
        against: Any,
        prompts: Rows,
        judges: Mapping[str, Judge] | Sequence[str] = (),
        reward: Any = None,
        settings: Settings | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        by_name = {"model.name": model, "evaluate.against": against, "reward_source.source": reward}
        named: dict[str, Any] = {name: str(value) for name, value in by_name.items() if isinstance(value, (str, Path))}
        called = judges if isinstance(judges, Mapping) else None
        if called is None:
            named["evaluate.judges"] = list(judges)
        self.config = configuration("evaluate", {**named, **(settings or {})})
        loaded = {
            "model": None if "model.name" in named else model,
            "against": None if "evaluate.against" in named else against,
            "reward": None if "reward_source.source" in named else reward,
        }
        self.parts = build_evaluate(self.config, say, prompts=prompts, judges=called, **loaded)
        self.rows: list[dict[str, object]] = []  # a prompt each: both answers, and every number about them
        self._steps = self._answered()

    def _answered(self) -> Iterator[EvaluateStep]:
        for step in steps(self.parts, self.config):
            self.rows += result_rows(step)
            yield step

    def __iter__(self) -> Iterator[EvaluateStep]:
        return self._steps

    @property
    def figures(self) -> dict[str, Any]:
        """What `surefoot evaluate` writes as evaluation.json: means before and after, win rates with 95 % intervals, KL in nats a
        sequence. Answers what is left to answer first.

        Raises: RewardError where a judge or the reward had failed before, or an answer was broken off.
        """
        for _ in self._steps:
            pass
        total = min(self.config.evaluate.num_prompts, len(self.parts.prompts))
        if len(self.rows) < total:
            raise RewardError(f"only {len(self.rows)} of {total} prompts were answered before it ended. Make a new EvaluateRun.")
        return summary(self.rows, tuple(self.parts.judges), self.config.evaluate.best_of)
