"""Routes for everybody with a link: entering, joining, and judging pairs."""

# annotations are evaluated where the routes are made: FastAPI reads them, and its names are imported there
import secrets
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from surefoot.errors import DataError
from surefoot.preferences.accounts import INVITATION_DAYS, SESSION_DAYS, Annotator
from surefoot.preferences.app import MAX_TAG, MAX_TAGS, Desk, language_of, shown
from surefoot.preferences.queue import Ballot, Holder, Item, Pick, Refused
from surefoot.preferences.security import Visitor
from surefoot.preferences.words import WORDS

if TYPE_CHECKING:
    from fastapi import FastAPI

NUM_ITEMS = 2  # the pair before one's eyes and the next
MAX_NOTE = 2000
STATIC = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{8,64}$")]


class Posted(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PostedBallot(Posted):
    key: Key
    view: int = Field(ge=1, lt=2**53)
    pick: Pick
    strength: int | None = Field(None, ge=1, le=4)
    tags: list[Annotated[str, Field(max_length=MAX_TAG)]] = Field([], max_length=MAX_TAGS)
    note: str = Field("", max_length=MAX_NOTE)
    seconds: float | None = Field(None, ge=0, le=1e7, allow_inf_nan=False)


class PostedUndo(Posted):
    key: Key


class PostedName(Posted):
    name: str = Field(max_length=64)


def annotator_of(scope: Any) -> Annotator:
    """Who sends this request; the guard has let in nobody else."""
    visitor: Visitor = scope["visitor"]
    assert visitor.annotator is not None
    return visitor.annotator


def holder_of(scope: Any) -> Holder:
    return Holder(annotator_of(scope).source, scope["visitor"].session)


def add_routes(app: "FastAPI", desk: Desk) -> None:
    _add_static(app)
    _add_doors(app, desk)
    _add_label_page(app, desk)
    _add_votes(app, desk)


def _add_static(app: "FastAPI") -> None:
    """Scripts and styles by exact name: no path is ever made from a request."""
    from starlette.responses import Response

    folder = resources.files("surefoot.preferences") / "static"
    files = {file.name: file.read_bytes() for file in folder.iterdir()}

    @app.get("/static/{name}", response_class=Response)
    def static(name: str) -> Response:
        if name not in files:
            return Response("there is no such file", 404, media_type="text/plain")
        return Response(files[name], media_type=STATIC[name.rpartition(".")[2]])


def _add_doors(app: "FastAPI", desk: Desk) -> None:
    """How one comes in: the printed address, or an invitation, whose link leaves the address line at once."""
    from fastapi import Request
    from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

    def cookie(response: Response, request: Request, name: str, value: str, days: float) -> Response:
        secure = request.scope["origin"].startswith("https:")
        response.set_cookie(name, value, max_age=int(days * 86_400), httponly=True, samesite="lax", secure=secure, path="/")
        return response

    def refused(request: Request) -> Response:
        return HTMLResponse(desk.page("refused.html.jinja", request.scope), 401)

    @app.get("/enter", response_class=HTMLResponse)
    def enter(request: Request, token: str = "") -> Response:
        with desk.store.batch():  # one at a time: two that come at once are not both let in
            if desk.token is None or not secrets.compare_digest(token.encode("utf-8", "replace"), desk.token.encode()):
                return refused(request)
            secret = desk.accounts.sign_in(desk.owner, "admin")
            desk.token = None
        return cookie(RedirectResponse("/", 303), request, desk.cookie, secret, SESSION_DAYS)

    @app.get("/join/{token}", response_class=HTMLResponse)
    def follow(request: Request, token: str) -> Response:
        if desk.accounts.invitation(token) is None:
            return refused(request)
        response = RedirectResponse("/join", 303)
        response.delete_cookie(desk.cookie)
        return cookie(response, request, f"{desk.cookie}-invitation", token, INVITATION_DAYS)

    @app.get("/join", response_class=HTMLResponse)
    def join_page(request: Request) -> Response:
        visitor: Visitor = request.scope["visitor"]
        if visitor.invitation is None:
            return RedirectResponse("/", 303)
        page = desk.page("join.html.jinja", request.scope, csrf=visitor.csrf, name=visitor.invitation.name)
        return HTMLResponse(page)

    @app.post("/api/join")
    def join(request: Request, posted: PostedName) -> Response:
        visitor: Visitor = request.scope["visitor"]
        if visitor.invitation is None:
            raise Refused("you have joined already.")
        try:
            secret = desk.accounts.join(visitor.secret, posted.name)
        except DataError as error:
            raise Refused(str(error)) from None
        response = cookie(JSONResponse({}), request, desk.cookie, secret, SESSION_DAYS)
        response.delete_cookie(f"{desk.cookie}-invitation")
        return response

    @app.post("/api/leave")
    def leave(request: Request) -> Response:
        desk.queue.release(request.scope["visitor"].session)
        desk.accounts.sign_out(request.scope["visitor"].secret)
        response = JSONResponse({})
        response.delete_cookie(desk.cookie)
        return response


def _add_label_page(app: "FastAPI", desk: Desk) -> None:
    from fastapi import Request
    from starlette.responses import HTMLResponse, RedirectResponse, Response

    with desk.store.reader() as db:
        identity = db.execute("SELECT store FROM identity").fetchone()[0]

    @app.get("/", response_class=HTMLResponse)
    def label(request: Request) -> Response:
        annotator = annotator_of(request.scope)
        language = language_of(request.scope)
        boot = {
            "csrf": request.scope["visitor"].csrf,
            "outbox": f"surefoot-{identity}-{annotator.name}/",  # no name has a /: ann's is no beginning of ann-lee's
            "words": WORDS[language],
            "max_note": MAX_NOTE,
        }
        values = {"annotator": annotator, "boot": boot, "tags": desk.tags, "max_note": MAX_NOTE}
        return HTMLResponse(desk.page("label.html.jinja", request.scope, **values))

    @app.get("/language/{language}", response_class=HTMLResponse)
    def speak(language: Literal["en", "zh"], to: Literal["/", "/admin", "/join"] = "/") -> Response:
        response = RedirectResponse(to, 303)
        response.set_cookie("surefoot-language", language, max_age=365 * 86_400, samesite="lax", path="/")
        return response


def _add_votes(app: "FastAPI", desk: Desk) -> None:
    from fastapi import Request

    def state(holder: Holder, items: list[Item]) -> dict[str, Any]:
        """What the page shows: the items held, and how far the person is."""
        progress = desk.progress.of(holder.source)
        return {
            "items": [_drawn(item) for item in items],
            "done": progress.done,
            "left": progress.left,
            "with_self": progress.with_self,
            "with_others": progress.with_others,
        }

    @app.post("/api/next")
    def following(request: Request) -> dict[str, Any]:
        holder = holder_of(request.scope)
        items = desk.queue.held(holder, NUM_ITEMS)
        return {**state(holder, items), "undoable": desk.queue.undoable(holder.source)}

    @app.post("/api/votes")
    def vote(request: Request, posted: PostedBallot) -> dict[str, Any]:
        holder = holder_of(request.scope)
        if unknown := [tag for tag in posted.tags if tag not in desk.tags]:
            raise Refused(f"there is no reason {unknown[0]!r} on this page. Reload it.")
        ballot = Ballot(**{**posted.model_dump(), "tags": tuple(posted.tags)})
        items, is_new, is_repeat = desk.queue.cast(holder, ballot, NUM_ITEMS)
        if is_new and not is_repeat:
            desk.progress.moved(holder.source, +1)
        left, right = desk.queue.models(posted.view) if desk.reveal else (None, None)
        return {**state(holder, items), "left_model": left, "right_model": right}

    @app.post("/api/undo")
    def undo(request: Request, posted: PostedUndo) -> dict[str, Any]:
        holder = holder_of(request.scope)
        item = desk.queue.undo(holder, posted.key)
        if item is not None:
            desk.progress.moved(holder.source, -1)
        items = desk.queue.held(holder, NUM_ITEMS)
        again = {} if item is None else {"again": _drawn(item)}
        return {**state(holder, items), **again, "undoable": desk.queue.undoable(holder.source)}


def _drawn(item: Item) -> dict[str, Any]:
    sides = {name: shown(content) for name, content in (("prompt", item.prompt), ("left", item.left), ("right", item.right))}
    return {"view": item.view, "expires": item.expires, **sides}
