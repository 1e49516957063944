"""Sums of sources, and rewards that can be checked."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError

from surefoot.config import RewardSourceConfig
from surefoot.errors import ConfigError, RewardError
from surefoot.rewards.function import FunctionReward
from surefoot.rewards.verifiable import last_number, verifiable
from surefoot.rewards.weighted import WeightedSum, source_names
from surefoot.stages.rollouts import part_metrics
from surefoot.types import Completions, Prompts
from tiny_language import make_completions, make_prompts


def batch(answers: list[str], **columns: Any) -> tuple[Prompts, Completions]:
    prompts, completions = make_prompts([[3]] * len(answers), 0), make_completions([[6]] * len(answers), 0)
    return replace(prompts, columns={k: tuple(v) for k, v in columns.items()}), replace(completions, text=tuple(answers))


def check(source: str, answers: list[str], **columns: Any) -> list[float | None]:
    function = verifiable(source)
    assert function is not None
    scores = FunctionReward(function, source).score(*batch(answers, **columns))
    pairs = zip(scores.value.tolist(), scores.valid.tolist(), strict=True)
    return [number if valid else None for number, valid in pairs]


def plain(name: str, numbers: list[float | None]) -> FunctionReward:
    return FunctionReward(lambda prompts, completions: numbers, name)


def test_a_sum_is_weights_times_scores_and_keeps_each_part_as_it_was_scored() -> None:
    both = WeightedSum([("a", plain("a", [1.0, 2.0, 3.0]), 2.0), ("b", plain("b", [10.0, None, 30.0]), -0.5)])
    scores = both.score(*batch(["x", "y", "z"]))
    assert scores.valid.tolist() == [True, False, True]
    assert scores.value.tolist() == [2 - 5, 0.0, 6 - 15]  # a row that one source cannot score is nobody's
    metrics = part_metrics(scores, scores.valid)
    assert metrics == {"rewards/a/mean": 2.0, "rewards/a/std": 1.0, "rewards/b/mean": 20.0, "rewards/b/std": 10.0}
    assert part_metrics(plain("a", [1.0]).score(*batch(["x"])), torch.tensor([True])) == {}  # it is objective/scores


def test_a_source_of_weight_0_is_recorded_and_not_paid() -> None:
    scores = WeightedSum([("a", plain("a", [1.0]), 1.0), ("b", plain("b", [9.0]), 0.0)]).score(*batch(["x"]))
    assert (scores.value.tolist(), scores.parts["b"].tolist()) == ([1.0], [9.0])


def test_a_sum_without_sources_or_with_one_name_twice_or_beyond_float32_is_refused() -> None:
    with pytest.raises(ConfigError, match="give one source or more"):
        WeightedSum([])
    with pytest.raises(ConfigError, match="a name of its own"):
        WeightedSum([("a", plain("a", [1.0]), 1.0), ("a", plain("a", [1.0]), 1.0)])
    with pytest.raises(RewardError, match="weighted sum for answer 0 is not finite"):
        WeightedSum([("a", plain("a", [1e38]), 1e6)]).score(*batch(["x"]))


def test_every_source_has_a_short_name_of_its_own() -> None:
    sources = ["runs/reward/final", "rewards:polite", "regex:^a", "http://127.0.0.1:5000/get_reward", "other:polite", "models/rm"]
    assert source_names(sources) == ["reward", "polite", "regex", "127.0.0.1:5000", "polite_2", "rm"]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"source": "a:b", "sources": ("c:d",)}, "are both set"),
        ({"source": "a:b", "weights": (1.0,)}, "it weighs sources, and none is set"),
        ({"sources": ("a:b", "c:d"), "weights": (1.0,)}, "are 1 for 2 sources. Give one each"),
        ({"sources": ("a:b",), "weights": (0.0,)}, "pay for nothing"),
        ({"source": "a:b", "timeout": 3.0}, "no source is a server's URL"),
        ({"source": "http://h/", "protocol": "surefoot", "label_column": "x"}, 'protocol = "surefoot" sends every column'),
    ],
)
def test_settings_that_contradict_each_other_or_have_no_effect_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RewardSourceConfig(**settings)


def test_a_regular_expression_is_found_anywhere_in_the_answer() -> None:
    assert check(r"regex:\bjoy\b", [" was a joy .", " was joyless .", ""]) == [1.0, 0.0, 0.0]
    assert check("regex:a:b", ["x a:b"]) == [1.0]  # a colon of the pattern is the pattern's


@pytest.mark.parametrize(
    "text, number",
    [
        ("2 + 2 = 4.", "4"),
        ("it is 1,000.50", "1000.50"),
        ("10-5", "5"),
        ("x = -5", "-5"),
        ("(-5)", "-5"),
        ("about 1e3", "1e3"),
        (".5", ".5"),
        ("1,00", "00"),
        ("3, 4", "4"),
    ],
)
def test_the_last_number_of_a_text_is_read_as_it_is_written(text: str, number: str) -> None:
    from decimal import Decimal

    assert last_number(text) == Decimal(number)
    assert last_number("none at all") is None


def test_a_number_is_compared_exactly_and_a_prompt_without_one_is_not_scored() -> None:
    found = check("number:answer", ["so 1,000.0", "0.30000000000000004", "no idea", "7"], answer=["1000", 0.3, "5", None])
    assert found == [1.0, 0.0, 0.0, None]
    with pytest.raises(RewardError, match=r"number:truth: the prompts have no column 'truth'\. Their columns: answer\."):
        check("number:truth", ["1"], answer=["1"])
    with pytest.raises(RewardError, match="'many' holds no number"):
        check("number:answer", ["1"], answer=["many"])


def test_words_are_counted_at_both_ends_of_a_range() -> None:
    answers = ["", "a", "a b", "a b c"]
    assert check("length:1-2", answers) == [0.0, 1.0, 1.0, 0.0]
    assert check("length:2-", answers) == [0.0, 0.0, 1.0, 1.0]
    assert check("length:-1", answers) == [1.0, 1.0, 0.0, 0.0]


def test_json_is_held_against_its_schema(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema", reason="the extra: verify")
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"type": "object", "required": ["stars"], "properties": {"stars": {"type": "integer"}}}))
    answers = [
        '{"stars": 3}',
        '```json\n{"stars": 3}\n```',
        '{"stars": "3"}',
        "{}",
        '{"stars": 3',
        '{"stars": NaN}',
        "[" * 99_999,
    ]
    assert check(f"json_schema:{file}", answers) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    file.write_text('{"type": "thing"}')
    with pytest.raises(ConfigError, match="is no JSON schema"):
        verifiable(f"json_schema:{file}")
    with pytest.raises(ConfigError, match="cannot be read"):
        verifiable(f"json_schema:{tmp_path / 'none'}")


class Fetched(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"true")


def test_a_schema_that_names_another_is_not_fetched_and_references_within_the_file_hold(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema", reason="the extra: verify")
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"$ref": "#/$defs/stars", "$defs": {"stars": {"type": "integer"}}}))
    assert check(f"json_schema:{file}", ["3", '"3"']) == [1.0, 0.0]
    with HTTPServer(("127.0.0.1", 0), Fetched) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/schema.json"
        file.write_text(json.dumps({"$ref": url}))
        with pytest.raises(RewardError, match=f"the reference '{url}' is not in the file, and nothing is fetched. Copy it"):
            check(f"json_schema:{file}", ["1"])
        server.shutdown()
    assert Fetched.asked == []


@pytest.mark.parametrize("text", ['{"$schema": 5}', "[" * 99_999, "{", "3"])
def test_a_file_that_is_no_schema_is_refused(text: str, tmp_path: Path) -> None:
    pytest.importorskip("jsonschema", reason="the extra: verify")
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(ConfigError, match=r"schema\.json is no JSON schema"):
        verifiable(f"json_schema:{tmp_path / 'schema.json'}")


def test_a_missing_library_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ConfigError, match="needs the extra verify"):
        verifiable("json_schema:x")


@pytest.mark.parametrize(
    "source, said",
    [
        ("regex:", r"names nothing to check. Write regex:PATTERN"),
        ("regex:(", "is no regular expression"),
        ("length:", "Write length:MIN-MAX"),
        ("length:-", "is no range of words"),
        ("length:5-2", "is no range of words"),
        ("length:x", "is no range of words"),
    ],
)
def test_a_check_that_cannot_be_made_is_refused(source: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        verifiable(source)
    assert verifiable("rewards:score") is None and verifiable("regex") is None
