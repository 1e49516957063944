"""Rows of unequal length one behind the other, so that products have tokens alone; only attention sees where a row begins.

A micro-batch of rows is one row of all their tokens, each at its own position. Attention takes the rows apart again: on a CPU
into neighbours of one length, which costs nothing; on a GPU, where many small calls are slow, into rows padded for this one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROUND = 16  # half precision on a CPU: oneDNN makes and keeps a kernel for every number of rows, so they are few


@dataclass(frozen=True, slots=True)
class FlatRows:
    """Rows from column 0 of [B, L] that are read: `lengths` of them, at `places` of [B * L], row by row.

    `pads` says how attention takes them apart: into rows padded for this step, or into neighbours of one length. `taken_apart`
    has an entry for each time that attention did.
    """

    places: Int[Tensor, " N"]
    lengths: tuple[int, ...]
    width: int
    pads: bool
    taken_apart: list[bool] = field(default_factory=list)

    @classmethod
    def of(cls, lengths: Int[Tensor, " B"], width: int, multiple: int) -> FlatRows | None:
        """Rows of these lengths, read by a `multiple` of tokens; None where there is no padding to leave out."""
        is_read = rounded_up(torch.arange(width, device=lengths.device) < lengths[:, None], multiple)
        places = is_read.flatten().nonzero()[:, 0]
        if len(places) in (0, is_read.numel()):
            return None
        return cls(places, tuple(is_read.sum(1).tolist()), width, pads=lengths.device.type != "cpu")

    def flat(self, x: Tensor) -> Tensor:
        """[B, L, ...] as [1, N, ...]."""
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def padded(self, x: Float[Tensor, "1 N D"]) -> Float[Tensor, "B L D"]:
        """[1, N, D] as [B, L, D], 0 where nothing was read."""
        out = x.new_zeros((len(self.lengths) * self.width, x.shape[2])).index_copy(0, self.places, x[0])
        return out.view(-1, self.width, x.shape[2])

    @property
    def positions(self) -> Int[Tensor, "1 N"]:
        """Of each token in its row."""
        return (self.places % self.width)[None]

    def rectangles(self, *heads: Float[Tensor, "1 H N d"]) -> list[tuple[Tensor, ...]]:
        """Queries, keys and values as batches [b, H, l, d] of rows of one width."""
        self.taken_apart.append(True)
        if self.pads:
            return [tuple(self._padded_heads(x) for x in heads)]
        out, begin = [], 0
        for length, same in groupby(self.lengths):
            end = begin + length * len(list(same))
            if end > begin:
                out.append(tuple(x[0, :, begin:end].unflatten(1, (-1, length)).transpose(0, 1) for x in heads))
            begin = end
        return out

    def _padded_heads(self, x: Float[Tensor, "1 H N d"]) -> Float[Tensor, "B H L d"]:
        return self.padded(x.transpose(1, 2).flatten(2)).unflatten(2, (x.shape[1], -1)).transpose(1, 2)

    def flattened(self, parts: Sequence[Float[Tensor, "b l H d"]]) -> Float[Tensor, "1 N H d"]:
        """What attention makes of `rectangles`, as tokens again."""
        if self.pads:
            return self.flat(parts[0])
        return torch.cat([part.flatten(0, 1) for part in parts])[None]


def rounded_up(is_token: Bool[Tensor, "B L"], multiple: int) -> Bool[Tensor, "B L"]:
    """The tokens, and as much of the padding behind them as makes their number a multiple, where there is as much."""
    spare = (~is_token).flatten().nonzero()[:, 0][: -int(is_token.sum()) % multiple]
    return is_token.flatten().index_fill(0, spare, True).view_as(is_token)


def states_of_rows(
    trunk: Any, x: Int[Tensor, "B L"] | Float[Tensor, "B L D"], lengths: Int[Tensor, " B"] | None
) -> Float[Tensor, "B L D"]:
    """A decoder's final-normed states of right-padded token rows, or of their states below it.

    Attention is causal and padding stands on the right, so no mask is needed and no real token's state depends on padding. With
    `lengths` padding is left out and has the state 0; the decoder's attention must then be ours (lm/attention.py).
    """
    name = "inputs_embeds" if x.is_floating_point() else "input_ids"
    rows = None if lengths is None else FlatRows.of(lengths, x.shape[1], multiple_for(trunk))
    if rows is None:
        states: Tensor = trunk(**{name: x}, use_cache=False).last_hidden_state
        return states
    unused = torch.zeros((1, 1, 1, 1), device=x.device)  # a mask of four dimensions is taken as it is: none is made
    given = {name: rows.flat(x), "position_ids": rows.positions, "attention_mask": unused}
    states = trunk(**given, flat_rows=rows, use_cache=False).last_hidden_state
    if len(rows.taken_apart) != trunk.config.num_hidden_layers:
        raise RuntimeError("a decoder's attention did not take its rows apart. Use model.padding_free = false.")
    return rows.padded(states)


def multiple_for(trunk: Any) -> int:
    """By what number of tokens this decoder's products should be read."""
    weight = next(trunk.parameters())
    is_half = weight.dtype != torch.float32 or torch.is_autocast_enabled(weight.device.type)
    return ROUND if is_half and weight.device.type == "cpu" else 1
