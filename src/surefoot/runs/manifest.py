"""manifest.json and config.yaml: what a run was started with, and whether what is asked for now is the same."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch
import yaml

import surefoot
from surefoot.config import Config
from surefoot.errors import RunError
from surefoot.runs.checkpoint import checkpoints_in
from surefoot.runs.durable import write_atomic

REWOUND = ("metrics.jsonl", "timings.jsonl", "samples.jsonl", "replay.jsonl")  # cut back on resume; events.jsonl keeps all
FREE = {  # settings that may change on resume, and what the change does
    "threads": "the last bits may differ",
    "report_to": "trackers are told what they lack",
}
_ABSENT = "(not set)"
_SHOWN = 8


@dataclass
class Manifest:
    """The content of manifest.json; `update` writes it through. It holds no wall times: two equal runs have equal manifests."""

    folder: Path
    content: dict[str, Any]

    @classmethod
    def new(cls, folder: Path, verb: str, seed: int) -> Self:
        content = {
            "verb": verb,
            "status": "started",
            "reason": "",
            "seed": seed,
            "versions": {"python": platform.python_version(), **versions(), **_optional_versions()},
            "platform": {"system": platform.platform(), "machine": platform.machine(), "cores": os.cpu_count()},
            "git": _git_state(),
            "inputs": {},
            "outputs": {},
            "facts": {},
        }
        return cls(folder, content)

    @classmethod
    def read(cls, folder: Path) -> Self:
        return cls(folder, load_manifest(folder))

    def update(self, **fields: Any) -> None:
        """Replaces top-level fields and writes the file, whole.

        Raises:
            RunError: the disk refuses, or a field is not JSON.
        """
        content = {**self.content, **fields}
        try:
            text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise RunError(f"{self.folder / 'manifest.json'} cannot hold {', '.join(fields)}: {error}.") from error
        write_atomic(self.folder / "manifest.json", (text + "\n").encode("utf-8", "backslashreplace"))
        self.content = content


def load_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the run folder `path`.

    Raises:
        RunError: no run folder, or a manifest that is no longer JSON.
    """
    file = path / "manifest.json"
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{path} is no run folder: it has no manifest.json. Give the folder that --out named.") from error
    except OSError as error:
        raise RunError(f"{file}: {os.strerror(error.errno or 0).lower()}. Give a run folder that can be read.") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file} is damaged ({error}). Put back a copy, or choose another --out.") from error
    if (
        not isinstance(content, dict)
        or not {"verb", "status"} <= content.keys()
        or not all(isinstance(content.get(name), dict) for name in ("inputs", "outputs", "facts"))
    ):
        raise RunError(
            f"{file} is not the manifest of a run: it lacks verb, status, inputs, outputs or facts. Choose another --out."
        )
    return content


def versions() -> dict[str, Any]:
    """What bit-for-bit equality depends on, beside settings and inputs; a checkpoint records it."""
    return {
        "surefoot": surefoot.__version__,
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _optional_versions() -> dict[str, str]:
    found = {}
    for name in ("transformers", "peft", "safetensors", "tokenizers", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git_state() -> dict[str, Any] | None:
    """Commit of the repository around the working directory, and whether tracked files differ from it; None outside of one."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "changed": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=5, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):  # no git, or a repository too slow to ask: the run does not depend on it
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def render_config(cfg: Config) -> str:
    """The resolved settings as YAML, defaults included."""
    text: str = yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def read_config(folder: Path) -> dict[str, Any]:
    """The settings that the run in `folder` was started with, as plain values.

    Raises:
        RunError: config.yaml is missing or not a mapping.
    """
    file = folder / "config.yaml"
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise RunError(f"{file} cannot be read ({type(error).__name__}). Put back a copy, or choose another --out.") from error
    if not isinstance(content, dict):
        raise RunError(f"{file} holds no settings. Put back a copy, or choose another --out.")
    return content


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new), for every leaf that differs."""
    old, new = _flat(before), _flat(now)
    keys = [*new, *(key for key in old if key not in new)]
    return {
        key: (old.get(key, _ABSENT), new.get(key, _ABSENT))
        for key in keys
        if _differ(old.get(key, _ABSENT), new.get(key, _ABSENT))
    }


def _differ(old: Any, new: Any) -> bool:
    return json.dumps(old, sort_keys=True, default=str) != json.dumps(
        new, sort_keys=True, default=str
    )  # 1 and True, () and [] are JSON's affair


def _unknown_then(changed: Mapping[str, tuple[Any, Any]], defaults: Mapping[str, Any]) -> set[str]:
    """Settings that came with a later version and stand at their defaults, which change nothing of a run begun without them."""
    return {key for key, (old, new) in changed.items() if old is _ABSENT and key in defaults and not _differ(new, defaults[key])}


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def sentence_of(path: Path, kind: str, changed: Mapping[str, tuple[Any, Any]]) -> str:
    """One line that names what changed: "runs/a was started with other settings: ppo.kl_coef 0.05 -> 0.1. ..."."""
    shown = [f"{key} {old} -> {new}" for key, (old, new) in list(changed.items())[:_SHOWN]]
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    was = changed.get("model.dtype")
    named = "" if was is None else f" (auto differs from machine to machine: --model.dtype {was[0]})"
    whole = f"{path} was started with other {kind}: {', '.join(shown)}{more}."
    return f"{whole} Choose another --out, or go on with the same {kind}{named}."


def has_progress(path: Path) -> str:
    """What of a run is in the folder, in words; "" when there is nothing that a new start would overwrite."""
    steps = [found.name for _, found in checkpoints_in(path)]
    logs = [name for name in REWOUND if (path / name).is_file() and (path / name).stat().st_size]
    made = ["a finished run"] if (path / "manifest.json").is_file() and load_manifest(path)["status"] == "done" else []
    # a demo keeps the runs of its stages in folders of their own, and their progress is its progress
    inner = [f"{child.name}/" for child in sorted(path.iterdir()) if (child / "config.yaml").is_file() and has_progress(child)]
    return ", ".join([*logs, *steps, *made, *inner])


def continue_or_begin(path: Path, verb: str, cfg: Config) -> tuple[Manifest, list[str]]:
    """The manifest of the run in `path`, new or continued, with notes on differences that do no harm."""
    rendered = render_config(cfg)
    began = has_progress(path)
    notes = []
    if began:
        before = Manifest.read(path)
        if before.content["verb"] != verb:
            raise RunError(f"{path} holds a run of surefoot {before.content['verb']}, not {verb}. Choose another --out.")
        changed = changes(read_config(path), cfg.model_dump(mode="json"))
        unknown = _unknown_then(changed, _flat(type(cfg)().model_dump(mode="json")))
        if hard := {key: pair for key, pair in changed.items() if key not in FREE and key not in unknown}:
            raise RunError(sentence_of(path, "settings", hard))
        notes = [f"{key} changed from {old} to {new}: allowed; {FREE[key]}" for key, (old, new) in changed.items() if key in FREE]
        notes += [f"{', '.join(sorted(unknown))}: unknown to the version that began this run, at their defaults"] * bool(unknown)
        manifest = before
    else:
        manifest = Manifest.new(path, verb, cfg.seed)
    if not began or notes:
        write_atomic(path / "config.yaml", rendered.encode())
    if manifest.content["status"] != "done":
        manifest.update(status="started", reason="")
    return manifest, notes
