"""The head's logits in float32 on AMD's CPUs, multiplied by oneDNN.

PyTorch takes float32 products from Intel's MKL, which needs 1.4 times as long there for one as wide as a vocabulary. Backward
products stay with MKL, since oneDNN would have to lay out both of its arguments anew.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

from surefoot.launch import is_amd

ROUND = 16  # rows come as a multiple of it: oneDNN keeps half a MiB of code for every number of rows


def product(x: Float[Tensor, "N D"], weight: Float[Tensor, "O D"], bias: Float[Tensor, " O"] | None) -> Float[Tensor, "N O"]:
    """x W^T + b, as torch.nn.functional.linear gives it to the rounding."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not (len(x) and _suits(x) and _suits(weight)):
        return linear(x, weight, bias)
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
        return (
            None if weight is None else upstream @ weight,
            None if x is None else upstream.T @ x,
            upstream.sum(0) if ctx.needs_input_grad[2] else None,
        )


def _suits(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and has_onednn() and bool(torch.backends.mkldnn.enabled)


@cache
def has_onednn() -> bool:
    """Whether this build has the product, and would take MKL's on this CPU, where it is slower."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and is_amd()
    )


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padded = pad(x, (0, 0, 0, -len(x) % ROUND))
    bias = None if bias is None else bias.contiguous()  # it is read as if it were
    out: Tensor = torch.ops.mkldnn._linear_pointwise(padded, weight, bias, "none", [], "")
    return out[: len(x)]
