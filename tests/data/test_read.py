"""Files, folders and the hub: every way to hold the same rows gives the same rows."""

from __future__ import annotations

import csv
import json
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from surefoot.errors import DataError
from surefoot.lm.data import Dataset, read_rows, rows_from

ROWS: list[dict[str, Any]] = [
    {"prompt": 'Say "hi", twice.\nNow.', "chosen": "hi hi", "rejected": "שלום 👋", "level": "1"},
    {"prompt": "b", "chosen": "c,d", "rejected": "e", "level": "2"},
]
CHAT = [{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    match path.suffix:
        case ".jsonl" | ".ndjson":
            path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        case ".csv" | ".tsv":
            with path.open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
                table.writeheader()
                table.writerows(rows)
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["d.jsonl", "d.ndjson", "d.json", "d.csv", "d.tsv", "d.parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    data = read_rows(write(tmp_path / name, ROWS), "preferences")
    assert data.rows == rows_from(ROWS, "preferences").rows
    assert data.digest() == rows_from(ROWS, "preferences").digest()


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet"])
def test_messages_come_through_every_kind_of_file(tmp_path, name):
    assert read_rows(write(tmp_path / name, CHAT), "completions").rows == rows_from(CHAT, "completions").rows


def test_a_csv_cell_may_hold_messages_as_json_and_stays_text_where_it_holds_none(tmp_path):
    cells = [{"prompt": json.dumps(CHAT[0]["prompt"]), "completion": "Ho"}]
    assert read_rows(write(tmp_path / "d.csv", cells), "completions").rows == rows_from(CHAT, "completions").rows
    odd = [{"prompt": "[{not json}]", "completion": "Ho"}]
    assert read_rows(write(tmp_path / "e.csv", odd), "completions")[0].prompt == "[{not json}]"


def test_an_empty_margin_cell_states_no_margin(tmp_path):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "margin": m} for m in ("", "1.5")]
    assert [row.margin for row in read_rows(write(tmp_path / "d.csv", rows), "preferences")] == [None, 1.5]


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_rows(path, "preferences").rows == rows_from(ROWS, "preferences").rows


@pytest.mark.parametrize(
    "raw", ['{"prompt": "Hi"}', '{\n  "prompt": "Hi"\n}\n', '[{"prompt": "Hi"}]', ' \n[ {"prompt": "Hi"} ] \n']
)
def test_json_is_told_from_jsonl_by_its_content(tmp_path, raw):
    (tmp_path / "d.json").write_text(raw)
    assert [row.prompt for row in read_rows(tmp_path / "d.json", "prompts")] == ["Hi"]


def test_windows_line_ends_and_separators_inside_text_do_not_break_lines(tmp_path):
    (tmp_path / "d.jsonl").write_bytes('{"prompt": "a\u2028b\x85c"}\r\n{"prompt": "d"}\r\n'.encode())
    assert [row.prompt for row in read_rows(tmp_path / "d.jsonl", "prompts")] == ["a\u2028b\x85c", "d"]


def test_a_folder_is_all_its_data_files_in_the_order_of_their_paths(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    for name, prompt in [("b.jsonl", "2"), ("a.csv", "1"), ("sub/c.json", "3"), (".cache/d.jsonl", "no"), ("README.md", "no")]:
        write(tmp_path / name, [{"prompt": prompt}])
    assert [row.prompt for row in read_rows(tmp_path, "prompts")] == ["1", "2", "3"]


def test_a_hub_name_is_loaded_by_datasets_with_its_split(monkeypatch):
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, split: str) -> list[dict[str, str]]:
        asked.append((name, split))
        return [{"prompt": "Hi"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert [row.prompt for row in read_rows("owner/name", "prompts")] == ["Hi"]
    assert read_rows("owner/name:test", "prompts").description == "owner/name:test: 1 prompt, format {prompt} (text)"
    assert asked == [("owner/name", "train"), ("owner/name", "test")]


def test_a_hub_data_set_that_cannot_be_loaded_is_one_line(monkeypatch):
    def load_dataset(name: str, split: str) -> None:
        raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub\nand more")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError) as caught:
        read_rows("owner/name", "prompts")
    assert str(caught.value) == (
        "the hub data set owner/name cannot be loaded: Dataset 'owner/name' doesn't exist on the Hub. "
        "Name a split as OWNER/NAME:SPLIT, or a local file."
    )


def test_a_missing_extra_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    for module in ("pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1")
    for name, sentence in [
        (str(path), f'reading {path} needs pyarrow. Install it with `pip install "surefoot[datasets]"`.'),
        (
            "owner/name",
            "owner/name is no file or folder here, and reading it from the hub needs datasets. "
            'Install it with `pip install "surefoot[datasets]"`.',
        ),
    ]:
        with pytest.raises(DataError) as caught:
            read_rows(name, "prompts")
        assert str(caught.value) == sentence


def test_a_broken_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1 and then nothing of use PAR1")
    with pytest.raises(DataError, match="is not a readable Parquet file: ") as caught:
        read_rows(path, "prompts")
    assert "\n" not in str(caught.value)


def test_a_parquet_row_is_named_by_its_number_across_batches(tmp_path):
    path = write(tmp_path / "d.parquet", [{"prompt": "x"}] * 1500 + [{"prompt": ""}])
    with pytest.raises(DataError) as caught:
        read_rows(path, "prompts")
    assert str(caught.value) == f"{path} row 1501: prompt is empty. Give it text, or leave the row out."


def test_a_preview_shows_two_rows_and_lets_nothing_reach_the_terminal():
    rows = [
        {"prompt": "red \x1b[31m alert\n\u202ebidi", "completion": "y" * 400, "level": 3},
        {"prompt": "b", "completion": "c"},
        {"prompt": "third", "completion": "d"},
    ]
    data = rows_from(rows, "completions")
    assert data.preview(2).split("\n") == [
        f"row 1 (key {data[0].key})",
        "  prompt     | red \\x1b[31m alert",
        "             | \\u202ebidi",
        f"  completion | {'y' * 300} ... (400 characters)",
        "  level      | 3",
        f"row 2 (key {data[1].key})",
        "  prompt     | b",
        "  completion | c",
    ]


def test_a_preview_of_messages_names_who_speaks():
    assert rows_from(CHAT, "completions").preview(1).split("\n")[1:] == [
        "  prompt     | user: Hi",
        "  completion | assistant: Ho",
    ]


def test_the_digest_changes_with_any_field_and_with_the_order():
    def digest(*rows: dict[str, Any]) -> str:
        data: Dataset[Any] = rows_from(rows, "preferences")
        return data.digest()

    one, two = ROWS
    assert digest(one, two) == digest(dict(one), dict(two))
    variants = [(two, one), (one,), ({**one, "level": "9"}, two), ({**one, "margin": 1}, two), ({**one, "target": 0.9}, two)]
    assert len({digest(*rows) for rows in [*variants, (one, two)]}) == len(variants) + 1


def test_column_names_are_those_of_any_row():
    assert rows_from([{"prompt": "a", "x": 1}, {"prompt": "b", "y": 2}], "prompts").column_names == ("x", "y")


def test_a_large_file_is_streamed_not_read_whole(tmp_path):
    """A bad third line is found without reading the rest, which is not even text."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": ""}\n' + b"\xff" * 1_000_000)
    with pytest.raises(DataError, match="line 3: prompt is empty"):
        read_rows(path, "prompts")
