"""What is decoded: prompts as token ids, and how long each answer is. Needs the standard library alone."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decoding:
    """`rows` prompts of 12 to 24 tokens. Every answer has `response` tokens, or ends by chance after 1 to `response` of them."""

    rows: int
    response: int
    ends: str

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """Random ids beyond the special ones; the same in every process."""
        chance = random.Random(0)
        return [[chance.randrange(100, vocabulary) for _ in range(chance.randint(12, 24))] for _ in range(self.rows)]

    def lengths(self) -> list[int]:
        """Tokens of each answer: all of them, or uniform, with a mean of half."""
        chance = random.Random(1)
        return [chance.randint(1, self.response) if self.ends == "random" else self.response for _ in range(self.rows)]
