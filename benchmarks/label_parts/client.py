"""A browser without a screen: cookie, page token and the posts of the page's script. It keeps a vote until it is acknowledged."""

from __future__ import annotations

import html
import http.client
import json
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    cookies: list[str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """Signed in by a one-time link: the printed entrance, or an invitation with a name."""

    address: str
    cookies: dict[str, str] = field(default_factory=dict)
    csrf: str = ""
    timeout: float = 30.0
    tries: int = 0  # of the last `post_until_acknowledged`
    _connection: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """One request over a connection that is kept; raises OSError or HTTPException where no answer comes.

        A kept connection that the server has closed in the meantime is opened again, as browsers do.
        """
        was_kept = self._connection is not None
        if self._connection is None:
            parts = urlsplit(self.address)
            self._connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=self.timeout)
        sent = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()), **(headers or {})}
        try:
            self._connection.request(method, path, body, {name: value for name, value in sent.items() if value})
            response = self._connection.getresponse()
            received = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if was_kept and isinstance(error, ConnectionError):
                return self.request(method, path, body, headers)
            raise
        cookies = response.headers.get_all("set-cookie") or []
        for cookie in cookies:
            name, _, value = cookie.split(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
        return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, cookies, received)

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """As the page's script posts. `headers` replace its own; an empty one leaves it out."""
        own = {"Content-Type": "application/json", "Origin": self.address, "X-CSRF-Token": self.csrf}
        replaced = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", path, json.dumps(body).encode(), own | replaced)

    def enter(self, link: str) -> Client:
        """Follows the entrance that the server printed, and reads the page."""
        parts = urlsplit(link)
        assert self.get(f"{parts.path}?{parts.query}").status == 303
        return self.read_page()

    def join(self, link: str, name: str) -> Client:
        """Follows an invitation under a name, and reads the page."""
        assert self.get(urlsplit(link).path).status == 303
        page = self.get("/join").body.decode()
        self.csrf = re.search(r'data-csrf="(\w+)"', page).group(1)  # type: ignore[union-attr]
        joined = self.post("/api/join", {"name": name})
        assert joined.status == 200, joined.body
        return self.read_page()

    def read_page(self) -> Client:
        page = self.get("/").body.decode()
        boot = json.loads(html.unescape(re.search(r'data-boot="([^"]*)"', page).group(1)))  # type: ignore[union-attr]
        self.csrf = boot["csrf"]
        return self

    def next(self) -> list[dict[str, Any]]:
        answer = self.post("/api/next", {})
        assert answer.status == 200, answer.body
        items: list[dict[str, Any]] = answer.said["items"]
        return items

    def vote(self, view: int, pick: str = "left", key: str | None = None, **more: Any) -> Answer:
        return self.post("/api/votes", {"key": key or str(uuid.uuid4()), "view": view, "pick": pick, **more})

    def post_until_acknowledged(self, path: str, body: Any, seconds: float = 120.0) -> Answer:
        """Posts again, like the page, for as long as no server answers or it cannot write; the answer that ends it."""
        deadline = time.monotonic() + seconds
        self.tries = 0
        while True:
            self.tries += 1
            try:
                answer = self.post(path, body)
                if answer.status < 500:
                    return answer
            except (OSError, http.client.HTTPException):
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody acknowledged {path} in {seconds} s")
            time.sleep(0.05)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __del__(self) -> None:
        self.close()
