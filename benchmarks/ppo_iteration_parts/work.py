"""Work W, the same for every side: prompts as token ids. Needs the standard library alone."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """One PPO iteration: `rows` prompts of 12 to 24 tokens, `response` new tokens each without stop, one epoch."""

    rows: int = 32
    response: int = 32
    micro_batch: int = 8
    shortest: int = 12
    longest: int = 24

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """Random ids beyond the special ones; the same in every process."""
        chance = random.Random(0)
        lengths = [chance.randint(self.shortest, self.longest) for _ in range(self.rows)]
        return [[chance.randrange(100, vocabulary) for _ in range(length)] for length in lengths]
