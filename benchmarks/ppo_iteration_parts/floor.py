"""What the arithmetic of work W needs: FLOPs of its matrix products over the rate at which this machine multiplies matrices."""

from __future__ import annotations

import time

import torch

from ppo_iteration_parts.work import Work
from surefoot.lm.linear import product


def matrix_rate(dtype: torch.dtype, device: str, width: int, inner: int, rows: int, seconds: float = 1.0) -> float:
    """FLOP/s of [rows, width] @ [width, inner], the product that blocks are made of."""
    a = torch.randn(rows, width, device=device).to(dtype)
    b = torch.randn(inner, width, device=device).to(dtype)
    _wait(device)
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(8):
            product(a, b, None)  # the fastest there is, as our side takes it
        _wait(device)
        count += 8
    return count * 2.0 * rows * width * inner / passed


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def flops(work: Work, *, blocks: int, head: int, full: bool, shared: float, reward: float) -> dict[str, float]:
    """FLOPs by stage. `blocks`, `head`: weights of all blocks and of the output embedding, two FLOPs each a token.

    Full fine-tuning runs policy, reference, value and reward model and goes back through two of them, for inputs and weights.
    On one backbone the value head reads the policy's states, and the backward pass needs the inputs' gradients alone. `shared` is
    the share of blocks below every adapter, `reward` the share of blocks that the reward head needs. Log-probs of the rollout
    come from the sampler.
    """
    prompts = sum(len(row) for row in work.prompts(1_000))
    response = work.rows * work.response
    body, ends = 2.0 * blocks * (prompts + response), 2.0 * head * response
    if full:
        return {
            "rollout": body + ends,
            "evaluate": body + ends + body,
            "reward": body * reward,
            "forward": body + ends + body,
            "backward": 2 * (body + ends + body),
        }
    upper = body * (1 - shared)
    return {
        "rollout": body + ends,
        "evaluate": body + ends,
        "reward": body * reward,
        "forward": upper + ends,
        "backward": upper + ends,
    }
