"""Rows in parts that one forward takes: by number of rows or by number of tokens, rows of like length together."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from .config import PPOConfig


def micro_batches(lengths: Int[Tensor, " B"], cfg: PPOConfig, *, at_least: int = 1) -> list[Int[Tensor, " b"]]:
    """Indices of all rows, shortest first, cut into parts of `cfg.micro_batch_size` rows.

    Where `cfg.micro_batch_tokens` is set, a part instead holds as many rows as stay within that many tokens when each is padded
    to the part's longest; a row that is longer stands alone. Parts are halved, the largest first, until there are `at_least` (or
    one a row): every rank of a sharded model must run equally many forwards.
    """
    order, most = lengths.argsort(stable=True), cfg.micro_batch_tokens
    parts = list(order.split(cfg.micro_batch_size)) if most is None else _within(order, lengths, most)
    while len(parts) < min(at_least, len(order)):
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        parts[largest : largest + 1] = parts[largest].tensor_split(2)
    return parts


def _within(order: Int[Tensor, " B"], lengths: Int[Tensor, " B"], most: int) -> list[Tensor]:
    """`order` cut so that a part's rows times its last, longest row are at most `most`; one row is never too many."""
    sizes, count = [], 0
    for length in lengths[order].tolist():
        if count and (count + 1) * length > most:
            sizes.append(count)
            count = 0
        count += 1
    return list(order.split([*sizes, count]))
