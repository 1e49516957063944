"""Trackers are told what metrics.jsonl says, once, and can do a run no harm. Real libraries, offline."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.cli import run as surefoot
from surefoot.config import Config
from surefoot.runs import RunFolder, State, load_manifest, read_jsonl
from surefoot.runs.tracker_runs import TensorBoardRun
from tracker_readers import READERS, told_to

ROWS: list[dict[str, Any]] = [
    {"objective/kl": 0.5, "rewards/regex:^a+$/mean": 1.0, "optimizer/steps": 4, "optimizer/stopped_early": False},
    {"objective/kl": float("nan"), "rewards/regex:^a+$/mean": 0.25, "optimizer/steps": 3, "optimizer/stopped_early": True},
    {"objective/kl": 0.125, "rewards/regex:^a+$/mean": -2.0, "optimizer/steps": 4, "optimizer/stopped_early": False},
    {"validation/loss": 7.0},
]
STEPS = (1, 2, 3, 3)  # the last step of SFT has two lines


@pytest.fixture(params=READERS)
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracker that writes below tmp_path; skipped where its library is not installed."""
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'surefoot[{name}]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")  # a data base is made in ten seconds, files at once
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return name


needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed: the extra dev brings it"
)
pytestmark = pytest.mark.filterwarnings("default")  # the libraries' own


def opened(path: Path, *names: str) -> RunFolder:
    return RunFolder.open(path, verb="sft", cfg=Config.model_validate({"report_to": names}))


def saved(folder: RunFolder, step: int) -> None:
    folder.save(step, State(tensors={"weights": {"w": torch.ones(2)}}, values={"step": step}))


def record(folder: RunFolder, lines: range) -> None:
    for i in lines:
        folder.record(STEPS[i], ROWS[i])


def expected(name: str, path: Path) -> list[tuple[int, str, float]]:
    """What metrics.jsonl says, in the letters that the tracker allows."""
    rows = read_jsonl(path / "metrics.jsonl")
    keys = {"rewards/regex:^a+$/mean": "rewards/regex:_a__/mean"} if name == "mlflow" else {}
    return sorted(
        (row["step"], keys.get(key, key), float(value))
        for row in rows
        for key, value in row.items()
        if key != "step" and value is not None
    )


