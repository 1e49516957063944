"""What is known of each recorded number, one table a kind of run. `surefoot.diagnostics.metrics` puts them together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One recorded number. A key that ends in `*` stands for a family: `timing/*` is every key that starts with `timing/`."""

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
        return key.startswith(self.key[:-1]) if self.key.endswith("*") else key == self.key
