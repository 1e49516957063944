"""Matrix products of linear layers in float32 on AMD's CPUs, through oneDNN.

PyTorch takes them from Intel's MKL, which is slower there: the head's logits take 1.6 times as long, a block's products 1.1 to
1.3. Backward products stay with MKL, since oneDNN would have to lay out both of its arguments anew.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from surefoot.launch import is_amd


def product(x: Float[Tensor, "*N D"], weight: Float[Tensor, "O D"], bias: Float[Tensor, " O"] | None) -> Float[Tensor, "*N O"]:
    """x W^T + b, as torch.nn.functional.linear gives it to the rounding."""
    if not (_suits(x) and _suits(weight)) or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(given is not None and given.requires_grad for given in (x, weight, bias)):
        out: Tensor = _Product.apply(x, weight, bias)
        return out
    return _by_onednn(x, weight, bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = upstream.flatten(0, -2)
        return (
            None if weight is None else upstream @ weight,
            None if x is None else rows.T @ x.flatten(0, -2),
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


class Linear(nn.Linear):
    """nn.Linear that multiplies by `product`."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """`layer` itself, made one of these: its weights, hooks and names stay."""
        layer.__class__ = cls
        return layer  # type: ignore[return-value]


def use_onednn(model: nn.Module) -> None:
    """Lets the plain linear layers of `model` multiply by `product`, where that is another way."""
    if has_onednn():
        for layer in model.modules():
            if type(layer) is nn.Linear:
                Linear.of(layer)


@cache
def has_onednn() -> bool:
    """Whether this build has the product, and would take MKL's on this CPU, where it is slower."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and is_amd()
    )


def _suits(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and has_onednn()


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
