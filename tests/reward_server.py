"""A real HTTP server on loopback that scores answers in either protocol, and fails as often and in such ways as it is told."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("500", "timeout", "wrong length", "nan", "string", "html", "hang up", "drip")


class RewardServer(ThreadingHTTPServer):
    """`score(prompt, answer)` is the truth. A share `faults` of requests fails, each in a kind drawn from `kinds`."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, score: Callable[[str, str], Any], faults: float = 0.0, kinds: Sequence[str] = FAULTS, pause: float = 1.0
    ) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.truth, self.faults, self.kinds, self.pause = score, faults, kinds, pause
        self.drawn = random.Random(5)
        self.asked: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self.dead_after: int | None = None  # requests, after which each is a 503

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/get_reward"


class Answers(BaseHTTPRequestHandler):
    server: RewardServer

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked.append(said)
        if server.dead_after is not None and len(server.asked) > server.dead_after:
            self.send(b"", 503)
        elif server.drawn.random() < server.faults:
            kind = server.drawn.choice(server.kinds)
            server.failed.append(kind)
            self.fail(kind, self.scored(said))
        else:
            self.send(json.dumps(self.scored(said)).encode())

    def scored(self, said: dict[str, Any]) -> dict[str, list[Any]]:
        truth = self.server.truth
        if "rows" in said:
            rows = [{"id": row["id"], "score": truth(row["prompt"], row["completion"])} for row in said["rows"]]
            return {"scores": rows[::-1]}  # the order is free, the ids are not
        return {"rewards": [truth(p, q[len(p) :]) for p, q in zip(said["prompts"], said["query"], strict=True)]}

    def fail(self, kind: str, right: dict[str, list[Any]]) -> None:
        ((key, scores),) = right.items()
        match kind:
            case "500":
                self.send(b"Internal Server Error", 500)
            case "timeout":
                time.sleep(self.server.pause)
                self.send(json.dumps(right).encode())
            case "wrong length":
                self.send(json.dumps({key: scores[1:]}).encode())
            case "nan":
                self.send(json.dumps({key: [float("nan")] * len(scores)}).encode())
            case "string":
                self.send(json.dumps({key: ["0.5"] * len(scores)}).encode())
            case "html":
                self.send(b"<html><body>502 Bad Gateway</body></html>")
            case "hang up":
                self.close_connection = True
            case "drip":  # the head at once, then a byte now and then
                self.send_response(200)
                self.end_headers()
                for _ in range(4):
                    self.wfile.write(b" ")
                    time.sleep(self.server.pause / 4)
            case _:
                raise ValueError(kind)

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the client has gone

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def reward_server(score: Callable[[str, str], Any], **settings: Any) -> Iterator[RewardServer]:
    server = RewardServer(score, **settings)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
