"""Marks of this folder, and a cache that no test shares with the user's."""

from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "embedded: reads the embedded model or ratings; fetched once from the package registry")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("SUREFOOT_CACHE", str(cache))
    return cache
