"""What a tracker holds, read by its own reader or from its own files: (step, key, value), one for each time it was told."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Told = tuple[int, str, float]


def tensorboard_told(folder: Path) -> list[Told]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return [
        (event.step, value.tag, value.simple_value)
        for file in sorted((folder / "tensorboard").iterdir())
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def mlflow_told(folder: Path) -> list[Told]:
    import mlflow

    client = mlflow.MlflowClient()
    run_id = told_to(folder)["mlflow"]["run"]
    assert client.get_run(run_id).info.run_name == "/".join(folder.parts[-2:])
    keys = client.get_run(run_id).data.metrics
    return [(point.step, key, point.value) for key in keys for point in client.get_metric_history(run_id, key)]


def trackio_told(folder: Path) -> list[Told]:
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("surefoot", told_to(folder)["trackio"]["run"])
    return [(row["step"], key, value) for row in rows for key, value in row.items() if key not in ("step", "timestamp")]


def wandb_told(folder: Path) -> list[Told]:
    from wandb.proto.wandb_internal_pb2 import Record

    run_id = told_to(folder)["wandb"]["run"]
    found = []
    for file in sorted((folder / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")):
        for record in _until_its_end(file, Record):
            row: dict[str, Any] = {}
            for item in record.history.item:
                row["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
            found += [(row["_step"], key, value) for key, value in row.items() if not re.match(r"_(step|runtime|timestamp)", key)]
    return found


def _until_its_end(file: Path, kind: Any) -> list[Any]:
    """The records of a run that was finished: W&B's own process may write the last of them a moment later."""
    latest = time.monotonic() + 120
    while True:
        records = [kind.FromString(content) for content in _leveldb_records(file.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < latest, f"{file} has no end"
        time.sleep(0.1)


def _leveldb_records(content: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log behind W&B's 7 bytes: blocks of 32 KiB; a part is checksum, length, kind, bytes.

    Kinds: 1 whole, 2 first, 3 middle, 4 last.
    """
    at, whole = 7, b""
    while at + 7 <= len(content):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        if at + 7 + size > len(content):
            return  # being written
        whole = (b"" if kind in (1, 2) else whole) + content[at + 7 : at + 7 + size]
        if kind in (1, 4):
            yield whole
        at += 7 + size


def told_to(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trackers.json").read_text())


READERS = {"tensorboard": tensorboard_told, "wandb": wandb_told, "trackio": trackio_told, "mlflow": mlflow_told}
