"""The door of the annotation server: every request passes `Guard` before any route, and what is not allowed here is refused.

Host and Origin are held against a list (DNS rebinding, forged posts), a post needs the token of its own session (CSRF), a
stranger gets nothing, an annotator none of the admin's routes. Every answer carries a strict content security policy.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from surefoot.errors import ConfigError
from surefoot.preferences.accounts import Accounts, Annotator, Invitation, secret_hash

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
    "cache-control": "no-store",
}
MAX_BODY = 64 * 1024
MAX_IMPORT = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who sends a request: an annotator, or somebody with an unused invitation. `csrf` is what their posts must carry."""

    annotator: Annotator | None
    invitation: Invitation | None
    secret: str
    csrf: str

    @property
    def session(self) -> str:
        return secret_hash(self.secret)


class Addresses:
    """By which names the server may be reached: those of this machine, and `public` ones such as https://label.example.org."""

    def __init__(self, host: str, port: int, public: tuple[str, ...] = ()) -> None:
        self._public = tuple(_public_address(address) for address in public)
        self._loopback = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        self._any_number = not is_loopback(host)  # a number cannot be rebound to another machine
        self._named = f"{host}:{port}"

    def origin_of(self, host: str) -> str | None:
        """The origin of pages under this Host header; None: nobody is to call us so."""
        host = host.lower()
        for scheme, name in self._public:
            if host == name:
                return f"{scheme}://{name}"
        if host in self._loopback or host == self._named or (self._any_number and _is_number(host)):
            return f"http://{host}"
        return None


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_number(host: str) -> bool:
    name, _, port = host.rpartition(":") if host.count(":") == 1 or host.startswith("[") else (host, "", "")
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return port.isdecimal() or not port


def _public_address(address: str) -> tuple[str, str]:
    try:
        parts = urlsplit(address)
    except ValueError:  # half a pair of brackets
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or parts.query or "@" in parts.netloc:
        raise ConfigError(f"--address = {address!r} is no address. Write it as https://label.example.org.")
    return parts.scheme, parts.netloc.lower()


def csrf_of(secret: str) -> str:
    return hashlib.sha256(f"csrf:{secret}".encode()).hexdigest()


def needed_role(path: str) -> str:
    """Who may go there: `link` (the route asks for a one-time token), `guest` (an invitation is enough), annotator, admin."""
    if path == "/enter" or (path.startswith("/join/") and path != "/join/" and path.count("/") == 2):
        return "link"
    if path in ("/join", "/api/join") or path.startswith(("/static/", "/language/")):
        return "guest"
    if path.split("/")[1:2] == ["admin"] or path.startswith("/api/admin/"):
        return "admin"
    return "annotator"


class Guard:
    """ASGI middleware in front of all routes. `cookie` is the session's; the invitation's has the suffix -invitation."""

    def __init__(
        self, app: App, accounts: Accounts, addresses: Addresses, cookie: str, refused_page: Callable[[Scope], str]
    ) -> None:
        self.app = app
        self._accounts = accounts
        self._addresses = addresses
        self._cookie = cookie
        self._refused_page = refused_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no WebSocket is served: uvicorn answers 403
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == "host"]
        origin = self._addresses.origin_of(hosts[0]) if len(hosts) == 1 else None
        if origin is None:
            await self._refuse(scope, send, 403, "this Host is not one of this server's names. Use the address that it printed.")
            return
        visitor = await self._visitor(headers)
        refusal = _refusal(scope, dict(headers), origin, visitor)
        if refusal is not None:
            await self._refuse(scope, send, *refusal)
            return
        scope["visitor"] = visitor
        scope["origin"] = origin
        await self.app(scope, receive, _with_headers(send))

    async def _visitor(self, headers: list[tuple[str, str]]) -> Visitor | None:
        cookies: SimpleCookie = SimpleCookie()
        try:
            for name, value in headers:
                if name == "cookie":
                    cookies.load(value)
        except CookieError:
            return None
        if (morsel := cookies.get(self._cookie)) is not None:
            known = self._accounts.remembered(morsel.value)
            annotator = known[0] if known is not None else await asyncio.to_thread(self._accounts.session, morsel.value)
            if annotator is not None:
                return Visitor(annotator, None, morsel.value, csrf_of(morsel.value))
        if (morsel := cookies.get(f"{self._cookie}-invitation")) is not None:
            invitation = await asyncio.to_thread(self._accounts.invitation, morsel.value)
            if invitation is not None:
                return Visitor(None, invitation, morsel.value, csrf_of(morsel.value))
        return None

    async def _refuse(self, scope: Scope, send: Send, status: int, sentence: str) -> None:
        if scope["path"].startswith("/api/") or status != 401:
            body, kind = json.dumps({"error": sentence}).encode(), b"application/json"
        else:
            body, kind = self._refused_page(scope).encode(), b"text/html; charset=utf-8"
        start = {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}
        guarded = _with_headers(send)
        await guarded(start)
        await guarded({"type": "http.response.body", "body": body})


def _refusal(scope: Scope, headers: dict[str, str], origin: str, visitor: Visitor | None) -> tuple[int, str] | None:
    """Why this request is refused, with the status; None: it may go on."""
    role, safe = needed_role(scope["path"]), scope["method"] in ("GET", "HEAD")
    annotator = None if visitor is None else visitor.annotator
    if role == "link":
        return None if safe else (405, "only a browser's visit is answered here.")
    if visitor is None or (annotator is None and role != "guest"):
        return 401, "this page is for people with a link. Ask the person who runs it for one."
    if role == "admin" and (annotator is None or annotator.role != "admin"):
        return 403, "this is for admins alone."
    if safe:
        return None
    if headers.get("origin") != origin:
        return 403, "a post must come from this server's own page (Origin)."
    if headers.get("x-csrf-token") != visitor.csrf:
        return 403, "the post does not carry this page's token (X-CSRF-Token). Reload the page."
    length = headers.get("content-length", "0" if "transfer-encoding" not in headers else "")
    if not length.isdecimal() or len(length) > 12:
        return 411, "a post must state its length."
    if int(length) > (MAX_IMPORT if scope["path"] == "/api/admin/import" else MAX_BODY):
        return 413, "that is too long."
    return None


def _with_headers(send: Send) -> Send:
    async def guarded(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", ())}
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in there]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return guarded
