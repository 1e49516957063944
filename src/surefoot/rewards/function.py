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
from decimal import Decimal
from numbers import Real
from typing import Any

import torch

from surefoot.errors import ConfigError, RewardError, said, told
from surefoot.types import Completions, Prompts, Scores

LARGEST = torch.finfo(torch.float32).max  # beyond it a score would be inf where it is trained on


class FunctionReward:
    """Calls `function` on a batch and checks what it returns."""

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        if not callable(function):
            raise ConfigError(
                f"the reward is {_shown(function)}, which cannot be called. Give a function reward(prompts, completions), "
                "a RewardRun, a reward-model folder, or module:function."
            )
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        parameters = _parameters(function)
        self._takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        self._named = {p.name for p in parameters}

    def score(self, prompts: Prompts, completions: Completions) -> Scores:
        """Scores a batch.

        Raises RewardError when the function raises, or returns anything but one finite number or None an answer.
        """
        columns = {key: list(column) for key, column in prompts.columns.items() if self._takes_all or key in self._named}
        try:
            returned = self.function(list(prompts.text), list(completions.text), **columns)
        except RewardError:  # a check of ours says itself what is wrong
            raise
        except (Exception, SystemExit) as error:  # an exit would end the run as if it were done
            raise RewardError(f"reward function {self.name} raised {told(error)}. Nothing was trained on this batch.") from error
        numbers = self._checked(returned, completions.text)
        valid = torch.tensor([number is not None for number in numbers], dtype=torch.bool)
        value = torch.tensor([number or 0.0 for number in numbers], dtype=torch.float32)
        return Scores(value=value, parts={self.name: value}, valid=valid)

    def _checked(self, returned: Any, answers: Sequence[str]) -> list[float | None]:
        if isinstance(returned, (str, bytes)) or (not isinstance(returned, (Sequence, torch.Tensor)) and not _is_array(returned)):
            raise RewardError(
                f"reward function {self.name} returned {_shown(returned)}; it must return a list of {len(answers)} numbers."
            )
        try:
            rows = returned.tolist() if isinstance(returned, torch.Tensor) or _is_array(returned) else list(returned)
            count = len(rows)
        except Exception as error:  # a sparse tensor, one without values or without a length, a sequence of somebody's own
            raise RewardError(
                f"reward function {self.name} returned {_shown(returned)}, no list of {len(answers)} numbers: {told(error)}."
            ) from error
        if count != len(answers):
            raise RewardError(
                f"reward function {self.name} returned {count} numbers for {len(answers)} answers; it must return one each."
            )
        return [None if row is None else self._number(row, i, answers[i]) for i, row in enumerate(rows)]

    def _number(self, row: Any, index: int, answer: str) -> float:
        try:
            plain = row.item() if _is_scalar(row) else row
        except Exception:  # a tensor without values
            plain = None
        if not isinstance(plain, (Real, Decimal)):  # a complex number is none of these: its imaginary part would be dropped
            raise RewardError(
                f"reward function {self.name} returned {_shown(row)} for answer {index}; a score is a number (or None)."
            )
        try:
            number = float(plain)
        except OverflowError:  # a whole number of more than 308 digits
            number = math.inf
        if not math.isfinite(number):
            raise RewardError(
                f"reward function {self.name} returned {number} for answer {index} ({answer[:60]!r}); a score is finite, or None."
            )
        if abs(number) > LARGEST:
            raise RewardError(
                f"reward function {self.name} returned {number:g} for answer {index} ({answer[:60]!r}); "
                f"a score lies within {LARGEST:.2g} of 0, the range of float32."
            )
        return number


def load_function(name: str) -> Callable[..., Any]:
    """The function `module:function`, with the working directory importable. Raises ConfigError when there is none."""
    module_name, _, attribute = name.partition(":")
    if not attribute or not module_name or module_name.startswith("."):
        raise ConfigError(f"{name!r} is no function. Name it as module:function, for example rewards:score.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{name!r}: module {module_name!r} cannot be imported: {error}. Run from the folder that holds it."
        ) from error
    except (Exception, SystemExit) as error:  # a user's module may do anything while it is imported
        raise ConfigError(f"{name!r}: module {module_name!r} cannot be imported: it raised {told(error)}. Mend it.") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = ", ".join(sorted(key for key, value in vars(module).items() if inspect.isfunction(value))) or "none"
        raise ConfigError(f"{name!r}: module {module_name!r} has no function {attribute!r}. Its functions: {known}.")
    return function


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function; none of a builtin that does not tell them, which then gets prompts and completions alone."""
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:
        return []


def _is_array(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "ndim", 0) == 1


def _is_scalar(value: Any) -> bool:
    return (isinstance(value, torch.Tensor) or type(value).__module__.partition(".")[0] == "numpy") and getattr(
        value, "ndim", 1
    ) == 0


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {said(value)[:40]!r}"
