"""One base and a handful of children. A message says: what happened, where, which value, what is allowed, what to do next."""

from __future__ import annotations

import errno


class SurefootError(Exception):
    """Something a user can mend. The command line prints it as one line and exits with `exit_status`."""

    exit_status = 2


class ConfigError(SurefootError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(SurefootError):
    """Data cannot be read, mixes formats, is empty, or does not fit the model."""


class ModelError(SurefootError):
    """A model, tokenizer or adapter cannot be loaded or does not fit its role."""


class RewardError(SurefootError):
    """A reward source raised, or returned something that is not one finite number a completion."""


class EngineError(SurefootError):
    """A rollout engine cannot be reached or answered wrongly."""


class RunError(SurefootError):
    """A run folder is in use, damaged, or belongs to another configuration."""


class TrainingError(SurefootError):
    """Training was stopped by an alarm: a number left the range in which learning is possible."""

    exit_status = 3


class Diverged(TrainingError):
    """Weights, moments or steps are not finite any more. An earlier state is good: PPO goes back to it before it stops."""


class Interrupted(SurefootError):
    """SIGTERM or SIGINT arrived; the last complete state is saved and `--resume auto` goes on from it."""

    exit_status = 75


class Paused(Interrupted):
    """A server that the run needs does not answer; the last complete state is saved and the same command goes on from it."""


def told(error: BaseException) -> str:
    """An exception of somebody else's code within a line of ours: its type and what it says, ends of line made spaces."""
    words = " ".join(said(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def too_long(problem: OSError) -> ConfigError | None:
    """The refusal of a name that no file can have; None where the problem is another."""
    if problem.errno != errno.ENAMETOOLONG:
        return None
    return ConfigError(f"{str(problem.filename)[:60]}... is longer than a file's name can be, 255 bytes. Use a shorter one.")


def first_line(error: BaseException) -> str:
    """The first line of what an exception of a library says, or its type where it says nothing."""
    return next(iter(said(error).strip().splitlines()), "") or type(error).__name__


def said(value: object) -> str:
    """str(value), or nothing where somebody's own __str__ raises."""
    try:
        return str(value)
    except Exception:
        return ""
