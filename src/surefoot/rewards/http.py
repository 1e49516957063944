"""A reward server: answers go out as JSON in batches, scores come back. What breaks the protocol is asked for again.

Two protocols, both a POST of one JSON object:

openrlhf  {"query": [prompt + answer, ...], "prompts": [...], "labels": [...]} -> {"rewards": [number, ...]}, in the order asked
surefoot  {"rows": [{"id": 0, "prompt": ..., "completion": ..., "columns": {...}}, ...]}
          -> {"scores": [{"id": 0, "score": number or null}, ...]}, in any order: each id comes back exactly once

A refused connection, a timeout, a status of 408, 425, 429 or 5xx, and every answer that breaks the protocol is tried again, after
min(30, retry_wait 2^k) seconds times a number drawn from [0.5, 1]. After max_retries the run is paused; a score is never made up.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

import torch

from surefoot.config import RewardSourceConfig
from surefoot.errors import ConfigError, Paused, RewardError, told
from surefoot.types import Completions, Prompts, Scores

logger = logging.getLogger(__name__)

LONGEST_WAIT = 30.0  # seconds
LOOK = 0.1  # seconds between two looks at whether the run is to stop
LARGEST_ANSWER = 16 << 20  # bytes; some 100,000 scores are less
LARGEST = torch.finfo(torch.float32).max
PASSING = (408, 425, 429)  # of the statuses below 500 those that another attempt may mend
Row = tuple[str, str, dict[str, Any]]  # prompt, answer, the data set's further fields


class _Refused(Exception):
    """An attempt that came to nothing, in words; another may succeed."""


class HttpReward:
    """Scores of a server at `url`. `is_stopping` is looked at while it waits, so that a stop is not held up by a dead server."""

    def __init__(
        self, url: str, cfg: RewardSourceConfig, *, is_stopping: Callable[[], bool] = lambda: False, jitter: int | None = None
    ) -> None:
        self.url, self.cfg = url, cfg
        self._place = _place(url)
        self._is_stopping = is_stopping
        self._jitter = random.Random(jitter)  # its own: no number of the run depends on how often a server failed

    def score(self, prompts: Prompts, completions: Completions) -> Scores:
        """Scores a batch, `batch_size` answers a request.

        Raises:
            Paused: the server gave no scores in 1 + max_retries attempts, or the run is to stop while it waits for them.
            RewardError: the server refuses the request itself (404, 401, a redirect), or a column cannot be said in JSON.
        """
        rows = [
            (prompt, answer, {name: column[i] for name, column in prompts.columns.items()})
            for i, (prompt, answer) in enumerate(zip(prompts.text, completions.text, strict=True))
        ]
        found: list[float | None] = []
        for start in range(0, len(rows), self.cfg.batch_size):
            found += self._batch(rows[start : start + self.cfg.batch_size])
        value = torch.tensor([0.0 if number is None else number for number in found], dtype=torch.float32)
        valid = torch.tensor([number is not None for number in found], dtype=torch.bool)
        return Scores(value=value, parts={"server": value}, valid=valid)

    def _batch(self, rows: Sequence[Row]) -> list[float | None]:
        """The scores of one request, in the order of `rows`."""
        body = self._question(rows)
        for attempt in range(self.cfg.max_retries + 1):
            try:
                return self._numbers(self._answer(body), len(rows))
            except _Refused as reason:
                if attempt == self.cfg.max_retries:
                    raise Paused(
                        f"{self.url}: no scores in {attempt + 1} attempts; the last: {reason}. Nothing was trained on it. "
                        "Mend the server and run the same command again: the run goes on from its last checkpoint."
                    ) from reason
                wait = min(LONGEST_WAIT, self.cfg.retry_wait * 2.0**attempt) * self._jitter.uniform(0.5, 1.0)
                logger.warning(
                    "%s: %s; attempt %d of %d in %.1f s", self.url, reason, attempt + 2, self.cfg.max_retries + 1, wait
                )
                self._sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _question(self, rows: Sequence[Row]) -> bytes:
        prompts, answers, columns = zip(*rows, strict=True)
        if self.cfg.protocol == "openrlhf":
            label = self.cfg.label_column
            if label is not None and any(label not in column for column in columns):
                known = ", ".join(sorted(columns[0])) or "none"
                raise RewardError(f"reward_source.label_column = {label!r} is no column of the prompts. Their columns: {known}.")
            said: Any = {
                "query": [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)],
                "prompts": list(prompts),
                "labels": ["" if label is None else column[label] for column in columns],
            }
        else:
            rows_said = ({"prompt": p, "completion": a, "columns": c} for p, a, c in rows)
            said = {"rows": [{"id": i, **row} for i, row in enumerate(rows_said)]}
        try:
            return json.dumps(said, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"{self.url}: a column of the prompts cannot be said in JSON ({error}). Remove or mend it."
            ) from error

    def _answer(self, body: bytes) -> bytes:
        """The body of one attempt's answer, in `timeout` seconds from connecting to the last byte."""
        found: list[bytes | BaseException] = []
        sockets: list[socket.socket] = []
        done = threading.Event()
        connection = self._connection()  # a new one an attempt: what comes late for an earlier one is never read

        def ask() -> None:
            try:
                connection.connect()
                sockets.append(connection.sock)  # http.client lets go of it before the body is read
                found.append(self._exchange(connection, body))
            except BaseException as error:
                found.append(error)
            finally:
                connection.close()
                done.set()

        threading.Thread(target=ask, daemon=True, name="reward-request").start()
        deadline = time.monotonic() + self.cfg.timeout
        try:
            while not done.wait(min(LOOK, max(deadline - time.monotonic(), 0.001))):
                self._heed()
                if time.monotonic() >= deadline:
                    raise _Refused(f"no answer within {self.cfg.timeout:g} s (reward_source.timeout)")
        finally:
            if not done.is_set():  # a server that sends a byte now and then would hold the thread for ever
                _hang_up(sockets)
        match found[0]:
            case bytes() as answer:
                return answer
            case _Refused() | RewardError() as error:
                raise error
            case OSError() | http.client.HTTPException() as error:
                raise _Refused(told(error)) from error
            case error:
                raise error

    def _connection(self) -> http.client.HTTPConnection:
        place = self._place
        assert place.hostname is not None  # _place refuses such a URL
        if place.scheme.lower() == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(place.hostname, place.port, timeout=self.cfg.timeout, context=context)
        return http.client.HTTPConnection(place.hostname, place.port, timeout=self.cfg.timeout)

    def _exchange(self, connection: http.client.HTTPConnection, body: bytes) -> bytes:
        """One POST. A redirect is not followed: scores come from the place that the settings name, and from no other."""
        path = (self._place.path or "/") + (f"?{self._place.query}" if self._place.query else "")
        connection.request("POST", path, body, {"Content-Type": "application/json", "Accept": "application/json"})
        with connection.getresponse() as response:
            return self._body(response)

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        reason = "".join(c if c.isprintable() else "?" for c in response.reason)[:80]  # it goes to a terminal
        status = f"it answered {response.status} {reason}".rstrip()
        if response.status in PASSING or response.status >= 500:
            raise _Refused(status)
        if response.status != 200:
            where = f" and sends on to {response.getheader('Location')!r}" if 300 <= response.status < 400 else ""
            raise RewardError(f"{self.url}: {status}{where}. Nothing was trained on this batch. Mend the URL or the server.")
        answer = response.read(LARGEST_ANSWER + 1)
        if len(answer) > LARGEST_ANSWER:
            raise _Refused(f"its answer passes {LARGEST_ANSWER >> 20} MiB")
        return answer

    def _numbers(self, answer: bytes, count: int) -> list[float | None]:
        """One finite number a row, or None where the protocol has a way to say that a row cannot be scored."""
        try:
            said = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise _Refused(f"its answer is no JSON: {answer[:60]!r}") from error
        key = "rewards" if self.cfg.protocol == "openrlhf" else "scores"
        listed = said.get(key) if isinstance(said, dict) else None
        if not isinstance(listed, list):
            raise _Refused(f'its answer holds no list "{key}": {answer[:60]!r}')
        if len(listed) != count:
            raise _Refused(f"it sent {len(listed)} scores for {count} answers")
        if self.cfg.protocol == "openrlhf":
            return [_number(number, i) for i, number in enumerate(listed)]
        return _by_id(listed, count)

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._heed()
            time.sleep(min(LOOK, left))

    def _heed(self) -> None:
        if self._is_stopping():
            raise Paused(
                f"{self.url}: stopped while it waited for scores. Run the same command again: the run goes on from its "
                "last checkpoint."
            )


