"""R4, S1, S3: a checkpoint that is cut, flipped, incomplete or hostile is never trusted, and never executed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.config import Config
from surefoot.errors import RunError
from surefoot.runs import RunFolder, State, read_jsonl
from surefoot.runs.checkpoint import DamagedCheckpoint, read_checkpoint

FILES = ("manifest.json", "optimizer.safetensors", "policy.safetensors", "values.json")


def state_at(step: int) -> State:
    tensors = {
        "policy": {"weight": torch.arange(24.0).reshape(4, 6) * step, "bias": torch.full((4,), 0.1 * step)},
        "optimizer": {"step": torch.tensor(float(step)), "empty": torch.empty(0, 3)},
    }
    return State(tensors, {"step": step, "coefficient": 0.1 * step, "name": "naïve"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint-2 and checkpoint-3, and metrics up to step 3."""
    path = tmp_path_factory.mktemp("saved") / "run"
    with RunFolder.open(path, verb="sft", cfg=Config()) as folder:
        for step in (1, 2, 3):
            folder.record(step, {"loss": 1.0 / step})
            folder.save(step, state_at(step))
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def restored_step(path: Path) -> int:
    with RunFolder.open(path, verb="sft", cfg=Config()) as folder:
        state = folder.restore()
        assert state is not None
        expected = state_at(state.values["step"])
        assert state.values == expected.values
        for file, tensors in expected.tensors.items():
            for name, tensor in tensors.items():
                assert torch.equal(state.tensors[file][name], tensor)
        assert [row["step"] for row in read_jsonl(path / "metrics.jsonl")] == list(range(1, state.values["step"] + 1))
    return int(state.values["step"])


def events(path: Path) -> list[str]:
    return [row["message"] for row in read_jsonl(path / "events.jsonl")]


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "run.lock"])
def test_a_folder_in_the_place_of_a_file_is_told(name: str, copy: Path) -> None:
    (copy / name).unlink(missing_ok=True)
    (copy / name).mkdir()
    with pytest.raises(RunError, match=rf"{name}: a folder stands in its place\. Move that away"):
        RunFolder.open(copy, verb="sft", cfg=Config())


@pytest.mark.parametrize(("name", "value"), [("inputs", None), ("inputs", []), ("outputs", []), ("facts", [])])
def test_a_manifest_whose_parts_are_no_mappings_is_none(name: str, value: Any, copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {name: value}))
    with pytest.raises(RunError, match=r"manifest\.json is not the manifest of a run: it lacks"):
        RunFolder.open(copy, verb="sft", cfg=Config())


def test_an_unharmed_folder_restores_its_newest_checkpoint(copy: Path) -> None:
    assert restored_step(copy) == 3
    assert events(copy) == ["resumed from checkpoint-3"]


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_is_seen_wherever_it_is(seed: int, copy: Path) -> None:
    chance = random.Random(seed)
    file = copy / "checkpoint-3" / FILES[seed % len(FILES)]
    flip(file, chance.randrange(file.stat().st_size * 8))
    assert restored_step(copy) == 2
    first, second = events(copy)
    assert first.startswith("checkpoint-3 is damaged (") and first.endswith("; went back to checkpoint-2")
    assert second == "resumed from checkpoint-2"
    assert (copy / "damaged-checkpoint-3").is_dir() and not (copy / "checkpoint-3").exists()


def test_no_place_in_a_checkpoint_can_change_unseen(copy: Path) -> None:
    path = copy / "checkpoint-3"
    for name in FILES:
        file = path / name
        content = file.read_bytes()
        for bit in range(0, len(content) * 8, 31):  # every fourth byte, each of its bits in turn
            flip(file, bit)
            with pytest.raises(DamagedCheckpoint):
                read_checkpoint(path)
            file.write_bytes(content)
    assert read_checkpoint(path).step == 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, "last byte", "one more", "missing", "a folder"])
def test_a_cut_longer_or_missing_file_is_seen(name: str, share: float | str, copy: Path) -> None:
    file = copy / "checkpoint-3" / name
    content = file.read_bytes()
    if share == "missing":
        file.unlink()
    elif share == "a folder":
        file.unlink()
        file.mkdir()
    elif share == "one more":
        file.write_bytes(content + b"\n")
    else:
        file.write_bytes(content[:-1] if isinstance(share, str) else content[: int(len(content) * share)])
    assert restored_step(copy) == 2
    assert name in events(copy)[0]


