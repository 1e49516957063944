"""Hostile and broken files: rows or a DataError in one line, never another exception. (FAULTS: S3.)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surefoot.errors import DataError
from surefoot.lm.data import read_rows, rows_from
from surefoot.lm.formats import FORMATS

NAMES = sorted({name for known in FORMATS for name in known.needs})
NAMES += [
    "margin",
    "target",
    "input",
    "system",
    "conversation_a",
    "conversation_b",
    "response_a",
    "response_b",
    "response1",
    "response2",
]
WORDS = ["Hi", "", "model_a", "tie", "user", "assistant", "human", "gpt", "left", "preference", "pairwise", "\ud800", "a b"]
KEYS = [
    *NAMES,
    "role",
    "content",
    "from",
    "value",
    "result",
    "type",
    "selected",
    "status",
    "rank",
    "preference",
    "text1",
    "text2",
]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4), max_leaves=6
)


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """A record with the keys of a known format, more often than chance would, and anything as values."""
    needs = draw(st.sampled_from(FORMATS)).needs
    more = draw(st.lists(st.sampled_from(NAMES), max_size=3))
    return {name: draw(values) for name in [*needs, *more]}


kinds = st.sampled_from(["prompts", "completions", "preferences"])
quick = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def rows_or_one_line(read: Any) -> None:
    try:
        data = read()
    except DataError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2_000
    else:
        assert len(data) > 0
        data.preview()
        data.digest()


@quick
@given(st.lists(records(), min_size=1, max_size=2), kinds)
def test_any_values_under_known_keys_are_rows_or_one_line(rows, kind):
    rows_or_one_line(lambda: rows_from(rows, kind))


@quick
@given(
    st.one_of(st.binary(max_size=80), st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass"))),
    st.sampled_from(["jsonl", "json", "csv", "tsv"]),
    kinds,
)
def test_any_bytes_are_rows_or_one_line(tmp_path_factory, raw, ending, kind):
    path = Path(tmp_path_factory.getbasetemp()) / f"fuzz.{ending}"
    path.write_bytes(raw)
    rows_or_one_line(lambda: read_rows(path, kind))


@quick
@given(records(), st.data(), st.sampled_from(["jsonl", "json"]), kinds)
def test_a_file_with_a_byte_changed_is_rows_or_one_line(tmp_path_factory, record, data, ending, kind):
    raw = bytearray(json.dumps([record, record] if ending == "json" else record).encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = Path(tmp_path_factory.getbasetemp()) / f"flip.{ending}"
    path.write_bytes(raw)
    rows_or_one_line(lambda: read_rows(path, kind))


@pytest.mark.parametrize("raw", ["[" * 50_000, '{"a":' * 50_000, "[" + "[" * 50_000, '[{"a": ' + "9" * 10_000 + "}]"])
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_deep_nesting_and_endless_numbers_are_one_line(tmp_path, raw, ending):
    (tmp_path / f"d.{ending}").write_text(raw)
    with pytest.raises(DataError):
        read_rows(tmp_path / f"d.{ending}", "prompts")
