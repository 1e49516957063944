"""Runs of the language side through the command line: what stopped early says so, and what goes on ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from surefoot.cli import run

REWARDS = '''
import os, signal
from pathlib import Path

def length(prompts, completions):
    return [float(len(c)) for c in completions]

def stopping(prompts, completions):
    """Asks this process to stop while the second rollout is scored, once."""
    calls = Path("calls")
    calls.write_text((calls.read_text() if calls.exists() else "") + ".")
    if calls.read_text() == "..":
        os.kill(os.getpid(), signal.SIGTERM)
    return length(prompts, completions)
'''

SETTINGS = [
    "--model.name=tiny", "--data.prompts=prompts.jsonl", "--rollout.response_length=4", "--ppo.rollout_batch_size=4",
    "--ppo.total_episodes=16", "--ppo.num_mini_batches=2", "--ppo.learning_rate=0.01", "--ppo.kl_controller=proportional",
    "--ppo.reward_scale=running", "--ppo.objective=penalty", "--ppo.beta_controller=doubling", "--ppo.lr_scheduler=linear",
]  # fmt: skip


@pytest.fixture
def work(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with prompts and a module of rewards, named for this test alone: modules are imported once."""
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [json.dumps({"prompt": f"the {word} was"}) for word in ("film", "plot", "cast", "score", "music", "humor")]
    Path("prompts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    name = "rewards_" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    Path(f"{name}.py").write_text(REWARDS, encoding="utf-8")
    monkeypatch.setenv("REWARDS", name)
    yield tmp_path


def _ppo(reward: str, *more: str, out: str = "run") -> int:
    return run(["ppo", *SETTINGS, f"--reward_source.source={os.environ['REWARDS']}:{reward}", *more, "--out", out])


def _updates(folder: str) -> list[int]:
    return [json.loads(line)["step"] for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _weights(folder: str) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((Path(folder) / "final").glob("*.safetensors"))}


@pytest.mark.usefixtures("work")
def test_item_55_a_run_that_an_alarm_stopped_does_not_exit_0_nor_does_it_when_started_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        assert _ppo("length", "--ppo.kl_max=0.000001") == 3
        said = capsys.readouterr().err
        assert "TrainingError" in said and "ppo.kl_max" in said and "update 2" in said
        assert not Path("run/final").exists()
    status = json.loads(Path("run/manifest.json").read_text(encoding="utf-8"))["status"]
    assert status != "done"


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("save_every", [1, 3])
def test_item_54_55_an_interrupted_run_exits_75_and_resumes_to_the_bytes_of_an_uninterrupted_one(
    capsys: pytest.CaptureFixture[str], save_every: int
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    words = [f"--ppo.save_every={save_every}"]
    assert _ppo("stopping", *words) == 75
    assert "Interrupted" in capsys.readouterr().err
    assert not Path("run/final").exists() and len(_updates("run")) < 4
    assert signal.getsignal(signal.SIGTERM) == handler
    assert _ppo("stopping", *words) == 0
    assert _ppo("stopping", *words, out="whole") == 0  # asked once: this one is never stopped
    assert _updates("run") == _updates("whole") == [1, 2, 3, 4]
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()
    assert _weights("run") == _weights("whole") != {}


@pytest.mark.usefixtures("work")
def test_item_54_sft_resumes_at_an_epoch_border_to_the_bytes_of_an_uninterrupted_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.runs import RunFolder

    rows = [json.dumps({"prompt": f"the {w} was", "completion": " good ."}) for w in ("film", "plot", "cast", "score", "music")]
    Path("train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = [
        "sft",
        "--model.name=tiny",
        "--data.train=train.jsonl",
        "--sft.num_epochs=3",
        "--sft.batch_size=2",
        "--sft.save_every=1",
    ]
    assert run([*words, "--out", "whole"]) == 0
    record = RunFolder.record

    def stopping(self: RunFolder, step: int, metrics: dict[str, float]) -> None:
        record(self, step, metrics)
        if step == 2 and "loss" in metrics:  # 4 rows are left to train on, 2 a step: an epoch ends here
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", stopping)
        assert run([*words, "--out", "run"]) == 75
    assert _updates("run")[-1] == 2
    assert run([*words, "--out", "run"]) == 0
    assert Path("run/metrics.jsonl").read_bytes() == Path("whole/metrics.jsonl").read_bytes()
    assert _updates("run") == [0, 1, 2, 3, 4, 5, 6, 6]  # a look at held-out rows before the first step and after the last
    assert _weights("run") == _weights("whole") != {}