def _hang_up(sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):  # closed already
            each.shutdown(socket.SHUT_RDWR)


def _place(url: str) -> SplitResult:
    """The parts of a URL that can be asked. Raises ConfigError where it names no host, a wrong port, or a password."""
    try:
        place = urlsplit(url)
        _ = place.port  # raises where it is no number
        (place.hostname or "").encode("idna")  # and this where no such host can be
    except ValueError as error:
        raise ConfigError(f"reward_source: {url!r} is no URL: {error}. Write http://HOST:PORT/PATH.") from error
    if not (place.path + place.query).isascii():
        raise ConfigError(f"reward_source: the path of {url!r} is not ASCII. Write its letters percent-encoded (%C3%A9).")
    if not place.hostname or any(c.isspace() or not c.isprintable() for c in url):
        raise ConfigError(f"reward_source: {url!r} names no host. Write http://HOST:PORT/PATH.")
    if place.username is not None or place.password is not None:
        raise ConfigError(
            f"reward_source: the URL of {place.hostname} holds a user or a password, which config.yaml would keep. "
            "Put a proxy that adds them in front of the server."
        )
    return place


def _by_id(listed: Sequence[Any], count: int) -> list[float | None]:
    found: dict[int, float | None] = {}
    for place, row in enumerate(listed):
        if not isinstance(row, dict) or type(row.get("id")) is not int or "score" not in row:
            raise _Refused(f'score {place} is {str(row)[:40]!r}; it must be {{"id": a row\'s, "score": a number or null}}')
        if row["id"] in found or not 0 <= row["id"] < count:
            raise _Refused(
                f"it sent the id {row['id']} twice" if row["id"] in found else f"it sent the id {row['id']}, not asked for"
            )
        found[row["id"]] = None if row["score"] is None else _number(row["score"], row["id"])
    return [found[i] for i in range(count)]


def _number(value: Any, row: int) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Refused(f"score {row} is {type(value).__name__} {str(value)[:40]!r}, not a number")
    if not (math.isfinite(value) if isinstance(value, float) else True) or abs(value) > LARGEST:
        raise _Refused(f"score {row} is {str(value)[:40]}, beyond what float32 holds")
    return float(value)
