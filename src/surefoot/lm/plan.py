"""Sizes of a model from its configuration alone, for memory plans: nothing is loaded, no weight is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from surefoot.config import ModelConfig
from surefoot.errors import ModelError, first_line
from surefoot.lm.backbone import resolve


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Counts of numbers, not bytes. `linear_edges` is the sum over linear layers of inputs plus outputs."""

    total: int
    num_layers: int
    width: int
    linear_edges: int
    activations_per_token: int
    cache_per_token: int

    def adapter(self, rank: int, num_layers: int | None) -> int:
        """Weights of a LoRA adapter of `rank` on the linear layers of `num_layers` blocks (None: of all)."""
        return rank * self.linear_edges * (num_layers or self.num_layers) // self.num_layers

    def activations(self, *, checkpointing: bool) -> int:
        """What a backward pass keeps of a token; with activation checkpointing the inputs of the blocks, and one block's own."""
        if not checkpointing:
            return self.activations_per_token
        return self.num_layers * self.width + self.activations_per_token // self.num_layers


def model_sizes(cfg: ModelConfig) -> ModelSizes:
    """Sizes of `cfg.name`. Raises ModelError where its configuration cannot be read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = resolve(cfg.name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # figures that no model can have raise anything
        raise ModelError(
            f"model.name = {cfg.name!r}: its configuration cannot be read: {first_line(error).rstrip('.')}. Copy the model again."
        ) from error
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    text = config.get_text_config()
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSizes(
        total=sum(p.numel() for p in model.parameters()),
        num_layers=text.num_hidden_layers,
        width=text.hidden_size,
        linear_edges=sum(m.in_features + m.out_features for m in linears),
        # what a backward pass keeps: the input of every linear layer and about as much again for norms and attention
        activations_per_token=2 * sum(m.in_features for m in linears),
        cache_per_token=2 * text.num_hidden_layers * kv_heads * head_width,
    )