def test_a_tracker_holds_the_keys_and_steps_of_the_record(tracker: str, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "sft"
    with opened(path, tracker) as folder:
        record(folder, range(4))
        folder.finish()
    assert sorted(READERS[tracker](path)) == expected(tracker, path)
    assert told_to(path)[tracker]["lines"] == 4


def test_a_resumed_run_goes_on_in_the_same_run_and_tells_no_step_twice(tracker: str, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "sft"
    with pytest.raises(KeyboardInterrupt), opened(path, tracker) as folder:
        record(folder, range(1))
        saved(folder, 1)
        record(folder, range(1, 2))  # told, but behind the checkpoint
        raise KeyboardInterrupt
    first = told_to(path)[tracker]["run"]
    with opened(path, tracker) as folder:
        assert folder.restore() is not None
        record(folder, range(1, 4))
        folder.finish()
    assert sorted(READERS[tracker](path)) == expected(tracker, path)
    assert told_to(path)[tracker] == {"run": first, "lines": 4}


def test_a_tracker_that_is_added_later_is_told_what_it_lacks(tracker: str, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "sft"
    with opened(path) as folder:
        record(folder, range(2))
        saved(folder, 2)
    assert not (path / "trackers.json").exists()
    with opened(path, tracker) as folder:
        folder.restore()
        record(folder, range(2, 4))
        folder.finish()
    assert sorted(READERS[tracker](path)) == expected(tracker, path)
    assert any(
        "report_to changed from [] to" in row["message"] and row["message"].endswith("trackers are told what they lack")
        for row in read_jsonl(path / "events.jsonl")
    )


def test_two_runs_side_by_side_are_two_runs_of_the_tracker(tracker: str, tmp_path: Path) -> None:
    with opened(tmp_path / "seeds" / "a", tracker) as one, opened(tmp_path / "seeds" / "b", tracker) as other:
        for step in (1, 2):
            one.record(step, {"x": float(step)})
            other.record(step, {"x": -float(step)})
        one.finish()
        other.finish()
    assert sorted(READERS[tracker](tmp_path / "seeds" / "a")) == [(1, "x", 1.0), (2, "x", 2.0)]
    assert sorted(READERS[tracker](tmp_path / "seeds" / "b")) == [(1, "x", -1.0), (2, "x", -2.0)]


@needs_tensorboard
def test_a_tracker_that_breaks_costs_one_warning_and_is_told_the_rest_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs" / "sft"
    log = TensorBoardRun.log

    def broken(self: TensorBoardRun, step: int, metrics: Any) -> None:
        if step > 1:
            raise ConnectionError("the server is gone\nand more")
        log(self, step, metrics)

    monkeypatch.setattr(TensorBoardRun, "log", broken)
    with opened(path, "tensorboard") as folder:
        record(folder, range(3))
        saved(folder, 3)
        folder.finish()
    with opened(tmp_path / "plain") as plain:
        record(plain, range(3))
    assert (path / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()
    assert load_manifest(path)["status"] == "done"
    messages = [row["message"] for row in read_jsonl(path / "events.jsonl")]
    assert messages == [
        "TensorBoard failed (ConnectionError: the server is gone) and is told no more. The run goes on, metrics.jsonl has every "
        "step, and resuming the run tells what is missing"
    ]
    assert told_to(path)["tensorboard"]["lines"] == 1
    monkeypatch.setattr(TensorBoardRun, "log", log)
    with opened(path, "tensorboard") as folder:
        folder.restore()
        record(folder, range(3, 4))
    assert sorted(READERS["tensorboard"](path)) == expected("tensorboard", path)


def test_a_server_that_is_not_there_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with opened(tmp_path / "run", "mlflow") as folder:
        record(folder, range(3))
        folder.finish()
    (message,) = [row["message"] for row in read_jsonl(tmp_path / "run" / "events.jsonl")]
    assert message.startswith("MLflow failed (") and len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 3


@needs_tensorboard
def test_only_the_first_process_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with opened(tmp_path / "run", "tensorboard") as folder:
        record(folder, range(2))
    assert not (tmp_path / "run" / "tensorboard").exists() and not (tmp_path / "run" / "trackers.json").exists()


def test_a_library_that_is_missing_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else there(name, *rest))
    assert surefoot(["control", "CartPole-v1", "--report_to", "wandb", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "ConfigError: report_to = wandb needs the package wandb, which is not installed. `pip install 'surefoot[wandb]'` adds it."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["sft", "--report_to", "wand"], "Allowed: a list, each item tensorboard, wandb, trackio or mlflow. Did you mean wandb?"),
        (["sft", "--report_to", "[tensorboard, 3]"], "Allowed: a list, each item tensorboard, wandb, trackio or mlflow."),
        (["chat", "tiny", "--report_to", "wandb"], 'report_to = ["wandb"] has no effect in surefoot chat: a talk records no'),
    ],
)
def test_other_words_and_verbs_without_metrics_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert surefoot(words) == 2
    assert said in capsys.readouterr().err


@needs_tensorboard
def test_a_ppo_run_ends_with_the_same_bytes_and_the_tracker_with_its_figures(tmp_path: Path) -> None:
    from surefoot.api import PPORun
    from tiny_language import make_backbone, make_model, make_tokenizer

    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    small = {"rollout.response_length": 4, "ppo.rollout_batch_size": 4, "ppo.total_episodes": 8}
    for name, trackers in (("with", ["tensorboard"]), ("without", [])):
        PPORun(
            make_backbone(model, tokenizer),
            prompts=["the film was", "the plot"],
            reward=lambda prompts, completions: [float(len(text)) for text in completions],
            settings={**small, "report_to": trackers},
            out=tmp_path / name,
        ).learn()
    assert (tmp_path / "with/metrics.jsonl").read_bytes() == (tmp_path / "without/metrics.jsonl").read_bytes()
    told = READERS["tensorboard"](tmp_path / "with")
    assert {(step, key) for step, key, _ in told} == {(step, key) for step, key, _ in expected("", tmp_path / "with")}
    assert len(told) == len(set(told))
