"""The decoder in parts: cut above a layer for heads that read it, or split below the first block that any role changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from surefoot.errors import ModelError
from surefoot.lm.padding_free import states_of_rows


def check_layer(setting: str, layer: int, total: int) -> None:
    """Raises ModelError where a head would read a layer that is not there."""
    if not 1 <= layer <= total:
        raise ModelError(f"{setting} = {layer} does not exist. The model has layers 1 to {total}.")


def cut_trunk(decoder: Any, layer: int, *, first: int = 0) -> Any:
    """The decoder from block `first` (counted from 0) up to `layer` blocks, with its final norm.

    The blocks are shared, not copied.
    """
    total = int(decoder.config.num_hidden_layers)
    check_layer("reward.layer", layer, total)
    name = _list_of_blocks(decoder, total)
    if name is None:
        raise ModelError(f"{type(decoder).__name__} has no single list of {total} blocks to cut. Leave reward.layer unset.")
    trunk = copy.copy(decoder)
    trunk._modules = dict(decoder._modules)
    trunk._modules[name] = nn.ModuleList(list(decoder._modules[name])[first:layer])
    trunk.config = cut_config(decoder.config, layer, first=first)
    return trunk


def cut_config(config: Any, layer: int, *, first: int = 0) -> Any:
    """A copy of a model's configuration with the blocks `first` to `layer`; per-layer lists are cut along."""
    short = copy.deepcopy(config)
    total = short.num_hidden_layers
    short.num_hidden_layers = layer - first
    if isinstance(getattr(short, "layer_types", None), list) and len(short.layer_types) == total:
        short.layer_types = short.layer_types[first:layer]
    return short


@contextmanager
def recomputing(decoder: Any, inside: Callable[[nn.Module], AbstractContextManager[None]]) -> Iterator[None]:
    """While it lasts, blocks called with gradient keep their inputs alone, and run again in the backward pass.

    `inside(block)` is what the block needs around it then (its adapter on): by that time the caller may have left its own. Raises
    ModelError where the decoder has no single list of blocks.
    """
    name = _list_of_blocks(decoder, int(decoder.config.num_hidden_layers))
    if name is None:
        raise ModelError(f"{type(decoder).__name__} has no single list of blocks. Use model.activation_checkpointing = false.")
    blocks = list(decoder._modules[name]) if torch.is_grad_enabled() else []
    for block in blocks:
        around = partial(_around, inside, block)
        draws = block.training  # dropout must drop the same once more
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=draws, context_fn=around)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own again


def _around(
    inside: Callable[[nn.Module], AbstractContextManager[None]], block: nn.Module
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), inside(block)


def _list_of_blocks(decoder: Any, total: int) -> str | None:
    names = [name for name, child in decoder.named_children() if isinstance(child, nn.ModuleList) and len(child) == total]
    return names[0] if len(names) == 1 else None


@dataclass(frozen=True, slots=True)
class SplitTrunk:
    """A decoder as two: the blocks that all roles share, without the final norm, and the blocks above."""

    lower: Any
    upper: Any

    def begin(self, rows: Int[Tensor, "B L"], lengths: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B L D"]:
        """States of right-padded rows after the shared blocks; with `lengths` run without the padding, which has the state 0."""
        return states_of_rows(self.lower, rows, lengths)

    def finish(
        self, begun: Float[Tensor, "B L D"], layer: int | None = None, *, lengths: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B L D"]:
        """Final-normed states after the last block, or after block `layer` of the whole."""
        upper = self.upper
        if layer is not None:
            upper = cut_trunk(upper, layer - int(self.lower.config.num_hidden_layers))
        return states_of_rows(upper, begun, lengths)


class SharedRows:
    """Rows that one role has sent through the shared blocks, for the next to go on from: states by the row's tokens.

    A reward head scores the answers that policy and reference then judge. `split` None: no block is common to all. At most
    `MOST_KEPT` bytes are kept; what is not found is computed again.
    """

    MOST_KEPT = 1 << 30

    def __init__(self) -> None:
        self.split: SplitTrunk | None = None
        self._states: dict[tuple[int, ...], Tensor] = {}

    def reaches(self, layer: int) -> bool:
        """Whether states after block `layer` are made of the shared blocks and others above."""
        return self.split is not None and int(self.split.lower.config.num_hidden_layers) < layer

    def forget(self) -> None:
        """Drops what was kept of earlier rows."""
        self._states.clear()

    def keep(self, rows: Sequence[Sequence[int]], begun: Float[Tensor, "B L D"]) -> None:
        """Keeps the states of token rows that are padded on the right in `begun`."""
        held = sum(states.nbytes for states in self._states.values())
        if held + begun.nbytes <= self.MOST_KEPT:
            self._states |= {tuple(row): begun[i, : len(row)].clone() for i, row in enumerate(rows)}

    def taken(self, rows: Sequence[Sequence[int]], endings: Sequence[int]) -> list[Tensor] | None:
        """The states of all rows, kept as they are or followed by one of `endings`, and dropped; None where one is missing."""
        keys = [next((key for key in _with_endings(row, endings) if key in self._states), None) for row in rows]
        if any(key is None for key in keys):
            return None
        found = [self._states[key][: len(row)] for key, row in zip(keys, rows, strict=True) if key is not None]
        for key in {key for key in keys if key is not None}:
            del self._states[key]
        return found


def _with_endings(row: Sequence[int], endings: Sequence[int]) -> Iterator[tuple[int, ...]]:
    yield tuple(row)
    yield from ((*row, ending) for ending in endings)


@torch.no_grad()
def split_trunk(decoder: Any, at: int) -> SplitTrunk | None:
    """The decoder split above its first `at` blocks; None where the two halves are not the whole.

    A decoder may add to its input embeddings (GPT-2's positions), scale them (Gemma), or call its final norm otherwise: whether
    the halves give the whole's states is asked of the model itself.
    """
    total = int(decoder.config.num_hidden_layers)
    if not 0 < at < total or _list_of_blocks(decoder, total) is None or not isinstance(getattr(decoder, "norm", None), nn.Module):
        return None
    lower = cut_trunk(decoder, at)
    lower._modules["norm"] = nn.Identity()
    split = SplitTrunk(lower, cut_trunk(decoder, total, first=at))
    rows = torch.arange(8, device=next(decoder.parameters()).device).reshape(2, 4) % decoder.config.vocab_size
    whole = decoder(input_ids=rows, use_cache=False).last_hidden_state
    return split if torch.equal(split.finish(split.begin(rows)), whole) else None
