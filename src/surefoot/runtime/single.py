"""One process, one device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..types import ActorCritic


class SingleRuntime:
    """Everything at once: the shard is the whole, sums and maxima are what they were given."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def shard(self, count: int) -> range:
        return range(count)

    def sum(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: Tensor) -> Tensor:
        return x

    def step(
        self, module: torch.nn.Module | ActorCritic, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
    ) -> tuple[float, bool]:
        """Clips the norm of all gradients together and steps if it is finite. Returns (norm before clipping, stepped)."""
        with_gradient = [p for p in module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
        if not math.isfinite(norm.item()):
            return norm.item(), False
        if max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(with_gradient, max_grad_norm, norm)
        optimizer.step()
        return norm.item(), True

    def full_weights(self, module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in module.state_dict().items():
            yield name, tensor.detach()
