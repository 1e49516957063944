"""What a user sees while a stage runs: a live table on a terminal, plain lines in a log, nothing where silence is wanted.

A stage calls `start` once, `update` after every step and `stop` at its end; `say` may come at any time. Metrics are those of
metrics.jsonl; each verb shows the few that tell whether it goes well. Wall times are shown only, never recorded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

# metric key -> (what it is called here, format)
COLUMNS: dict[str, dict[str, tuple[str, str]]] = {
    "ppo": {
        "objective/scores": ("reward", "+.2f"),
        "objective/kl": ("KL to SFT", ".2f"),
        "policy/approxkl_avg": ("approx KL", ".4f"),
        "policy/clipfrac_avg": ("clip fraction", ".3f"),
        "response_length/mean": ("length", ".1f"),
        "timing/tokens_per_second": ("tokens/s", ".0f"),
    },
    "sft": {
        "loss": ("loss", ".3f"),
        "validation/loss": ("held-out loss", ".3f"),
        "lr": ("lr", ".1e"),
        "timing/tokens_per_second": ("tokens/s", ".0f"),
    },
    "reward": {
        "loss": ("loss", ".3f"),
        "accuracy": ("accuracy", ".3f"),
        "margin": ("margin", "+.2f"),
        "validation/accuracy": ("held-out accuracy", ".3f"),
        "lr": ("lr", ".1e"),
    },
    "evaluate": {
        "kl": ("KL to SFT", ".2f"),
    },
    "control": {
        "rollout/ep_rew_mean": ("return", ".1f"),
        "rollout/ep_len_mean": ("length", ".0f"),
        "train/approx_kl": ("approx KL", ".4f"),
        "train/clip_fraction": ("clip fraction", ".3f"),
        "train/explained_variance": ("explained variance", ".2f"),
        "time/fps": ("steps/s", ".0f"),
    },
}

SHOWN_UNKNOWN = 6  # metrics of a verb without columns of its own


class Progress(Protocol):
    """Where a stage tells how far it is. `total` is the step at which the stage ends; a resumed one starts after step 1."""

    def start(self, verb: str, total: int, unit: str) -> None: ...

    def update(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def say(self, line: str) -> None: ...

    def stop(self) -> None: ...


class Estimate:
    """Seconds until the end, from the steps of this process alone: what an earlier process did is not in its clock."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._began = clock()
        self._first: tuple[int, float] | None = None  # a step and when it was done

    def seconds_left(self, step: int) -> float | None:
        """None where nothing can be said: at a first step beyond 1, which may be a resumed one or a whole batch."""
        now = self._clock()
        if self._first is None:
            self._first = (0, self._began) if step == 1 else (step, now)
        first, since = self._first
        done = step - first
        return (now - since) / done * max(self._total - step, 0) if done > 0 else None


def figures(verb: str, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """(name, formatted value) of the metrics that the verb shows, in the verb's order; absent ones are left out."""
    if verb in COLUMNS:
        return [(name, f"{metrics[key]:{spec}}") for key, (name, spec) in COLUMNS[verb].items() if key in metrics]
    return [(key, f"{value:.4g}") for key, value in list(metrics.items())[:SHOWN_UNKNOWN]]


def duration(seconds: float | None) -> str:
    """1:05 or 2:03:04; "-" for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class SilentProgress:
    """Shows nothing."""

    def start(self, verb: str, total: int, unit: str) -> None: ...

    def update(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def say(self, line: str) -> None: ...

    def stop(self) -> None: ...


class PlainProgress:
    """One line an update: `ppo 12/50  reward +1.23  KL to SFT 3.40  ...  left 1:05`."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._verb, self._total = "", 0
        self._estimate = Estimate(0, clock)

    def start(self, verb: str, total: int, unit: str) -> None:
        self._verb, self._total = verb, total
        self._estimate = Estimate(total, self._clock)
        self.say(f"{verb}: {total} {unit}")

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = "".join(f"  {name} {value}" for name, value in figures(self._verb, metrics))
        self.say(f"{self._verb} {step}/{self._total}{shown}  left {duration(self._estimate.seconds_left(step))}")

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def stop(self) -> None: ...


class LiveProgress:
    """A table that is redrawn in place: the newest rows, how far the stage is, when it will end. Lines of `say` scroll above."""

    ROWS = 8

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._verb, self._total, self._unit, self._step = "", 0, "", 0
        self._estimate = Estimate(0, clock)
        self._rows: list[tuple[int, list[tuple[str, str]]]] = []
        self._left: float | None = None
        self._live: Live | None = None

    def start(self, verb: str, total: int, unit: str) -> None:
        from rich.live import Live

        self.stop()
        self._verb, self._total, self._unit, self._step, self._left = verb, total, unit, 0, None
        self._rows = []
        self._estimate = Estimate(total, self._clock)
        self._live = Live(self.render(), console=self._console, auto_refresh=False, transient=False)
        self._live.start(refresh=True)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step, self._left = step, self._estimate.seconds_left(step)
        self._rows = [*self._rows, (step, figures(self._verb, metrics))][-self.ROWS :]
        if self._live is not None:
            self._live.update(self.render(), refresh=True)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def render(self) -> RenderableType:
        """The table and the bar below it. A figure that only some steps have keeps its column while a row shown has it."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        names = list(dict.fromkeys(name for _, row in self._rows for name, _ in row))
        order = [name for name, _ in COLUMNS.get(self._verb, {}).values()]
        names.sort(key=lambda name: order.index(name) if name in order else len(order))
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        table.add_column(self._unit.rstrip("s") or "step", justify="right")
        for name in names:
            table.add_column(name, justify="right")
        for step, row in self._rows:
            values = dict(row)
            style = "bold" if step == self._step else ""
            table.add_row(str(step), *(values.get(name, "") for name in names), style=style)
        foot = Table.grid(padding=(0, 2, 0, 0))
        foot.add_row(
            ProgressBar(total=max(self._total, 1), completed=self._step, width=30),
            f"{self._step}/{self._total} {self._unit}",
            f"left {duration(self._left)}",
        )
        return Group(f"surefoot {self._verb}", table, foot)


def make_progress(stream: TextIO | None = None) -> Progress:
    """Live on a terminal, plain lines into a file or a pipe. Goes to stderr, so that stdout stays the command's answer."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        return PlainProgress(stream)
    from rich.console import Console

    console = Console(file=stream)
    return PlainProgress(stream) if console.is_dumb_terminal else LiveProgress(console)
