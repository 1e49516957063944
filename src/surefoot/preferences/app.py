"""The annotation server as one ASGI application: pages and routes behind the guard. Needs the extra `label`, and no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jinja2

from surefoot.content import Content
from surefoot.errors import ConfigError, SurefootError
from surefoot.preferences.accounts import Accounts
from surefoot.preferences.progress import ProgressBoard
from surefoot.preferences.queue import Queue, Refused
from surefoot.preferences.security import Addresses, Guard, Scope
from surefoot.preferences.store import PreferenceStore
from surefoot.preferences.words import WORDS, preferred_language

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

TAGS = ("correct", "complete", "clear", "concise", "kind", "safe")
MAX_TAG = 80  # characters
MAX_TAGS = 100


@dataclass(frozen=True, slots=True)
class Exchange:
    """How files go in and out: given from outside, since reading formats is another part's work.

    `formats`: name -> ending of the file. `write(store, file, format)` and `read(store, file, source)` return a line for people.
    """

    formats: Mapping[str, str]
    write: Callable[[Path, Path, str], str]
    read: Callable[[Path, Path, str], str]


class Trainer(Protocol):
    """Trains a reward model in another process; `start` and `state` tell how far it is."""

    def start(self) -> dict[str, Any]: ...

    def state(self) -> dict[str, Any]: ...


@dataclass(slots=True)
class Desk:
    """All that the routes work with."""

    store: PreferenceStore
    queue: Queue
    accounts: Accounts
    addresses: Addresses
    cookie: str = "surefoot"
    owner: str = "owner"  # whom the one-time token signs in
    token: str | None = None  # None: used up, or not offered
    tags: tuple[str, ...] = TAGS
    reveal: bool = True  # tell after a vote which models wrote the answers
    exchange: Exchange | None = None
    trainer: Trainer | None = None
    progress: ProgressBoard = field(init=False)
    pages: jinja2.Environment = field(init=False)

    def __post_init__(self) -> None:
        self.progress = ProgressBoard(self.queue)
        loader = jinja2.PackageLoader("surefoot.preferences", "templates")
        self.pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)

    def page(self, template: str, scope: Scope, **values: Any) -> str:
        """A page in the visitor's language."""
        language = language_of(scope)
        other = "zh" if language == "en" else "en"
        return self.pages.get_template(template).render(words=WORDS[language], language=language, other_language=other, **values)


def language_of(scope: Scope) -> str:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    cookies = dict(part.strip().partition("=")[::2] for part in headers.get("cookie", "").split(";"))
    return preferred_language(cookies.get("surefoot-language"), headers.get("accept-language", ""))


def shown(content: Content) -> list[dict[str, str]]:
    """Content as the page's script draws it: messages, a plain text as one without a role."""
    return [{"role": "", "content": content}] if isinstance(content, str) else content


def make_app(desk: Desk) -> Guard:
    """The application.

    Raises:
        ConfigError: the extra `label` is not installed.
    """
    try:
        import uvicorn  # noqa: F401  it serves the application, and is told missing here with the rest
        from fastapi import FastAPI
    except ImportError as error:
        raise ConfigError(
            f"surefoot label needs {error.name}, which is not installed. Install it with `pip install 'surefoot[label]'`."
        ) from None
    from surefoot.preferences.admin_routes import add_admin_routes
    from surefoot.preferences.routes import add_routes

    app = FastAPI(title="surefoot label", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _explain_errors(app)
    add_routes(app, desk)
    add_admin_routes(app, desk)
    return Guard(app, desk.accounts, desk.addresses, desk.cookie, lambda scope: desk.page("refused.html.jinja", scope))


def _explain_errors(app: FastAPI) -> None:
    """409: can never be taken. 422: not understood. 503: not now (the disk, another writer): to be sent again."""
    from fastapi.exceptions import RequestValidationError
    from starlette.responses import JSONResponse

    def explain(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or str(part).isidentifier())
            return JSONResponse({"error": f"{where[:80]}: {first['msg'][:200]}"}, 422)
        return JSONResponse({"error": str(error)}, 409 if isinstance(error, Refused) else 503)

    app.add_exception_handler(RequestValidationError, explain)
    app.add_exception_handler(SurefootError, explain)
