"""Any Python function as reward: what it may return, and what becomes of one that misbehaves."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surefoot.errors import ConfigError, RewardError
from surefoot.rewards.function import FunctionReward, load_function
from surefoot.stages.judging import verdicts
from surefoot.types import Scores
from tiny_language import make_completions, make_prompts

PROMPTS, ANSWERS = make_prompts([[3], [4, 5]], pad_id=0), make_completions([[6], [7, 8]], pad_id=0)


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def scored(function: Callable[..., Any]) -> Scores:
    return FunctionReward(function, "score").score(PROMPTS, ANSWERS)


def returns(value: Any) -> Callable[..., Any]:
    return lambda prompts, completions: value


def raises(error: BaseException) -> Callable[..., Any]:
    def function(*arguments: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    "returned",
    [[1.0, -2.0], (1, -2), np.array([1.0, -2.0]), torch.tensor([1.0, -2.0]), [np.float64(1), torch.tensor(-2)]],
    ids=["list", "tuple of ints", "array", "tensor", "scalars"],
)
def test_numbers_in_any_usual_container_are_taken(returned: Any) -> None:
    assert scored(returns(returned)).value.tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    "returned, said",
    [
        ("ab", "returned str 'ab'; it must return a list of 2 numbers."),
        (None, "returned NoneType 'None'; it must return a list of 2 numbers."),
        ([1.0], "returned 1 numbers for 2 answers; it must return one each."),
        ([0.0, "1"], "returned str '1' for answer 1; a score is a number (or None)."),
        ([0.0, math.nan], "returned nan for answer 1 ('answer 1'); a score is finite, or None."),
        ([0.0, 10**400], "returned inf for answer 1 ('answer 1'); a score is finite, or None."),
        ([0.0, 1j], "returned complex '1j' for answer 1; a score is a number (or None)."),
        ([0.0, np.complex128(1j)], "returned complex128 '1j' for answer 1; a score is a number (or None)."),
        ([0.0, np.datetime64("2020-01-01")], "returned datetime64 '2020-01-01' for answer 1; a score is a number (or None)."),
        (
            [0.0, torch.zeros((), device="meta")],
            "returned Tensor \"tensor(..., device='meta', size=())\" for answer 1; a score is a number (or None).",
        ),
        (
            torch.tensor(1.0),
            "returned Tensor 'tensor(1.)', no list of 2 numbers: TypeError: object of type 'float' has no len().",
        ),
        # a float64 that float32 cannot hold would be trained on as inf
        ([0.0, 1e39], "returned 1e+39 for answer 1 ('answer 1'); a score lies within 3.4e+38 of 0, the range of float32."),
    ],
)
def test_anything_else_is_refused_with_what_it_was(returned: Any, said: str) -> None:
    with pytest.raises(RewardError) as refusal:
        scored(returns(returned))
    assert str(refusal.value) == f"reward function score {said}"


@pytest.mark.parametrize(
    "error, said",
    [
        (ValueError("no\n  taste"), "ValueError: no taste"),
        (SystemExit(0), "SystemExit: 0"),
        (KeyError(), "KeyError"),
        (Speechless(), "Speechless"),
    ],
)
def test_whatever_a_users_function_raises_is_one_line_and_no_end_of_the_run(error: BaseException, said: str) -> None:
    with pytest.raises(RewardError) as refusal:
        scored(raises(error))
    assert str(refusal.value) == f"reward function score raised {said}. Nothing was trained on this batch."
    with pytest.raises(RewardError) as refusal:
        verdicts(raises(error), "taste", ["a"], ["b"])
    assert str(refusal.value) == f"judge taste raised {said}. It must return one number a text."


@pytest.mark.parametrize("value", [torch.zeros(2, device="meta"), torch.zeros(2).to_sparse()], ids=["meta", "sparse"])
def test_a_tensor_that_holds_no_list_of_numbers_is_refused(value: torch.Tensor) -> None:
    with pytest.raises(RewardError, match=r"returned Tensor .*, no list of 2 numbers: "):
        scored(returns(value))


def test_a_builtin_that_tells_no_parameters_is_called_with_prompts_and_answers() -> None:
    with pytest.raises(RewardError, match="reward function max returned str"):
        FunctionReward(max).score(PROMPTS, ANSWERS)


def test_what_cannot_be_called_is_no_reward() -> None:
    with pytest.raises(ConfigError, match=r"the reward is int '3', which cannot be called\. Give a function"):
        FunctionReward(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name, said",
    [
        ("broken:score", "module 'broken' cannot be imported: it raised ZeroDivisionError: division by zero. Mend it."),
        ("leaves:score", "module 'leaves' cannot be imported: it raised SystemExit: 0. Mend it."),
        (":score", "is no function. Name it as module:function, for example rewards:score."),
        (".broken:score", "is no function. Name it as module:function, for example rewards:score."),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_in_a_line(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(ConfigError) as refusal:
        load_function(name)
    assert str(refusal.value).endswith(said)
