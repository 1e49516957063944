"""The loop that SFT and reward-model training share: epochs of shuffled batches, micro-batches, one optimiser, checkpoints.

The order of an epoch is drawn from (seed, epoch) alone, so the step number is the whole data position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from surefoot.config import RewardConfig, SFTConfig
from surefoot.errors import TrainingError
from surefoot.faults import fault_point
from surefoot.optim import adamw, lr_share
from surefoot.runs import RunFolder, State, flatten_optimizer, restore_optimizer

MAX_SKIPPED_STEPS = 5  # non-finite steps in a row before the run stops


class Task(Protocol):
    """What is learned.

    `loss` returns the SUM over its items of what is averaged, and sums of metrics (min_ and max_: the extremes); `weight` is what
    to divide by.
    """

    def __len__(self) -> int: ...

    def length(self, item: int) -> int: ...

    def weight(self, items: Sequence[int]) -> float: ...

    def loss(self, items: Sequence[int]) -> tuple[Tensor, Mapping[str, float]]: ...


@dataclass(frozen=True, slots=True)
class FitStep:
    """One optimiser step (metrics are means over the batch), or a look at held-out data (keys begin with validation/)."""

    step: int
    total: int
    metrics: Mapping[str, float]


def total_steps(num_items: int, cfg: SFTConfig | RewardConfig) -> int:
    planned = cfg.num_epochs * math.ceil(num_items / cfg.batch_size)
    return min(planned, cfg.max_steps or planned)


def fit(
    task: Task,
    parameters: Sequence[tuple[str, nn.Parameter]],
    cfg: SFTConfig | RewardConfig,
    *,
    seed: int,
    validation: Task | None = None,
    folder: RunFolder | None = None,
) -> Iterator[FitStep]:
    """Trains `parameters` on `task`; yields after every step, and held-out means before the first and after the last.

    With a folder it resumes, saves and heeds signals.
    """
    names, weights = [name for name, _ in parameters], [p for _, p in parameters]
    optimizer = adamw(weights, lr=cfg.learning_rate, weight_decay=cfg.weight_decay)
    total, done, skipped = total_steps(len(task), cfg), 0, 0
    if folder is not None and (state := folder.restore()) is not None:
        _load(state, parameters, optimizer, names)
        done, skipped = int(state.values["step"]), int(state.values["skipped"])
    if done == 0:
        yield from _look(validation, 0, total, cfg.micro_batch_size, folder)
    for step in range(done + 1, total + 1):
        items = _batch(len(task), step - 1, cfg.batch_size, seed)
        share = lr_share(cfg, step - 1, total)
        for group in optimizer.param_groups:
            group["lr"] = cfg.learning_rate * share
        metrics, norm = _accumulate(task, items, weights, cfg.micro_batch_size)
        fault_point("optimizer", step)
        if math.isfinite(norm) and math.isfinite(metrics["loss"]):
            if cfg.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(weights, cfg.max_grad_norm, torch.tensor(norm))
            optimizer.step()
            skipped = 0
        else:
            skipped += 1
            if folder is not None:
                folder.note(f"step {step} was not taken: loss {metrics['loss']}, gradient norm {norm}")
            if skipped == min(MAX_SKIPPED_STEPS, total):  # a run of which every step is refused has learned nothing
                raise TrainingError(
                    f"loss {metrics['loss']} or gradient norm {norm} was not finite in {skipped} steps in a row, at step {step}. "
                    "Lower learning_rate, or look at the data of these steps; the last checkpoint is unharmed."
                )
        optimizer.zero_grad(set_to_none=True)
        figures = {
            **metrics,
            "grad_norm": norm,
            "grad_norm_clipped": norm if cfg.max_grad_norm is None else min(norm, cfg.max_grad_norm),
            "lr": cfg.learning_rate * share,
            "skipped_steps": float(skipped),
        }
        result = FitStep(step, total, figures)
        if folder is not None:
            folder.record(step, result.metrics)
            if step % cfg.save_every == 0 or folder.stop_requested:
                folder.save(step, _state(step, skipped, parameters, optimizer, names))
                folder.check_stop()
        yield result
    if folder is not None and total % cfg.save_every and done < total:
        folder.save(total, _state(total, skipped, parameters, optimizer, names))
    yield from _look(validation, total, total, cfg.micro_batch_size, folder)


def _look(validation: Task | None, step: int, total: int, size: int, folder: RunFolder | None) -> Iterator[FitStep]:
    if validation is None or not len(validation):
        return
    result = FitStep(step, total, {f"validation/{key}": value for key, value in held_out(validation, size, folder).items()})
    if folder is not None:
        folder.record(step, result.metrics)
    yield result


@torch.no_grad()
def held_out(task: Task, micro_batch_size: int, folder: RunFolder | None = None) -> dict[str, float]:
    """Means of the task's loss and metrics over all its items. A look changes no state, so it may be broken off anywhere."""
    order = sorted(range(len(task)), key=task.length)
    sums: dict[str, float] = {}
    weight = 0.0
    for start in range(0, len(order), micro_batch_size):
        if folder is not None:
            folder.check_stop()
        part = order[start : start + micro_batch_size]
        loss, metrics = task.loss(part)
        weight += task.weight(part)
        sums = _with(sums, {"loss": loss.item(), **metrics})
    return _means(sums, max(weight, 1.0))


EXTREMES: dict[str, Callable[[float, float], float]] = {"min_": min, "max_": max}


def _with(sums: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Sums, and the smallest or largest of metrics whose name begins with min_ or max_."""
    out = dict(sums)
    for key, value in more.items():
        join = EXTREMES.get(key[:4], float.__add__)
        out[key] = join(out[key], value) if key in out else value
    return out


def _means(sums: Mapping[str, float], weight: float) -> dict[str, float]:
    return {key: value if key[:4] in EXTREMES else value / weight for key, value in sums.items()}


def _batch(num_items: int, index: int, size: int, seed: int) -> list[int]:
    """The items of batch `index`: each item once an epoch, in an order drawn from (seed, epoch)."""
    epoch, place = divmod(index, math.ceil(num_items / size))
    order = torch.randperm(num_items, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[place * size : (place + 1) * size].tolist()


def _accumulate(task: Task, items: Sequence[int], weights: Sequence[nn.Parameter], size: int) -> tuple[dict[str, float], float]:
    """Gradients of the batch's mean loss, in micro-batches of like length. Returns mean metrics and the gradient norm."""
    weight = max(task.weight(items), 1.0)
    order = sorted(items, key=task.length)
    sums: dict[str, float] = {}
    for start in range(0, len(order), size):
        loss, metrics = task.loss(order[start : start + size])
        (loss / weight).backward()
        sums = _with(sums, {"loss": loss.item(), **metrics})
    norm = torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
    return _means(sums, weight), float(norm)


def _state(
    step: int,
    skipped: int,
    parameters: Sequence[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
) -> State:
    weights = {name: p.detach().clone() for name, p in parameters}
    tensors = {"weights": weights, "optimizer": flatten_optimizer(optimizer, names), "rng": {"torch": torch.get_rng_state()}}
    return State(tensors=tensors, values={"step": step, "skipped": skipped})


def _load(
    state: State, parameters: Sequence[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> None:
    with torch.no_grad():
        for name, p in parameters:
            p.copy_(state.tensors["weights"][name])
    restore_optimizer(optimizer, names, state.tensors["optimizer"])
    torch.set_rng_state(state.tensors["rng"]["torch"])
