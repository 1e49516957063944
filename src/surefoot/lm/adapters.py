"""LoRA adapters through PEFT, several on one backbone: which one is on, their weights, and the backbone with one merged in.

PEFT switches adapters by rewriting `requires_grad` of every adapter; a graph that was built before the switch would then lose its
gradients. `active_adapter` therefore restores the flags when the forward is over.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surefoot.config import ModelConfig
from surefoot.errors import ModelError
from surefoot.lm.low_rank import fuse


def add_adapter(model: Any, name: str, cfg: ModelConfig, *, seed: int) -> None:
    """Puts a LoRA adapter on the linear layers of the last `lora_layers` blocks (default: all). It starts at zero, in float32.

    With fewer blocks the backward pass ends at the first of them.
    """
    if adapter_parameters(model, name):
        raise ModelError(
            f"this model carries an adapter {name!r} already. Give each run a model of its own (for example run.model)."
        )
    width = int(model.config.get_text_config().hidden_size)
    if cfg.lora_rank > width:
        raise ModelError(f"model.lora_rank = {cfg.lora_rank} is more than the model's width of {width}. Use at most {width}.")
    targets = "all-linear" if cfg.lora_layers is None else _linear_names(model, cfg.lora_layers)
    config = LoraConfig(
        r=cfg.lora_rank,
        lora_alpha=cfg.lora_alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank: any number will do
        target_modules=targets,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a second adapter: several on one backbone are the design
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=name)
    for _, layer in _lora_layers(model):
        fuse(layer)
    for _, parameter in adapter_parameters(model, name):
        parameter.data = parameter.data.float()  # masters: bf16 would swallow small steps
        parameter.requires_grad_(True)


def _linear_names(model: Any, num_blocks: int) -> list[str]:
    """Full names of the linear layers in the last `num_blocks` blocks of the decoder, those that carry an adapter included."""
    total = int(model.config.get_text_config().num_hidden_layers)
    if num_blocks > total:
        raise ModelError(f"model.lora_layers = {num_blocks}, but the model has {total} blocks. Use at most {total}.")
    lists = [m for m in model.get_decoder().children() if isinstance(m, nn.ModuleList) and len(m) == total]
    if len(lists) != 1:
        raise ModelError(f"{type(model).__name__} has no single list of {total} blocks. Leave model.lora_layers unset.")
    wanted = {
        id(m) for block in list(lists[0])[total - num_blocks :] for m in block.modules() if isinstance(m, (nn.Linear, Conv1D))
    }
    names = [name for name, module in model.named_modules() if id(module) in wanted and ".lora_" not in name]
    return [name.removesuffix(".base_layer") for name in names]


def adapter_parameters(model: nn.Module, name: str) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of one adapter, in the model's order."""
    return [(key, parameter) for key, parameter in model.named_parameters() if f".{name}." in key and ".lora_" in key]


def _lora_layers(model: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(key, module) for key, module in model.named_modules() if isinstance(module, LoraLayer)]


@contextmanager
def active_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Runs the block with adapter `name` on, all others off; None runs the bare backbone."""
    layers = [layer for _, layer in _lora_layers(model)]
    flags = [
        (p, p.requires_grad) for layer in layers for key in layer.adapter_layer_names for p in getattr(layer, key).parameters()
    ]
    for layer in layers:
        if name is not None and name in layer.lora_A:
            layer.set_adapter([name])
            layer._disable_adapters = False
        else:
            layer.enable_adapters(False)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    yield


def plain_state_dict(model: nn.Module, merge: str | None = None) -> dict[str, Tensor]:
    """The backbone's weights under their plain names, with adapter `merge` added in: W + (alpha / rank) B A."""
    deltas = {}
    if merge is not None:
        deltas = {
            f"{key}.weight": layer.get_delta_weight(merge)
            for key, layer in _lora_layers(model)
            if isinstance(layer, LoraLinear) and merge in layer.lora_A
        }
    plain = {}
    for key, tensor in model.state_dict().items():
        if ".lora_" in key:
            continue
        name = key.replace(".base_layer.", ".")
        delta = deltas.pop(name, None)
        plain[name] = tensor if delta is None else (tensor.float() + delta.float()).to(tensor.dtype)
    return plain
