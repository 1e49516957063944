"""What is known of each recorded number, one table a kind of run. `surefoot.diagnostics.metrics` puts them together."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Metric:
    """One recorded number. A key with `*` stands for a family: `judge/*`, or `*_after`, which holds no key with a slash."""

    key: str
    title: str
    what: str
    formula: str
    denominator: str
    unit: str
    healthy: str
    what_to_do: str

    def covers(self, key: str) -> bool:
        """Whether this entry documents `key`."""
        return fnmatchcase(key, self.key) and ("/" in self.key or "/" not in key)
