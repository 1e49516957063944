"""How a report writes numbers, shares, times and text for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from surefoot.diagnostics.run_view import is_number


def number(value: float) -> str:
    """Four digits that matter: 0.6931, 12.35, 1,234, 3e-05."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1_000:
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.2g}"
    return f"{value:.4g}"


def signed(value: float) -> str:
    """+1.93 or −0.21, with the minus sign of print, as wide as the plus."""
    return f"{value:+.2f}".replace("-", "−")


def signed_count(value: float) -> str:
    """+10, 0 or −9."""
    return f"{value:+.0f}".replace("-", "−") if value else "0"


def share(value: float) -> str:
    """A share as a percentage with one digit: 91.4 %."""
    return f"{100 * value:.1f} %"


def interval_words(interval: Any) -> str:
    """A 95 % interval of shares in words; empty where `interval` is none."""
    if isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval)):
        return f"95 % interval {100 * interval[0]:.0f} to {100 * interval[1]:.0f} %"
    return ""


def clock(seconds: float) -> str:
    """8.3 s, 4 min 05 s, 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def as_text(value: object) -> str:
    """Text of a prompt or an answer: a string as it is, messages as role and content, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(m, Mapping) and "content" in m for m in value):
        return "\n".join(f"{m.get('role', '')}: {m['content']}" for m in value)
    return json.dumps(value, ensure_ascii=False)
