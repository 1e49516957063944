"""What is shown while a stage runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from surefoot.diagnostics.metrics import is_known
from surefoot.progress import (
    COLUMNS,
    Estimate,
    LiveProgress,
    PlainProgress,
    SilentProgress,
    duration,
    figures,
    make_progress,
)


class Clock:
    """Shows the seconds that a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


PPO = {
    "policy/clipfrac_avg": 0.125,
    "objective/scores": 1.234,
    "objective/kl": 3.4,
    "policy/approxkl_avg": 0.01234,
    "response_length/mean": 17.25,
    "timing/tokens_per_second": 512.4,
    "lr": 1e-4,
}


def test_a_plain_line_holds_the_verbs_figures_in_their_order():
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock)
    progress.start("ppo", 50, "updates")
    clock.now = 10.0  # one step took 10 s, so 49 more take 490 s
    progress.update(1, PPO)
    assert stream.getvalue() == (
        "ppo: 50 updates\n"
        "ppo 1/50  reward +1.23  KL to SFT 3.40  approx KL 0.0123  clip fraction 0.125  length 17.2  tokens/s 512  left 8:10\n"
    )


def test_the_estimate_counts_the_steps_of_this_process_alone():
    clock = Clock()
    estimate = Estimate(100, clock)
    clock.now = 2.0
    assert estimate.seconds_left(41) is None  # resumed at 40, or a batch of 41: nothing tells
    clock.now = 6.0
    assert estimate.seconds_left(43) == 57 * 2.0  # two steps in 4 s
    assert estimate.seconds_left(100) == 0.0
    assert estimate.seconds_left(101) == 0.0


def test_a_batch_of_many_steps_is_not_taken_for_one():
    clock = Clock()
    estimate = Estimate(256, clock)
    clock.now = 60.0
    assert estimate.seconds_left(64) is None
    clock.now = 120.0
    assert estimate.seconds_left(128) == 120.0


def test_a_step_that_comes_again_does_not_divide_by_zero():
    estimate = Estimate(10, Clock())
    estimate.seconds_left(5)
    assert estimate.seconds_left(4) is None


@pytest.mark.parametrize(
    "seconds, text", [(None, "-"), (0, "0:00"), (59.6, "1:00"), (65, "1:05"), (3600, "1:00:00"), (7384.2, "2:03:04")]
)
def test_a_duration_is_written_as_a_clock_writes_it(seconds, text):
    assert duration(seconds) == text


def test_absent_figures_are_left_out_and_unknown_verbs_show_the_first_ones():
    assert figures("ppo", {"objective/kl": 1.0, "something/else": 2.0}) == [("KL to SFT", "1.00")]
    assert figures("new", {f"m{i}": float(i) for i in range(9)}) == [(f"m{i}", str(i)) for i in range(6)]


@pytest.mark.parametrize("key", sorted({key for columns in COLUMNS.values() for key in columns} - {"kl"}))
def test_every_figure_shown_is_a_documented_metric(key):
    assert is_known(key)


def screen(width: int = 110) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=width, height=40, color_system=None, legacy_windows=False), stream


def text_of(progress: LiveProgress, width: int = 110) -> list[str]:
    console, stream = screen(width)
    console.print(progress.render())
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_the_live_table_shows_the_newest_rows_and_the_time_that_is_left():
    clock = Clock()
    console, stream = screen()
    progress = LiveProgress(console, clock)
    progress.start("ppo", 50, "updates")
    for step in range(1, 13):
        clock.now += 10.0
        progress.update(step, PPO | {"objective/scores": float(step)})
    lines = text_of(progress)
    assert lines[0] == "surefoot ppo"
    assert lines[1].split("  ") and lines[1].split()[:2] == ["update", "reward"]
    assert [line.split()[:2] for line in lines[2:10]] == [[str(step), f"+{step}.00"] for step in range(5, 13)]
    assert lines[10].endswith("12/50 updates  left 6:20")
    progress.say("a line [with brackets] scrolls above")
    progress.stop()
    assert "a line [with brackets] scrolls above" in stream.getvalue()


def test_a_figure_of_some_steps_keeps_its_column_and_leaves_the_others_empty():
    progress = LiveProgress(screen()[0], Clock())
    progress.start("sft", 3, "steps")
    progress.update(1, {"loss": 2.0, "lr": 1e-4, "validation/loss": 3.0})
    progress.update(2, {"loss": 1.0, "lr": 1e-4})
    lines = text_of(progress)
    progress.stop()
    assert lines[1].split("  ")[-1].strip() == "lr"
    assert lines[2].split() == ["1", "2.000", "3.000", "1.0e-04"]
    assert lines[3].split() == ["2", "1.000", "1.0e-04"]


def test_starting_another_stage_ends_the_table_of_the_one_before():
    progress = LiveProgress(screen()[0], Clock())
    progress.start("sft", 3, "steps")
    progress.update(1, {"loss": 2.0})
    progress.start("reward", 5, "steps")
    lines = text_of(progress)
    progress.stop()
    progress.stop()  # a second stop is harmless
    assert lines[0] == "surefoot reward"
    assert lines[-1].endswith("0/5 steps  left -")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_the_live_table_and_everything_else_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(make_progress(Terminal()), LiveProgress)
    assert isinstance(make_progress(io.StringIO()), PlainProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress(Terminal()), PlainProgress)


def test_silence_is_silent(capsys):
    progress = SilentProgress()
    progress.start("ppo", 1, "updates")
    progress.update(1, PPO)
    progress.say("nothing")
    progress.stop()
    assert capsys.readouterr() == ("", "")
