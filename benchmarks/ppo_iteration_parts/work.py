"""Work W, the same for every side: prompts as token ids, and how a side takes its turns. Needs the standard library alone.

A side is a child process. It prints one JSON line when it is ready and one after every iteration, and begins an iteration when a
line arrives on its standard input: so the sides take turns, and the one that waits costs nothing.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from dataclasses import dataclass
from typing import Any


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

    @classmethod
    def from_json(cls, text: str) -> Work:
        return cls(**json.loads(text))


def say(**facts: Any) -> None:
    """A line to the parent; peak memory of this process so far comes along, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**facts, "peak_gib": round(peak, 3)}), file=sys.__stdout__, flush=True)


def wait_for_turn() -> None:
    """Until the parent's next line; ends the process when there is none."""
    if not sys.stdin.readline():
        sys.exit(0)
