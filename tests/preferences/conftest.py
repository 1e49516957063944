"""A store with one prompt and answers, for tests that vote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from surefoot.preferences import PreferenceStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PreferenceStore]:
    with PreferenceStore.open(tmp_path / "preferences.db") as opened:
        yield opened


@pytest.fixture
def pair(store: PreferenceStore) -> int:
    """The number of a pair of answers, "left text" (a) and "right text" (b), to the prompt "Say something."."""
    prompt = store.add_prompt("Say something.")
    a, b = (store.add_answer(prompt, text, model="m") for text in ("left text", "right text"))
    return store.add_pair(prompt, a, b)
