"""Several processes on one job: torch.distributed with FSDP2, started by torchrun. gloo on CPUs, NCCL on GPUs.

FSDP averages gradients over ranks. Here a loss is already divided by the global count of valid steps, so gradients must be
SUMMED: an average would shrink them by the number of ranks, and ranks with few valid steps would weigh as much as the others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ..errors import ConfigError, EngineError
from ..types import ActorCritic

_TINY = 1e-6  # added to a norm before dividing by it, as in torch.nn.utils.clip_grad_norm_


class FSDPRuntime:
    """One of `world_size` equal processes. A context manager: the process group ends with the block."""

    def __init__(self, device: torch.device | str) -> None:
        """For a process group that already runs; `start` makes one."""
        if not dist.is_initialized():
            raise EngineError("No process group is running. Start the program with torchrun, and use FSDPRuntime.start().")
        self.device = torch.device(device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._mesh = init_device_mesh(self.device.type, (self.world_size,))

    @classmethod
    def start(cls) -> Self:
        """Joins the group that torchrun describes in the environment, one process a GPU, or all on the CPU where there is none.

        Raises: EngineError outside of torchrun.
        """
        missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise EngineError(f"{', '.join(missing)} not set: start the program with torchrun, or use SingleRuntime.")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device)
            return cls(device)
        dist.init_process_group("gloo")
        return cls("cpu")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        dist.destroy_process_group()

    def wrap(self, module: nn.Module, blocks: Sequence[nn.Module] = ()) -> nn.Module:
        """Shards `module` in place: each of `blocks` (a decoder layer) is gathered when its turn comes, the rest at once.

        Make the optimizer afterwards: it must hold the sharded weights. Every rank must come with the same weights.
        """
        for part in [*blocks, module]:
            fully_shard(part, mesh=self._mesh)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)  # a sum; see the head of this file
                part.set_force_sum_reduction_for_comms(True)  # gloo has no reduction that scales
        return module

    def shard(self, count: int) -> range:
        """This rank's rows of `count`. Raises ConfigError where ranks would get unequally many and run unequal forwards."""
        if count % self.world_size:
            raise ConfigError(
                f"A minibatch of {count} rows does not divide among {self.world_size} processes. "
                "Change ppo.num_mini_batches, ppo.rollout_batch_size or the number of processes."
            )
        share = count // self.world_size
        return range(self.rank * share, (self.rank + 1) * share)

    def sum(self, x: Tensor) -> Tensor:
        return self._reduced(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        return self._reduced(x, dist.ReduceOp.MAX)

    def step(
        self, module: torch.nn.Module | ActorCritic, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
    ) -> tuple[float, bool]:
        """Clips the norm of all gradients on all ranks and steps if it is finite. Returns (norm before clipping, stepped).

        FSDP has summed the gradients of sharded weights; those of whole weights (a head left out of `wrap`) are summed here.
        """
        sharded, whole = [], []
        for p in module.parameters():
            if isinstance(p.grad, DTensor):
                sharded.append(p.grad.to_local())
            elif p.grad is not None:
                p.grad.copy_(self.sum(p.grad))
                whole.append(p.grad)
        squares = self.sum(_square_sum(sharded, self.device)) + _square_sum(whole, self.device)
        norm = math.sqrt(float(squares)) if math.isfinite(squares) else float(squares)
        if not math.isfinite(norm):
            return norm, False
        if max_grad_norm is not None and norm > max_grad_norm:
            torch._foreach_mul_(sharded + whole, max_grad_norm / (norm + _TINY))
        optimizer.step()
        return norm, True

    def full_weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """(name, full tensor) one at a time, so that one weight more than the shards is held. All ranks call it, and drain it."""
        for name, tensor in module.state_dict().items():
            yield name, (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()

    def _reduced(self, x: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        result = x.detach().clone()
        dist.all_reduce(result, operation)
        return result


def _square_sum(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Sum of the squares of all numbers, in float64."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for x in tensors:
        total += x.double().square().sum()
    return total
