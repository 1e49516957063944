"""Any Python function as reward: `reward(prompts, completions, **columns) -> list[float]`.

`prompts` and `completions` are lists of text; `columns` are the data set's further fields, each a list; a function receives
those it names, or all with **. None in place of a number says that an answer cannot be scored: its row is masked.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from surefoot.errors import ConfigError, RewardError
from surefoot.types import Completions, Prompts, Scores


class FunctionReward:
    """Calls `function` on a batch and checks what it returns."""

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        self._named = {p.name for p in parameters}

    def score(self, prompts: Prompts, completions: Completions) -> Scores:
        """Scores a batch.

        Raises RewardError when the function raises, or returns anything but one finite number or None an answer.
        """
        columns = {key: list(column) for key, column in prompts.columns.items() if self._takes_all or key in self._named}
        try:
            returned = self.function(list(prompts.text), list(completions.text), **columns)
        except Exception as error:
            raise RewardError(
                f"reward function {self.name} raised {type(error).__name__}: {error}. Nothing was trained on this batch."
            ) from error
        numbers = self._checked(returned, completions.text)
        valid = torch.tensor([number is not None for number in numbers], dtype=torch.bool)
        value = torch.tensor([number or 0.0 for number in numbers], dtype=torch.float32)
        return Scores(value=value, parts={self.name: value}, valid=valid)

    def _checked(self, returned: Any, answers: Sequence[str]) -> list[float | None]:
        if isinstance(returned, (str, bytes)) or (not isinstance(returned, (Sequence, torch.Tensor)) and not _is_array(returned)):
            raise RewardError(
                f"reward function {self.name} returned {_shown(returned)}; it must return a list of {len(answers)} numbers."
            )
        rows = returned.tolist() if isinstance(returned, torch.Tensor) or _is_array(returned) else list(returned)
        if len(rows) != len(answers):
            raise RewardError(
                f"reward function {self.name} returned {len(rows)} numbers for {len(answers)} answers; it must return one each."
            )
        return [None if row is None else self._number(row, i, answers[i]) for i, row in enumerate(rows)]

    def _number(self, row: Any, index: int, answer: str) -> float:
        if isinstance(row, (str, bytes)) or (not isinstance(row, (int, float)) and not _is_scalar(row)):
            raise RewardError(
                f"reward function {self.name} returned {_shown(row)} for answer {index}; a score is a number (or None)."
            )
        number = float(row)
        if not math.isfinite(number):
            raise RewardError(
                f"reward function {self.name} returned {number} for answer {index} ({answer[:60]!r}); a score is finite, or None."
            )
        return number


def load_function(name: str) -> Callable[..., Any]:
    """The function `module:function`, with the working directory importable. Raises ConfigError when there is none."""
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise ConfigError(f"{name!r} is no function. Name it as module:function, for example rewards:score.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{name!r}: module {module_name!r} cannot be imported: {error}. Run from the folder that holds it."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = ", ".join(sorted(key for key, value in vars(module).items() if inspect.isfunction(value))) or "none"
        raise ConfigError(f"{name!r}: module {module_name!r} has no function {attribute!r}. Its functions: {known}.")
    return function


def _is_array(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "ndim", 0) == 1


def _is_scalar(value: Any) -> bool:
    return (isinstance(value, torch.Tensor) or type(value).__module__.partition(".")[0] == "numpy") and getattr(
        value, "ndim", 1
    ) == 0


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
