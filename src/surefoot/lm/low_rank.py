"""A linear layer and its low-rank change as one product, forward and back, in the dtype of the layer's weight.

PEFT widens the input of a half-precision layer to the adapter's float32, multiplies there, adds, and rounds back: six passes over
[tokens, width] a layer, and products of rank 16 that are slow in float32. Here the change is added inside the product's own
result. The adapter's weights stay float32 masters; their gradients come in the compute dtype, as under autocast.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class LowRank(NamedTuple):
    """A linear layer's weight and bias, and an adapter's change of the weight as up @ down (None: no change)."""

    weight: Float[Tensor, "O D"]
    bias: Float[Tensor, " O"] | None
    down: Float[Tensor, "R D"] | None
    up: Float[Tensor, "O R"] | None


def low_rank_parts(layer: Any, name: str | None) -> LowRank:
    """The parts of a linear layer under adapter `name` (None: off): W + (alpha / rank) B A, the factor in `up`."""
    if not isinstance(layer, LoraLinear):
        return LowRank(layer.weight, layer.bias, None, None)
    base: Any = layer.get_base_layer()
    if name is None or name not in layer.lora_A:
        return LowRank(base.weight, base.bias, None, None)
    down: Any = layer.lora_A[name]
    up: Any = layer.lora_B[name]
    return LowRank(base.weight, base.bias, down.weight, layer.scaling[name] * up.weight)


class FusedLinear(LoraLinear):
    """PEFT's layer; where one plain adapter is on, its change is a part of the product. Any other case is PEFT's own.

    By the "Linear" in a class's name PEFT knows what a second adapter may be put on.
    """

    def forward(self, x: Tensor, *args: Any, **given: Any) -> Tensor:
        name = None if args or given or self.merged or self.disable_adapters else self._only_plain_adapter()
        if name is None or x.dtype != self.weight.dtype or torch.is_autocast_enabled(x.device.type):
            out: Tensor = super().forward(x, *args, **given)
            return out
        weight, bias, down, up = low_rank_parts(self, name)
        assert down is not None and up is not None  # of an adapter that is there
        rows: Tensor = _Product.apply(x.flatten(0, -2), weight, bias, down.to(x.dtype), up.to(x.dtype))
        return rows.view(*x.shape[:-1], len(weight))  # a view made here: models may write into what a layer gives

    def _only_plain_adapter(self) -> str | None:
        base: Any = self.get_base_layer()
        is_touched = "forward" in vars(base) or base._forward_hooks or base._forward_pre_hooks
        if is_touched or any(parameter.requires_grad for parameter in base.parameters()):
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or active[0] in self.lora_variant or self.lora_bias[active[0]]:
            return None
        return active[0] if isinstance(self.lora_dropout[active[0]], nn.Identity) else None


def fuse(layer: Any) -> None:
    """Makes PEFT's layer on a plain linear one a FusedLinear; another one stays as it is."""
    if type(layer) is LoraLinear and type(layer.get_base_layer()) is nn.Linear:
        layer.__class__ = FusedLinear


class _Product(torch.autograd.Function):
    """y = x W^T + b + (x A^T) B^T, W and b frozen, B with the adapter's factor in it. With h = x A^T and g the gradient of y:

    d x = g W + (g B) A,   d A = (g B)^T x,   d B = g^T h.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        low = x @ down.T
        ctx.save_for_backward(x, weight, down, up, low)
        return linear(x, weight, bias).addmm_(low, up.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, low = ctx.saved_tensors
        to_low = upstream @ up
        to_x = (upstream @ weight).addmm_(to_low, down) if ctx.needs_input_grad[0] else None
        return to_x, None, None, to_low.T @ x, upstream.T @ low
