"""Stages one after the other, each in a run folder of its own inside that of the whole: what demo and rounds are made of."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from surefoot.config import Config
from surefoot.progress import Progress
from surefoot.runs import RunFolder


def run_stage(
    folder: RunFolder,
    name: str,
    verb: str,
    stage: Callable[..., None],
    cfg: Config,
    given: Mapping[str, Any],
    progress: Progress,
) -> Path:
    """Runs `stage` in the folder `name`, unless it is done; an interrupted one goes on. Returns the folder."""
    folder.check_stop()
    path = folder.path / name
    with RunFolder.open(path, verb=verb, cfg=cfg, resume="auto") as inner:
        if inner.is_done:
            progress.say(f"{name}: done before")
            return path
        began = time.perf_counter()
        try:
            stage(cfg, inner, progress, **given)
        finally:
            line = json.dumps({"stage": name, "seconds": round(time.perf_counter() - began, 2)})
            with (folder.path / "stages.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    gc.collect()  # the stage's models are gone before the next one loads its own
    return path


def sft_config(cfg: Config) -> Config:
    """SFT from the base model, on all its blocks. Random weights give an adapter nothing to adapt: tiny is trained whole."""
    model = cfg.model.model_copy(update={"tuning": "full"} if cfg.model.name == "tiny" else {"lora_layers": None})
    return cfg.model_copy(update={"model": model})


def on_model(cfg: Config, model: Path | str, **sections: Mapping[str, Any]) -> Config:
    """`cfg` on the model of an earlier stage, with some settings of some sections changed."""
    changed: dict[str, Any] = {name: getattr(cfg, name).model_copy(update=dict(keys)) for name, keys in sections.items()}
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"name": str(model)}), **changed})
