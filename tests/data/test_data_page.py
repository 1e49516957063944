"""docs/data.md tells the truth: every example on the page is read as the format it stands under, and no format is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from surefoot.errors import DataError
from surefoot.lm.data import rows_from
from surefoot.lm.formats import FORMATS, detect

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = [
    (part.split("\n", 1)[0], part.split("```json\n")[1].split("```")[0]) for part in re.split(r"^### ", PAGE, flags=re.M)[1:]
]


def title(label: str) -> str:
    return label.replace("`", "").replace(", Pairwise", " Pairwise")


def test_the_page_has_two_lines_of_every_format():
    assert sorted(title(name) for name, _ in SECTIONS) == sorted(known.label for known in FORMATS)
    assert {len(text.splitlines()) for _, text in SECTIONS} == {2}


@pytest.mark.parametrize("name, text", SECTIONS, ids=[title(name) for name, _ in SECTIONS])
def test_every_example_is_read_as_the_format_it_stands_under(name, text):
    records = [json.loads(line) for line in text.splitlines()]
    assert [detect(record, "page").label for record in records] == [title(name)] * 2
    read = 0
    for record in records:  # one by one: an example may show text in one line and messages in the other
        for kind in ("prompts", "completions", "preferences"):
            try:
                read += len(rows_from([record], kind))
            except DataError as error:
                assert " needed: " in str(error)  # of another kind, and readable
    assert read >= 2
