"""A reward server that misbehaves: what is asked again, what ends the run, and that no score is ever made up."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from reward_server import FAULTS, reward_server
from surefoot.config import RewardSourceConfig
from surefoot.errors import ConfigError, Paused, RewardError
from surefoot.rewards.http import HttpReward
from surefoot.types import Completions, Prompts
from tiny_language import make_completions, make_prompts

COUNT = 5
PROMPTS: Prompts = replace(
    make_prompts([[3]] * COUNT, 0), text=tuple(f"prompt {i} " for i in range(COUNT)), columns={"label": (*"abcd", None)}
)
ANSWERS: Completions = replace(make_completions([[6]] * COUNT, 0), text=tuple("x" * (i + 1) for i in range(COUNT)))
TRUTH = [1.0, 2.0, 3.0, 4.0, 5.0]


def length(prompt: str, answer: str) -> float:
    return float(len(answer))


def client(url: str, **settings: Any) -> HttpReward:
    chosen = {"batch_size": 2, "timeout": 0.3, "max_retries": 30, "retry_wait": 0.001} | settings
    return HttpReward(url, RewardSourceConfig(source=url, **chosen), jitter=0)


def test_openrlhfs_protocol_is_spoken_word_for_word() -> None:
    with reward_server(length) as server:
        assert client(server.url, label_column="label").score(PROMPTS, ANSWERS).value.tolist() == TRUTH
        first, _, last = server.asked
        assert first == {"query": ["prompt 0 x", "prompt 1 xx"], "prompts": ["prompt 0 ", "prompt 1 "], "labels": ["a", "b"]}
        assert last == {"query": ["prompt 4 xxxxx"], "prompts": ["prompt 4 "], "labels": [None]}
        client(server.url, batch_size=5).score(PROMPTS, ANSWERS)
        assert server.asked[-1]["labels"] == [""] * 5  # as OpenRLHF without a label key


def test_our_protocol_names_rows_and_may_leave_one_without_a_score() -> None:
    with reward_server(lambda prompt, answer: None if answer == "xx" else float(len(answer))) as server:
        scores = client(server.url, protocol="surefoot").score(PROMPTS, ANSWERS)
        assert server.asked[0]["rows"][1] == {"id": 1, "prompt": "prompt 1 ", "completion": "xx", "columns": {"label": "b"}}
    assert scores.valid.tolist() == [True, False, True, True, True]
    assert scores.value[scores.valid].tolist() == [1.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("protocol", ["openrlhf", "surefoot"])
@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_asked_again_until_the_scores_are_right(kind: str, protocol: str) -> None:
    with reward_server(length, faults=0.5, kinds=(kind,)) as server:
        source = client(server.url, protocol=protocol, timeout=0.15)
        for _ in range(3):
            assert source.score(PROMPTS, ANSWERS).value.tolist() == TRUTH
        assert server.failed


@pytest.mark.parametrize(
    "said, reason",
    [
        ([1.0, math.nan], "score 1 is nan, beyond what float32 holds"),
        ([1.0, math.inf], "score 1 is inf, beyond what float32 holds"),
        ([1.0, 1e39], "score 1 is 1e+39, beyond what float32 holds"),
        ([1.0, "2"], "score 1 is str '2', not a number"),
        ([1.0, None], "score 1 is NoneType 'None', not a number"),
        ([1.0, True], "score 1 is bool 'True', not a number"),
        ([[1.0], [2.0]], "score 0 is list '[1.0]', not a number"),
        ([1.0], "it sent 1 scores for 2 answers"),
        ([1.0, 2.0, 3.0], "it sent 3 scores for 2 answers"),
        ("good", 'its answer holds no list "rewards": '),
        ({"0": 1.0}, 'its answer holds no list "rewards": '),
    ],
)
def test_what_is_not_one_finite_number_an_answer_is_no_score(said: Any, reason: str) -> None:
    with pytest.raises(Exception, match=re.escape(reason)):
        client("http://127.0.0.1:1/")._numbers(json.dumps({"rewards": said}).encode(), 2)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1, 2]", b"null", b'{"rewards"', b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_no_score(body: bytes) -> None:
    with pytest.raises(Exception, match=r"its answer (is no JSON|holds no list)"):
        client("http://127.0.0.1:1/")._numbers(body, 2)


@pytest.mark.parametrize(
    "ids, reason",
    [
        ([0, 0], "it sent the id 0 twice"),
        ([0, 2], "it sent the id 2, not asked for"),
        ([0, -1], "it sent the id -1, not asked for"),
        ([0, "1"], "score 1 is"),
        ([0, True], "score 1 is"),
    ],
)
def test_scores_of_rows_that_were_not_asked_for_are_no_scores(ids: list[Any], reason: str) -> None:
    said = {"scores": [{"id": i, "score": 1.0} for i in ids]}
    with pytest.raises(Exception, match=re.escape(reason)):
        client("http://127.0.0.1:1/", protocol="surefoot")._numbers(json.dumps(said).encode(), 2)


def test_a_dead_server_pauses_after_its_attempts() -> None:
    with reward_server(length, faults=1.0, kinds=("500",)) as server:
        with pytest.raises(Paused, match=r"no scores in 3 attempts; the last: it answered 500 Internal Server Error\."):
            client(server.url, max_retries=2).score(PROMPTS, ANSWERS)
        assert len(server.asked) == 3
        url = server.url
    with pytest.raises(Paused, match="ConnectionRefusedError"):  # and one that is gone
        client(url, max_retries=1).score(PROMPTS, ANSWERS)


def test_a_stop_is_heeded_while_a_server_is_silent() -> None:
    with reward_server(length, faults=1.0, kinds=("timeout",), pause=20.0) as server:
        cfg = RewardSourceConfig(source=server.url, timeout=20.0)
        began = time.monotonic()
        source = HttpReward(server.url, cfg, is_stopping=lambda: time.monotonic() > began + 0.3)
        with pytest.raises(Paused, match="stopped while it waited for scores"):
            source.score(PROMPTS, ANSWERS)
        assert time.monotonic() - began < 5


class Elsewhere(BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012 - of the class on purpose: a request makes the object

    def do_POST(self) -> None:
        self.asked.append(self.path)
        self.send_response(404 if self.path == "/gone" else 307)
        self.send_header("Location", "/other")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize("path, said", [("/gone", "it answered 404 Not Found."), ("/move", "sends on to '/other'.")])
def test_a_wrong_address_is_told_at_once_and_a_redirect_is_not_followed(path: str, said: str) -> None:
    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        Elsewhere.asked.clear()
        with pytest.raises(RewardError, match=re.escape(said)):
            client(f"http://127.0.0.1:{server.server_address[1]}{path}").score(PROMPTS, ANSWERS)
        assert Elsewhere.asked == [path]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "url, said",
    [
        ("http://", "names no host"),
        ("http://a..b/", "is no URL"),
        ("http://127.0.0.1/é", "is not ASCII. Write its letters percent-encoded"),
        ("http://:80/x", "names no host"),
        ("http://a:b:c/", "is no URL"),
        ("http://127.0.0.1:99999/", "is no URL"),
        ("http://me:secret@127.0.0.1/", "holds a user or a password"),
        ("http://127.0.0.1/a b", "names no host"),
    ],
)
def test_a_url_that_cannot_be_asked_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        client(url)
    assert "secret" not in str(error.value)


def test_columns_that_json_has_no_word_for_and_labels_that_are_not_there_are_told() -> None:
    odd = replace(PROMPTS, columns={"when": (object(),) * COUNT})
    with pytest.raises(RewardError, match="a column of the prompts cannot be said in JSON"):
        client("http://127.0.0.1:1/", protocol="surefoot").score(odd, ANSWERS)
    with pytest.raises(RewardError, match=r"label_column = 'answer' is no column of the prompts\. Their columns: label\."):
        client("http://127.0.0.1:1/", label_column="answer").score(PROMPTS, ANSWERS)


def test_waits_double_up_to_a_bound_and_are_drawn_from_their_upper_half(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    source = HttpReward("http://127.0.0.1:1/", RewardSourceConfig(source="http://127.0.0.1:1/", retry_wait=1.0), jitter=0)
    monkeypatch.setattr(source, "_sleep", waits.append)
    with pytest.raises(Paused):
        source.score(PROMPTS, ANSWERS)
    tops = [1, 2, 4, 8, 16, 30, 30, 30]
    assert len(waits) == 8
    assert all(top / 2 <= wait <= top for wait, top in zip(waits, tops, strict=True))
    assert len({round(wait / top, 6) for wait, top in zip(waits, tops, strict=True)}) == 8