def test_the_reason_names_file_and_fault(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip(copy / "checkpoint-3" / "policy.safetensors", 1000)
    with caplog.at_level(logging.WARNING):
        restored_step(copy)
    line = "checkpoint-3 is damaged (policy.safetensors: sha256 differs); went back to checkpoint-2"
    assert events(copy)[0] == line
    assert line in caplog.text


def test_a_run_goes_on_after_it_went_back_and_saves_the_same_step_again(copy: Path) -> None:
    flip(copy / "checkpoint-3" / "values.json", 100)
    with RunFolder.open(copy, verb="sft", cfg=Config()) as folder:
        folder.restore()
        folder.record(3, {"loss": 1.0 / 3})
        folder.save(3, state_at(3))
    assert restored_step(copy) == 3


def test_when_no_checkpoint_is_whole_the_run_is_refused_and_nothing_is_thrown_away(copy: Path) -> None:
    flip(copy / "checkpoint-3" / "values.json", 100)
    (copy / "checkpoint-2" / "policy.safetensors").unlink()
    metrics = (copy / "metrics.jsonl").read_bytes()
    with RunFolder.open(copy, verb="sft", cfg=Config()) as folder, pytest.raises(RunError) as caught:
        folder.restore()
    assert str(caught.value) == (
        f"{copy}: no checkpoint can be trusted: checkpoint-3 (values.json: sha256 differs); "
        "checkpoint-2 (policy.safetensors is missing). Put back a copy, or choose another --out to start again."
    )
    assert (copy / "metrics.jsonl").read_bytes() == metrics
    assert (copy / "checkpoint-3").is_dir()


def test_metrics_that_are_shorter_than_the_checkpoint_recorded_are_not_papered_over(copy: Path) -> None:
    lines = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_bytes(b"".join(lines[:2]))
    assert restored_step(copy) == 2  # whose metrics are all there
    assert events(copy)[0].startswith("checkpoint-3 is damaged (metrics.jsonl has ")


def test_a_checkpoint_under_another_number_is_not_trusted(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoint-2")
    (copy / "checkpoint-3").rename(copy / "checkpoint-9")
    shutil.copytree(copy / "checkpoint-9", copy / "checkpoint-3")
    assert restored_step(copy) == 3
    assert events(copy)[0] == "checkpoint-9 is damaged (its manifest is of checkpoint-3); went back to checkpoint-3"


def sign(body: Any) -> bytes:
    """A manifest whose hash holds: what a hostile hand writes."""
    digest = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    return (json.dumps({"body": body, "sha256": digest}, indent=1) + "\n").encode()


def forge(path: Path, change: Callable[[dict[str, Any]], None], files: dict[str, bytes] | None = None) -> None:
    """Changes checkpoint files and makes the manifest fit them again."""
    body = json.loads((path / "manifest.json").read_bytes())["body"]
    for name, content in (files or {}).items():
        (path / name).write_bytes(content)
        body["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(body)
    (path / "manifest.json").write_bytes(sign(body))


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_the_right_hash_is_no_safetensors_file_and_is_not_executed(
    protocol: int, copy: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    content = pickle.dumps(Canary(canary), protocol=protocol)
    forge(copy / "checkpoint-3", lambda body: None, {"policy.safetensors": content})
    assert restored_step(copy) == 2
    assert "policy.safetensors is no safetensors file" in events(copy)[0]
    assert not canary.exists()
    pickle.loads(content)
    assert canary.exists()  # the canary works


@pytest.mark.parametrize("name", ["optimizer.pt", "policy.bin", "training_args.bin", "scheduler.pkl"])
def test_a_pickle_beside_the_listed_files_is_not_looked_at(name: str, copy: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save(Canary(canary), copy / "checkpoint-3" / name)
    (copy / name).write_bytes(pickle.dumps(Canary(canary)))
    assert restored_step(copy) == 3
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../metrics.jsonl", "/etc/passwd", "..", "", "a/b", "\0"])
def test_a_file_name_in_a_manifest_cannot_lead_out_of_the_checkpoint(name: str, copy: Path) -> None:
    content = (copy / "metrics.jsonl").read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    forge(copy / "checkpoint-3", lambda body: body["files"].update({name: entry}))
    assert restored_step(copy) == 2


def test_not_even_a_proper_file_outside_the_checkpoint_is_taken_in(copy: Path) -> None:
    content = (copy / "checkpoint-2" / "policy.safetensors").read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    forge(copy / "checkpoint-3", lambda body: body["files"].update({"../checkpoint-2/policy.safetensors": entry}))
    assert restored_step(copy) == 2
    assert "names a file or a size that cannot be" in events(copy)[0]


def set_in(body: dict[str, Any], key: str, value: Any) -> None:
    body[key] = value


@pytest.mark.parametrize(
    "change",
    [
        lambda body: set_in(body, "files", []),
        lambda body: set_in(body, "files", {}),
        lambda body: set_in(body, "files", {"values.json": 3}),
        lambda body: set_in(body, "files", {"values.json": {"bytes": -5, "sha256": ""}}),
        lambda body: set_in(body, "files", {"values.json": {"bytes": "12", "sha256": ""}}),
        lambda body: set_in(body, "files", {"values.json": {"bytes": 10**17, "sha256": ""}}),
        lambda body: set_in(body, "files", {"values.json": {"bytes": 10**30, "sha256": ""}}),
        lambda body: set_in(body, "logs", {"../../x": 0}),
        lambda body: set_in(body, "logs", {"metrics.jsonl": "0"}),
        lambda body: set_in(body, "logs", {"metrics.jsonl": -3}),
        lambda body: set_in(body, "logs", []),
        lambda body: set_in(body, "made_with", None),
        lambda body: set_in(body, "step", 3.0),
        lambda body: set_in(body, "step", None),
        lambda body: body.pop("files") and None,
        lambda body: body.pop("logs") and None,
    ],
)
def test_a_signed_manifest_that_makes_no_sense_is_damage_and_no_crash(
    change: Callable[[dict[str, Any]], None], copy: Path
) -> None:
    forge(copy / "checkpoint-3", change)
    assert restored_step(copy) == 2


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"null", b"{}", b'{"body": 1}', b"[" * 100_000, b"\xff\xfe", b'{"body": {"a": NaN}, "sha256": ""}', b"1" * 5000],
)
def test_a_manifest_that_is_anything_else_is_damage_and_no_crash(raw: bytes, copy: Path) -> None:
    (copy / "checkpoint-3" / "manifest.json").write_bytes(raw)
    assert restored_step(copy) == 2


def test_a_pipe_in_place_of_a_file_does_not_hang(copy: Path) -> None:
    for name in ("manifest.json", "values.json"):
        path = copy / "checkpoint-3" / name
        path.unlink()
        os.mkfifo(path)
    assert restored_step(copy) == 2
    assert events(copy)[0] == "checkpoint-3 is damaged (manifest.json is no plain file); went back to checkpoint-2"


def test_a_newer_format_is_an_error_that_names_both_numbers_and_not_damage(copy: Path) -> None:
    forge(copy / "checkpoint-3", lambda body: set_in(body, "format", 2))
    with (
        RunFolder.open(copy, verb="sft", cfg=Config()) as folder,
        pytest.raises(RunError, match="has checkpoint format 2, this surefoot knows 1"),
    ):
        folder.restore()
    assert (copy / "checkpoint-3").is_dir()


def test_another_version_or_thread_count_is_noted(copy: Path) -> None:
    forge(copy / "checkpoint-3", lambda body: body["made_with"].update(torch="2.9.0", threads=96))
    assert restored_step(copy) == 3
    threads = torch.get_num_threads()
    assert events(copy)[0] == (
        f"checkpoint-3 was written with torch 2.9.0 -> {torch.__version__}, threads 96 -> {threads}; "
        "the result may differ in the last bits from an uninterrupted run"
    )


def test_names_that_only_look_like_checkpoints_are_left_alone(copy: Path) -> None:
    for name in (
        "checkpoint-",
        "checkpoint-04",
        "checkpoint-4x",
        "checkpoint-٤",
        "xcheckpoint-4",
        "checkpoint-4.bak",
        "checkpoint--4",
    ):
        (copy / name).mkdir()
    assert restored_step(copy) == 3
    assert len(events(copy)) == 1
