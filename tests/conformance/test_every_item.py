"""The suite is complete: each number has a test, and the page beside it names it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
NUMBERS = range(1, 64)
NAME = re.compile(r"^def (test_item_((?:\d\d_)+)\w+)\(", re.MULTILINE)


def _tests() -> dict[int, list[tuple[str, str]]]:
    """(file, test) by number; a test may serve several."""
    found: dict[int, list[tuple[str, str]]] = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        for name, numbers in NAME.findall(path.read_text(encoding="utf-8")):
            for number in numbers.rstrip("_").split("_"):
                found.setdefault(int(number), []).append((path.name, name))
    return found


@pytest.mark.parametrize("number", NUMBERS)
def test_every_item_has_a_test(number: int) -> None:
    assert _tests().get(number), f"no test_item_{number:02d}_... in {FOLDER.name}"


def test_the_page_names_every_item_and_the_files_of_its_tests() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = {int(n): set(re.findall(r"`(\w+\.py)`", line)) for n, line in re.findall(r"^\| (\d+) \|(.*)$", page, re.MULTILINE)}
    assert rows == {number: {file for file, _ in tests} for number, tests in _tests().items()}
