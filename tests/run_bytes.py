"""What of a run folder must be equal, byte for byte, in two runs that claim to be the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from surefoot.preferences.store import PreferenceStore
from surefoot.runs import hash_file, hash_folder, load_manifest, read_jsonl


def fingerprint(path: Path) -> dict[str, str]:
    """Hashes of all that must be identical; of a checkpoint all but its manifest, which knows the length of timings.jsonl."""
    assert load_manifest(path)["status"] == "done"
    newest = max(path.glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))
    files = [
        *(path / f"{log}.jsonl" for log in ("metrics", "samples", "replay")),
        *newest.glob("*.safetensors"),
        newest / "values.json",
    ]
    found = {file.relative_to(path).as_posix(): hash_file(file) for file in files}
    if (path / "final").exists():
        found["final"] = hash_folder(path / "final")
    if (path / "preferences.db").exists():
        with PreferenceStore.open(path / "preferences.db") as store:
            found["votes"] = store.digest()
    return found


def assert_equal_up_to_rounding(found: Path, expected: Path) -> None:
    """Every number recorded and every tensor of the last checkpoint, where products may be summed in another order."""
    rows, others = (read_jsonl(folder / "metrics.jsonl") for folder in (found, expected))
    assert len(rows) == len(others) > 0
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
    files = sorted(file.relative_to(expected) for file in expected.glob(f"checkpoint-{rows[-1]['step']}/*.safetensors"))
    assert len(files) == 4
    for file in files:
        tensors, theirs = (load_file(folder / file) for folder in (found, expected))
        assert tensors.keys() == theirs.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-5)
    assert load_manifest(found)["status"] == load_manifest(expected)["status"] == "done"
    assert (found / "final").exists()
