"""The loop of SFT and reward models: steps that are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from surefoot.config import Config, SFTConfig
from surefoot.errors import TrainingError
from surefoot.runs import RunFolder, read_jsonl
from surefoot.stages import supervised
from surefoot.stages.supervised import fit


class Line:
    """Items of loss w^2, but for those in `bad`, whose loss is not a number."""

    def __init__(self, count: int, bad: Sequence[int]) -> None:
        self.count, self.bad, self.w = count, set(bad), nn.Parameter(torch.ones(1))

    def __len__(self) -> int:
        return self.count

    def length(self, item: int) -> int:
        return 1

    def weight(self, items: Sequence[int]) -> float:
        return float(len(items))

    def loss(self, items: Sequence[int]) -> tuple[Tensor, Mapping[str, float]]:
        factors = torch.tensor([math.nan if item in self.bad else 1.0 for item in items])
        return (self.w**2 * factors).sum(), {}


def learned(task: Line, folder: RunFolder | None = None) -> list[float]:
    """Refusals in a row after each step of one epoch, an item a step."""
    cfg = SFTConfig(batch_size=1, micro_batch_size=1, learning_rate=0.1)
    return [step.metrics["skipped_steps"] for step in fit(task, [("w", task.w)], cfg, seed=0, folder=folder)]


def test_a_step_that_is_not_finite_is_refused_and_said_and_the_others_are_taken(tmp_path: Path) -> None:
    task = Line(4, bad=[2])
    with RunFolder.open(tmp_path / "run", verb="sft", cfg=Config()) as folder:
        folder.restore()
        assert sorted(learned(task, folder)) == [0, 0, 0, 1]
    assert 0 < task.w.item() < 1
    (said,) = [row["message"] for row in read_jsonl(tmp_path / "run/events.jsonl")]
    assert said.endswith("was not taken: loss nan, gradient norm nan")


def test_five_refusals_in_a_row_are_an_alarm_and_move_nothing() -> None:
    task = Line(9, bad=range(9))
    with pytest.raises(TrainingError, match="not finite in 5 steps in a row, at step 5"):
        learned(task)
    assert task.w.item() == 1


def test_a_short_run_of_which_every_step_is_refused_is_an_alarm_too() -> None:
    task = Line(2, bad=[0, 1])
    with pytest.raises(TrainingError, match="not finite in 2 steps in a row, at step 2"):
        learned(task)


def test_steps_are_taken_by_the_fused_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.Optimizer] = []
    plain = supervised.adamw
    monkeypatch.setattr(supervised, "adamw", lambda *given, **settings: made.append(plain(*given, **settings)) or made[-1])
    task = Line(2, bad=[])
    learned(task)
    assert [group["fused"] for optimizer in made for group in optimizer.param_groups] == [True]
    assert task.w.item() < 1
