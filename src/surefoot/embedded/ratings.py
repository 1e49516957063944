"""Review sentences with the ratings of about 18 people each, from -4 (extremely negative) to +4 (extremely positive).

Source: Hutto and Gilbert, "VADER", ICWSM 2014: 10,605 sentences of film reviews (after Pang and Lee) and 3,708 of product
reviews (after Hu and Liu). People rated single sentences; nobody compared two side by side. The sentences are fetched, never
part of this repository.
"""

from __future__ import annotations

import html
import io
import json
import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from surefoot.embedded.fetch import build_once, fetched, pinned_hash
from surefoot.errors import DataError

Source = Literal["movie", "amazon"]

_LAYOUT = 1  # raise it when parsing or cleaning changes: the cache folder gets another name
_SOURCES: tuple[Source, ...] = ("movie", "amazon")
_INNER = "hutto_ICWSM_2014"


@dataclass(frozen=True, slots=True)
class RatedSentence:
    """One sentence and what each person said of it."""

    id: str
    text: str
    mean: float  # of `raters`, -4..4
    raters: tuple[float, ...]  # one number a person; the order says nothing about who it was
    source: Source


def load_ratings(source: Source = "movie") -> list[RatedSentence]:
    """All sentences of one source in the archive's order, 10,605 of films or 3,708 of products. Fetched once, then cached.

    Raises: DataError, one line, when pip reaches no registry, the archive is not the pinned one, or the cache cannot be written.
    """
    folder = build_once(f"ratings-{pinned_hash('ratings')[:8]}-{_LAYOUT}", _fetch_and_parse)
    lines = (folder / f"{source}.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    return [RatedSentence(row["id"], row["text"], row["mean"], tuple(map(float, row["raters"])), source) for row in rows]


def clean(text: str) -> str:
    """A sentence as its reviewer wrote it, as far as the archive still knows.

    HTML entities are resolved (some were escaped twice), '' becomes a double quote and a backtick an apostrophe. The archive lost
    every hyphen to a space: runs of three and more spaces stood for a dash and become " -- "; a lost hyphen inside a word stays a
    space, since nothing tells it from a real one. Case, leading dots and missing full stops stay.
    """
    text = html.unescape(html.unescape(text)).replace("''", '"').replace("`", "'")
    text = re.sub(r"\s{3,}", " -- ", text.strip())
    return re.sub(r"\s+", " ", text)


def parse_ratings(sentences: str, raw_ratings: str, source: Source) -> list[RatedSentence]:
    """Rows of `id TAB mean TAB text` joined by id with rows of `id TAB mean TAB deviation TAB [ratings]`.

    Raises: DataError naming source and line when a row has another shape, an id is unknown, or a mean is not that of its ratings.
    """
    raters: dict[str, tuple[float, ...]] = {}
    for number, line in enumerate(_lines(raw_ratings), start=1):
        fields = line.split("\t")
        try:
            name, stated, _, listed = fields
            raters[name] = tuple(float(rating) for rating in json.loads(listed))
        except ValueError as problem:
            raise DataError(
                f"{source} ratings, line {number}: expected id, mean, deviation, [ratings]; found {line[:60]!r}."
            ) from problem
        if not raters[name] or abs(sum(raters[name]) / len(raters[name]) - float(stated)) > 1e-3:
            raise DataError(
                f"{source} ratings, line {number}: the mean of {name} is stated as {stated}, which its ratings do not give."
            )
    found = []
    for number, line in enumerate(_lines(sentences), start=1):
        fields = line.split("\t")
        if len(fields) != 3 or fields[0] not in raters:
            raise DataError(f"{source} sentences, line {number}: expected a rated id, mean, text; found {line[:60]!r}.")
        own = raters[fields[0]]
        found.append(RatedSentence(f"{source}-{fields[0]}", clean(fields[2]), sum(own) / len(own), own, source))
    return found


def _lines(text: str) -> list[str]:
    """Lines that hold something. `splitlines` would also split at characters that may stand inside a sentence."""
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _fetch_and_parse(folder: Path) -> None:
    with fetched("ratings") as sdist, zipfile.ZipFile(sdist) as outer:
        packed = next(name for name in outer.namelist() if name.endswith(f"{_INNER}.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(packed)), mode="r:gz") as inner:
            for source in _SOURCES:
                sentences = _member(inner, f"{_INNER}/{source}ReviewSnippets_GroundTruth.txt")
                raw_ratings = _member(inner, f"{_INNER}/{source}ReviewSnippets_anonDataRatings.txt")
                _write(folder / f"{source}.jsonl", parse_ratings(sentences, raw_ratings, source))


def _member(archive: tarfile.TarFile, name: str) -> str:
    stream = archive.extractfile(name)
    assert stream is not None, f"{name} is a folder"
    return stream.read().decode("utf-8-sig")  # one of the files begins with a byte-order mark


def _write(path: Path, sentences: list[RatedSentence]) -> None:
    rows = (
        {"id": one.id, "text": one.text, "mean": one.mean, "raters": [int(rating) for rating in one.raters]} for one in sentences
    )
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
