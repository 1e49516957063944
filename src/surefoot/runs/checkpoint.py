"""Checkpoints: safetensors and JSON in a folder whose manifest holds size and sha256 of every file. Nothing here reads a pickle.

checkpoint-40/
  policy.safetensors, optimizer.safetensors, ...   one file for each name of `State.tensors`
  values.json                                      `State.values`
  manifest.json                                    {"body": {format, step, files, logs, made_with}, "sha256": of the body}
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from surefoot.errors import Diverged, RunError
from surefoot.faults import fault_point
from surefoot.runs.durable import NAME, beside, explained, hash_file, move_into_place, sync, validate_name, write_synced

FORMAT = 1
_FOLDER = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")
FINITE_FILES = ("weights", "optimizer")  # of `State.tensors`: a state with NaN or infinity in them is not worth resuming
SUMMED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # dtypes that have a sum
_MANIFEST_LIMIT = 16_000_000  # bytes; a hostile manifest must not fill the memory


class DamagedCheckpoint(Exception):
    """Why a checkpoint cannot be trusted, as a fragment: "policy.safetensors: sha256 differs"."""


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint holds. `tensors`: file name -> tensor name -> tensor. `values`: JSON; floats come back bit for bit."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state with where it belongs: `logs` are the lengths, in bytes, of the JSONL files at that step."""

    step: int
    state: State
    logs: Mapping[str, int]
    made_with: Mapping[str, Any]


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of everything named checkpoint-N in `folder`, newest first, whole or not."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    return sorted(found, reverse=True)


def write_checkpoint(
    folder: Path, step: int, state: State, *, logs: Mapping[str, int], made_with: Mapping[str, Any], kept: str
) -> Path:
    """Writes `folder/checkpoint-STEP`, whole or not at all. `kept`: what a failure says of the checkpoint before.

    Raises:
        RunError: no room (with the bytes needed), no permission, a value that JSON cannot give back.
        Diverged: a weight or a moment of the optimiser is not finite.
    """
    target = folder / f"checkpoint-{step}"
    if bad := not_finite_in(state):
        raise Diverged(f"{bad}, so {target.name} was not written. {kept}")
    values = render_values(state.values)
    needed = len(values) + sum(tensor.nbytes for tensors in state.tensors.values() for tensor in tensors.values())
    temporary = beside(target, "tmp")
    with explained(f"write {target.name}", folder, needed, kept):
        try:
            temporary.mkdir()
            _write_files(temporary, step, state.tensors, values)
            manifest = {
                "format": FORMAT,
                "step": step,
                "files": _fingerprints(temporary),
                "logs": dict(logs),
                "made_with": dict(made_with),
            }
            write_synced(temporary / "manifest.json", _render_manifest(manifest))
            sync(temporary)
            fault_point("checkpoint-rename", step)
            move_into_place(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    fault_point("checkpoint-after", step)
    return target


def _write_files(folder: Path, step: int, files: Mapping[str, Mapping[str, Tensor]], values: bytes) -> None:
    for name, tensors in files.items():
        path = folder / f"{validate_name(name, 'checkpoint file')}.safetensors"
        safetensors.torch.save_file(_savable(tensors), path)
        sync(path)
        fault_point("checkpoint-files", step)
    write_synced(folder / "values.json", values)


def all_finite(x: Tensor) -> bool:
    """Whether every number of `x` is finite. A finite sum says so in one pass over the memory, a twentieth of the time."""
    if x.dtype in SUMMED and bool(x.sum().isfinite()):
        return True
    return bool(x.isfinite().all())  # a sum of large numbers may overflow


def not_finite_in(state: State) -> str:
    """Where weights or optimiser hold a number that is not finite, as the begin of a sentence; "" where they do not."""
    for file in FINITE_FILES:
        for name, tensor in state.tensors.get(file, {}).items():
            if not all_finite(tensor):
                count = int((~tensor.isfinite()).sum())
                return f"{count:,} of {tensor.numel():,} numbers of {name} ({file}) are not finite"
    return ""


def _savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and none sharing memory with another: safetensors refuses tied weights and views."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        result[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return result


def _fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in sorted(folder.iterdir())}


def _render_manifest(body: Mapping[str, Any]) -> bytes:
    plain = json.dumps(body, indent=1, allow_nan=False)
    return (json.dumps({"body": body, "sha256": hashlib.sha256(plain.encode()).hexdigest()}, indent=1) + "\n").encode()


