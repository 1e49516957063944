"""Preferences from files into a store and back: a round trip changes nothing, an import is whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surefoot.errors import DataError
from surefoot.interchange import export_file, export_preferences, import_file, import_preferences
from surefoot.preferences import PreferenceStore

ROW = {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."}
CHAT = {
    "prompt": [{"role": "user", "content": "שלום"}],
    "chosen": [{"role": "assistant", "content": "שלום 👋"}],
    "rejected": [{"role": "assistant", "content": "?"}],
}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def written(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def round_trip(folder: Path, rows: list[dict[str, object]]) -> list[dict[str, object]]:
    import_file(folder / "p.db", written(folder / "in.jsonl", *rows))
    export_file(folder / "p.db", folder / "out.jsonl")
    return lines(folder / "out.jsonl")


@pytest.mark.parametrize(
    "rows",
    [
        [ROW],
        [CHAT],
        [ROW | {"margin": 1.25}, {"prompt": "Another.", "chosen": "a", "rejected": "b", "margin": -0.5}],
        [ROW | {"target": 0.75}],
        [ROW | {"target": 0.5}],
        [ROW | {"target": 2 / 3, "margin": 2.0}],
        [ROW | {"prompt": f"prompt {i}"} for i in range(9, 0, -1)],  # the order of the file is kept
    ],
)
def test_a_round_trip_through_a_store_gives_the_same_file(tmp_path, rows):
    assert round_trip(tmp_path, rows) == rows


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"prompt": texts, "chosen": texts, "rejected": texts},
            optional={"margin": st.floats(-1e6, 1e6), "target": st.floats(0.51, 0.999)},
        ).filter(lambda row: row["chosen"] != row["rejected"]),
        min_size=1,
        max_size=5,
        unique_by=lambda row: row["prompt"],
    )
)
def test_a_round_trip_gives_the_same_file_whatever_the_text(tmp_path_factory, rows):
    assert round_trip(tmp_path_factory.mktemp("trip"), rows) == rows


def test_importing_a_file_again_adds_only_what_is_new(tmp_path):
    other = {**ROW, "prompt": "Other."}
    file = written(tmp_path / "Votes of May.jsonl", ROW, other)
    assert import_file(tmp_path / "p.db", file) == (
        f"{file}: 2 preferences, format {{prompt, chosen, rejected}} (text). "
        f"Into {tmp_path / 'p.db'}: 2 new votes of import:votes-of-may (0 there already)."
    )
    written(file, ROW, ROW, {**ROW, "prompt": "Third."})
    assert "2 new votes of import:votes-of-may (1 there already)" in import_file(tmp_path / "p.db", file)
    with PreferenceStore.open(tmp_path / "p.db") as store:
        assert store.counts().votes == 4  # the row that stands twice in the file is two votes


def test_the_same_file_from_two_sources_is_two_votes(store, tmp_path):
    file = written(tmp_path / "x.jsonl", ROW)
    for source in ("human:ann", "human:bob"):
        import_preferences(store, file, source)
    assert store.counts().by_source == {"human:ann": 1, "human:bob": 1}


def test_an_imported_vote_that_was_undone_is_not_brought_back_by_the_next_import(store, tmp_path):
    file = written(tmp_path / "x.jsonl", ROW)
    import_preferences(store, file)
    (vote,) = store.votes()
    store.undo(vote.id, "human:admin")
    import_preferences(store, file)
    assert store.counts().votes == 0


def test_two_files_that_contradict_each_other_make_one_tie(store, tmp_path):
    import_preferences(store, written(tmp_path / "x.jsonl", ROW), "human:ann")
    import_preferences(store, written(tmp_path / "y.jsonl", {**ROW, "chosen": "No.", "rejected": "Hello!"}), "human:bob")
    (preference,) = store.preferences()
    assert (preference.target, preference.sources) == (0.5, ("human:ann", "human:bob"))


@pytest.mark.parametrize(
    "given, voter", [(None, "import:x"), ("ratings", "ratings"), ("human:ann", "human:ann"), ("lab", "import:lab")]
)
def test_the_source_is_who_the_caller_says_or_the_file(store, tmp_path, given, voter):
    import_preferences(store, written(tmp_path / "x.jsonl", ROW), given)
    assert store.counts().by_source == {voter: 1}


def test_a_bad_row_leaves_neither_a_vote_nor_a_store(tmp_path):
    file = written(tmp_path / "x.jsonl", ROW, {**ROW, "chosen": ""})
    with pytest.raises(DataError, match="line 2: chosen is empty"):
        import_file(tmp_path / "p.db", file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.jsonl"]


def test_equal_answers_are_refused_and_nothing_of_the_file_is_kept(store, tmp_path):
    file = written(tmp_path / "x.jsonl", ROW, {"prompt": "p", "chosen": "same", "rejected": "same"})
    with pytest.raises(DataError, match='chosen and rejected are equal in preference 2, after the prompt "p"'):
        import_preferences(store, file)
    assert store.counts().prompts == 0


def test_lmarena_votes_come_in_with_their_ties(store, tmp_path):
    rows = [
        {"prompt": f"p{i}", "response_a": "x", "response_b": "y", "model_a": "m", "model_b": "n", "winner": winner}
        for i, winner in enumerate(["model_a", "model_b", "tie", "tie (bothbad)"])
    ]
    said = import_preferences(store, written(tmp_path / "arena.jsonl", *rows))
    assert "format LMArena" in said
    assert "1 row left out: both answers bad" in said
    assert [(p.prompt, p.chosen, p.target) for p in store.preferences()] == [
        ("p0", "x", None),
        ("p1", "y", None),
        ("p2", "x", 0.5),
    ]


def refusal(store: PreferenceStore, path: Path, format: str = "trl") -> str:
    with pytest.raises(DataError) as caught:
        export_preferences(store, path, format)
    return str(caught.value)


def test_exports_that_cannot_be_are_refused_and_leave_no_file(store, pair, tmp_path):
    out = tmp_path / "out.jsonl"
    assert refusal(store, out) == f"{store.path} holds no preferences (1 pairs, 0 votes). Collect votes first."
    for suffix in ("", "-wal", "-shm", "-journal"):
        own = Path(f"{store.path}{suffix}")
        assert refusal(store, own) == f"{own} is the preference store itself, or holds its newest votes. Export to another file."
    for name in ("", ".", "/dev/null", str(tmp_path)):
        assert refusal(store, Path(name)).endswith(" is there and is no plain file. Export to another.")
    (tmp_path / "file").write_text("")
    assert "cannot be written: Not a directory" in refusal(store, tmp_path / "file/out.jsonl")
    (tmp_path / "file").unlink()
    assert refusal(store, out, "xml") == "cannot export as 'xml'. Use one of trl, parquet, label-studio, argilla, votes."
    nowhere = tmp_path / "no" / "out.jsonl"
    assert refusal(store, nowhere) == (
        f"{nowhere} cannot be written: No such file or directory. Check the folder and the space on the disk."
    )
    assert sorted(p.name for p in tmp_path.iterdir() if "preferences.db" not in p.name) == []


def test_a_failed_export_leaves_the_older_file_alone(store, pair, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("older\n")
    refusal(store, out)
    assert out.read_text() == "older\n"


def test_exporting_from_a_store_that_is_not_there_makes_none(tmp_path):
    with pytest.raises(DataError, match="no preference store at"):
        export_file(tmp_path / "p.db", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_the_votes_are_exported_with_all_that_is_known_of_each(tmp_path):
    with PreferenceStore.open(tmp_path / "out.db") as store:
        number = store.add_prompt("p")
        pair = store.add_pair(number, *(store.add_answer(number, text) for text in ("x", "y")), reason="random")
        said = {"strength": 4, "left": "b", "seconds": 2.5, "tags": ("clear",), "note": "é\n<b>"}
        store.vote(pair, "a", source="human:ann", **said)
        store.vote(pair, "skip", source="human:bob")
        store.undo(store.vote(pair, "b", source="human:eve"), "human:eve")
        store.vote(pair, "b", source="human:ann", kind="repeat")
    assert export_file(tmp_path / "out.db", tmp_path / "v.jsonl", "votes").startswith(f"{tmp_path / 'v.jsonl'}: 3 votes from ")
    first, *others = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text("utf-8").splitlines()]
    assert isinstance(first.pop("created"), float)
    compared = {"pair": pair, "prompt": "p", "a": "x", "b": "y", "reason": "random"}
    assert first == compared | said | {
        "choice": "a",
        "source": "human:ann",
        "tags": ["clear"],
        "margin": None,
        "share": None,
        "kind": "vote",
    }
    assert [(vote["choice"], vote["source"], vote["kind"]) for vote in others] == [
        ("skip", "human:bob", "vote"),
        ("b", "human:ann", "repeat"),
    ]


CHATS = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
ENDINGS = {"trl": "jsonl", "parquet": "parquet", "label-studio": "json", "argilla": "json"}


@pytest.mark.parametrize(
    ("format", "prompts"),
    [
        *((format, prompts) for format in ENDINGS for prompts in (["one", "two", "three"], CHATS)),
        ("parquet", ["one", CHATS[1], "three"]),  # where one is messages all become so; other formats keep the mixture
    ],
)
def test_every_export_comes_back_with_the_same_results(tmp_path, format, prompts):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    with PreferenceStore.open(tmp_path / "out.db") as store:
        for prompt, choices in zip(prompts, (["a", "a", "b"], ["b", "skip"], ["tie", "both_bad"]), strict=True):
            is_text = isinstance(prompt, str)
            texts = [t if is_text else [{"role": "assistant", "content": t}] for t in ("left", "right")]
            number = store.add_prompt(prompt)
            pair = store.add_pair(number, *(store.add_answer(number, text) for text in texts))
            for i, choice in enumerate(choices):
                store.vote(pair, choice, source=f"human:p{i}")
            store.vote(pair, "b", source="human:p0", kind="repeat")
        expected = [(p.target, json.dumps(p.chosen)) for p in store.preferences()]
    file = tmp_path / f"votes.{ENDINGS[format]}"
    assert f"format {format}" in export_file(tmp_path / "out.db", file, format)
    import_file(tmp_path / "back.db", file)
    with PreferenceStore.open(tmp_path / "back.db") as back:
        found = [(p.target, json.dumps(p.chosen)) for p in back.preferences()]
    assert [target for target, _ in found] == pytest.approx([target for target, _ in expected])
    assert all(("left" in one) == ("left" in other) for (_, one), (_, other) in zip(found, expected, strict=True))
