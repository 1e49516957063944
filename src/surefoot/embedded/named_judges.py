"""Judges by name, as functions of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

NAMED_JUDGES = ("vader", "minilm", "gold")


def named_judge(name: str) -> Callable[[Sequence[str]], Sequence[float]]:
    """The judge `name`: vader (-1..1), minilm (-4..4), gold (the tiny world's truth, -4..4). Loaded here, at first use."""
    match name:
        case "vader":
            from surefoot.embedded.judges import VaderJudge

            return VaderJudge().score
        case "minilm":
            from surefoot.embedded.judges import MiniLMJudge

            return MiniLMJudge().score
        case _:
            from surefoot.embedded.tiny_world import gold

            return gold