def render_values(values: Mapping[str, Any]) -> bytes:
    """JSON that gives the same values back. Tuples come back as lists.

    Raises:
        RunError: a number that is not finite, a key that is not a string, or a type that JSON does not know; with its place.
    """
    _check_values(values, "values")
    return (json.dumps(values, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def _check_values(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise RunError(f"checkpoint {where} has the key {key!r}; JSON would bring it back as text. Use text as key.")
            _check_values(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check_values(item, f"{where}[{position}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RunError(
            f"checkpoint {where} = {value} is not finite. A state with such a number is not worth resuming; find its source."
        )
    elif not (value is None or isinstance(value, str | bool | int | float)):
        raise RunError(
            f"checkpoint {where} is {type(value).__name__}; JSON holds text, numbers, booleans, lists, objects and null."
        )


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies a checkpoint. What is parsed are the very bytes whose hash was compared.

    Raises:
        DamagedCheckpoint: anything is missing, cut, changed, or not what its name says, or a weight is not finite.
        RunError: it was written in a newer format, or may not be read.
    """
    try:
        body = _read_manifest(path)
        logs, made_with = body["logs"], body["made_with"]
        if not isinstance(made_with, dict) or not all(isinstance(length, int) and length >= 0 for length in logs.values()):
            raise DamagedCheckpoint("manifest.json does not make sense")
        entries = dict(body["files"])
        values = json.loads(_read_file(path, "values.json", entries.pop("values.json")))
        # one file at a time: the bytes of a file are gone before the next is read
        tensors = {name.removesuffix(".safetensors"): _read_tensors(path, name, entry) for name, entry in entries.items()}
        state = State(tensors, values)
        if bad := not_finite_in(state):
            raise DamagedCheckpoint(bad)
        return Checkpoint(int(body["step"]), state, logs, made_with)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"manifest.json or values.json does not make sense ({error!r})") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    raw = _read_bytes(path / "manifest.json", _MANIFEST_LIMIT)
    try:
        body = json.loads(raw)["body"]
        rendered = _render_manifest(body)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint("manifest.json cannot be read") from error
    if rendered != raw:
        raise DamagedCheckpoint("manifest.json: sha256 differs")
    if body["format"] != FORMAT:
        raise RunError(
            f"{path} has checkpoint format {body['format']}, this surefoot knows {FORMAT}. Resume with the version that wrote it."
        )
    if path.name != f"checkpoint-{body['step']}":
        raise DamagedCheckpoint(f"its manifest is of checkpoint-{body['step']}")
    result: dict[str, Any] = body
    return result


def _read_file(folder: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    size = entry["bytes"]
    if not isinstance(size, int) or size < 0 or not NAME.fullmatch(name):  # a name may not lead out of the folder
        raise DamagedCheckpoint("manifest.json names a file or a size that cannot be")
    path = folder / name
    content = _read_bytes(path, size)
    if len(content) != size:
        raise DamagedCheckpoint(f"{path.name}: {len(content):,} bytes, not {size:,}")
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise DamagedCheckpoint(f"{path.name}: sha256 differs")
    return content


def _read_bytes(path: Path, limit: int) -> bytes:
    """Up to `limit` + 1 bytes of a regular file, so that one byte too many is seen and a pipe or a giant is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DamagedCheckpoint(f"{path.name} is no plain file")
            return file.read(
                min(limit, status.st_size) + 1
            )  # read() makes room for what is asked, and a manifest may ask for anything
    except PermissionError as error:
        raise RunError(f"{path} may not be read (permission denied). Make it readable, or choose another --out.") from error
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{path.name} is missing") from error
    except OSError as error:
        raise DamagedCheckpoint(f"{path.name}: {os.strerror(error.errno or 0).lower()}") from error


def _read_tensors(folder: Path, name: str, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    content = _read_file(folder, name, entry)
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise DamagedCheckpoint(f"{name} is no safetensors file ({error})") from error


def saved_state(run: Path) -> State:
    """The state of the newest checkpoint of the run folder `run` whose hashes hold, read by another run.

    Raises:
        RunError: there is none.
    """
    for _, path in checkpoints_in(run):
        try:
            return read_checkpoint(path).state
        except DamagedCheckpoint:
            continue
    raise RunError(f"{run} holds no checkpoint that can be trusted. Name another run folder, or run it again.")
