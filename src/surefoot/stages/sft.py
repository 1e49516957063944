"""Supervised fine-tuning (8.3.5, first stage): the policy's starting point, and the reference that PPO is tethered to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surefoot.config import Config
from surefoot.lm.adapters import adapter_parameters, add_adapter
from surefoot.lm.backbone import Backbone
from surefoot.lm.batches import CompletionTask
from surefoot.progress import Progress
from surefoot.runs import RunFolder
from surefoot.stages.cards import write_card
from surefoot.stages.inputs import digest
from surefoot.stages.supervised import FitStep, fit, total_steps

ADAPTER = "sft"


@dataclass(frozen=True, slots=True)
class SFTParts:
    """What SFT needs: a backbone, training and held-out sequences."""

    backbone: Backbone
    train: CompletionTask
    validation: CompletionTask
    parameters: list[tuple[str, nn.Parameter]]
    adapter: str | None


def prepare(backbone: Backbone, cfg: Config) -> tuple[str | None, list[tuple[str, nn.Parameter]]]:
    """Makes the weights that SFT trains trainable: an adapter that starts at zero, or all of them."""
    if cfg.model.tuning == "lora":
        add_adapter(backbone.model, ADAPTER, cfg.model, seed=cfg.seed)
        return ADAPTER, adapter_parameters(backbone.model, ADAPTER)
    backbone.model.requires_grad_(True)
    return None, list(backbone.model.named_parameters())


def steps(parts: SFTParts, cfg: Config, folder: RunFolder | None = None) -> Iterator[FitStep]:
    """Yields after every optimiser step; `loss` is nats a token. Dropout, where the model has any, is on in these steps alone."""
    torch.manual_seed(cfg.seed)  # dropout takes no generator; a resumed run gets the state it was saved with
    try:
        yield from fit(parts.train, parts.parameters, cfg.sft, seed=cfg.seed, validation=parts.validation, folder=folder)
    finally:
        parts.backbone.model.eval()


def inputs(parts: SFTParts) -> dict[str, str]:
    """What the run was made from, as hashes for its manifest."""
    rows = {name: digest(task.rows) for name, task in (("train", parts.train), ("validation", parts.validation))}
    return {"model": parts.backbone.fingerprint, **rows}


def run(cfg: Config, folder: RunFolder, progress: Progress, **given: Any) -> None:
    from surefoot.build import build_sft

    parts = build_sft(cfg, progress.say, **given)
    folder.declare(inputs(parts))
    progress.start("sft", total_steps(len(parts.train), cfg.sft), "steps")
    figures: dict[str, object] = {}
    for step in steps(parts, cfg, folder):
        progress.update(step.step, step.metrics)
        figures |= {key: value for key, value in step.metrics.items() if key.startswith("validation/")}
    with folder.final() as final:
        parts.backbone.save(final, merge=parts.adapter)
        write_card(final, "sft", cfg, parts.backbone.source, figures)
    folder.finish(base=parts.backbone.source)
