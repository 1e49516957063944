"""Matrix products of a decoder: linear layers side by side as one, their weights laid out once for the CPU's kernels.

Weights that nothing trains stay laid out from one rollout to the next; those that move are laid out anew for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from surefoot.lm.low_rank import LowRank, low_rank_parts

Product = Callable[[Tensor], Tensor]


class Products:
    """x -> x W^T + b, for the layers of one model.

    `keeps`: those of frozen weights stay laid out from one decoder to the next, a second copy of them in memory.
    """

    def __init__(self, *, keeps: bool = False) -> None:
        self.keeps = keeps
        self._kept: dict[int, tuple[tuple[Any, ...], Product]] = {}  # by the first weight's identity

    def of(self, layers: Sequence[Any], adapter: str | None, dtype: torch.dtype) -> Product:
        """The joint product of `layers` with an adapter's change in it, in `dtype`.

        In float32 the change is added to the weight. In half precision most of it would be rounded away there, since it is small
        beside the weight, so it stays a product of its own.
        """
        parts = [low_rank_parts(layer, adapter) for layer in layers]
        if all(part.down is None for part in parts):
            return self._frozen_or_new(parts, dtype)
        down = torch.cat([part.down for part in parts if part.down is not None])
        ups = [part.up if part.up is not None else part.weight.new_zeros(len(part.weight), 0) for part in parts]
        up = torch.block_diag(*ups)
        if dtype == torch.float32:
            weight, bias = side_by_side(parts, dtype)
            return laid_out(weight + up.float() @ down.float(), bias)
        product, down, up = self._frozen_or_new(parts, dtype), down.to(dtype), up.to(dtype).T.contiguous()
        return lambda x: product(x).addmm_(linear(x, down), up)

    def _frozen_or_new(self, parts: Sequence[LowRank], dtype: torch.dtype) -> Product:
        weights = [tensor for part in parts for tensor in (part.weight, part.bias) if tensor is not None]
        if not self.keeps or weights[0].device.type != "cpu" or any(tensor.requires_grad for tensor in weights):
            self._kept.pop(id(weights[0]), None)
            return laid_out(*side_by_side(parts, dtype))
        stamp = (dtype, *map(_stamp, weights))
        before = self._kept.get(id(weights[0]))
        if before is None or before[0] != stamp:
            self._kept[id(weights[0])] = before = (stamp, laid_out(*side_by_side(parts, dtype)))
        return before[1]


def _stamp(x: Tensor) -> tuple[int, int, float]:
    """Tells a tensor from what it was: where its numbers lie, and their sum, for not every write to them is counted."""
    return id(x), x.data_ptr(), x.detach().sum(dtype=torch.float32).item()


def side_by_side(parts: Sequence[LowRank], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of layers with one input as one layer's."""
    weight = parts[0].weight if len(parts) == 1 else torch.cat([part.weight for part in parts])
    if all(part.bias is None for part in parts):
        return weight.to(dtype), None
    biases = [part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in parts]
    return weight.to(dtype), torch.cat(biases).to(dtype)


def laid_out(weight: Float[Tensor, "O D"], bias: Float[Tensor, " O"] | None) -> Product:
    """x -> x W^T + b, with W laid out for products of many rows where this build of PyTorch can do that."""
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight)
            probe = weight.new_ones(1, weight.shape[1])
            torch.ops.mkldnn._linear_pointwise(probe, packed, bias, "none", [], "")
        except (AttributeError, RuntimeError):  # another build, or a CPU without this dtype
            return lambda x: linear(x, weight, bias)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return lambda x: linear(x, weight, bias)
