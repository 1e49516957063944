"""What of a run folder must be equal, byte for byte, in two runs that claim to be the same."""

from __future__ import annotations

from pathlib import Path

from surefoot.preferences.store import PreferenceStore
from surefoot.runs import hash_file, hash_folder, load_manifest


def fingerprint(path: Path) -> dict[str, str]:
    """Hashes of all that must be identical; of a checkpoint all but its manifest, which knows the length of timings.jsonl."""
    assert load_manifest(path)["status"] == "done"
    newest = max(path.glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))
    files = [path / "metrics.jsonl", path / "samples.jsonl", *newest.glob("*.safetensors"), newest / "values.json"]
    found = {file.relative_to(path).as_posix(): hash_file(file) for file in files}
    if (path / "final").exists():
        found["final"] = hash_folder(path / "final")
    if (path / "preferences.db").exists():
        with PreferenceStore.open(path / "preferences.db") as store:
            found["votes"] = store.digest()
    return found
