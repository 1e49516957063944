"""Routes for admins: the overview, people, disputed pairs, files in and out, the reward model on demand."""

# annotations are evaluated where the routes are made: FastAPI reads them, and its names are imported there
import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from surefoot.errors import DataError, SurefootError
from surefoot.preferences.accounts import Role
from surefoot.preferences.app import Desk, language_of
from surefoot.preferences.overview import excerpt, has_votes, overview, settle, take_out
from surefoot.preferences.queue import Refused
from surefoot.preferences.routes import Key, Posted, annotator_of
from surefoot.preferences.votes import Choice
from surefoot.preferences.words import ADMIN_WORDS

if TYPE_CHECKING:
    from fastapi import FastAPI

Name = Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,64}$")]
FileKind = Literal["jsonl", "json", "csv", "tsv", "parquet"]


class PostedInvitation(Posted):
    role: Role
    name: Name | None = None


class PostedSource(Posted):
    source: str = Field(max_length=140)
    out: bool


class PostedAccount(Posted):
    name: Name
    open: bool


class PostedDecision(Posted):
    key: Key
    pair: int = Field(ge=1, lt=2**53)
    choice: Choice | None


def add_admin_routes(app: "FastAPI", desk: Desk) -> None:
    _add_page(app, desk)
    _add_people(app, desk)
    _add_files(app, desk)
    _add_reward_model(app, desk)


def _add_page(app: "FastAPI", desk: Desk) -> None:
    from fastapi import Request
    from starlette.responses import HTMLResponse, Response

    @app.get("/admin", response_class=HTMLResponse)
    def admin(request: Request) -> Response:
        page = desk.page(
            "admin.html.jinja",
            request.scope,
            view=overview(desk.queue, desk.accounts),
            told=ADMIN_WORDS[language_of(request.scope)],
            annotator=annotator_of(request.scope),
            csrf=request.scope["visitor"].csrf,
            store=desk.store.path.name,
            overlap=desk.queue.overlap,
            formats=() if desk.exchange is None else desk.exchange.formats,
            can_train=desk.trainer is not None,
            excerpt=excerpt,
        )
        return HTMLResponse(page)

    @app.post("/api/admin/settle")
    def decide(request: Request, posted: PostedDecision) -> dict[str, str]:
        try:
            settle(desk.store, posted.pair, posted.choice, annotator_of(request.scope).source, posted.key)
        except DataError as error:
            raise Refused(str(error)) from None
        return {}


def _add_people(app: "FastAPI", desk: Desk) -> None:
    from fastapi import Request

    @app.post("/api/admin/invite")
    def invite(request: Request, posted: PostedInvitation) -> dict[str, str]:
        token = desk.accounts.invite(posted.role, posted.name)
        return {"link": f"{request.scope['origin']}/join/{token}"}

    @app.post("/api/admin/votes")
    def withdraw(request: Request, posted: PostedSource) -> dict[str, str]:
        """One annotator's votes out, or back in."""
        if not has_votes(desk.store, posted.source):
            raise Refused(f"nobody votes as {posted.source[:80]!r} in this store.")
        take_out(desk.store, posted.source, annotator_of(request.scope).source, out=posted.out)
        desk.queue.forget_places()
        return {}

    @app.post("/api/admin/account")
    def account(request: Request, posted: PostedAccount) -> dict[str, str]:
        try:
            desk.accounts.set_open(posted.name, posted.open)
        except DataError as error:
            raise Refused(str(error)) from None
        return {}


def _add_files(app: "FastAPI", desk: Desk) -> None:
    """Files in and out lie in a folder of their own for as long as it takes; their names are made here, not by the browser."""
    from fastapi import Request
    from starlette.background import BackgroundTask
    from starlette.responses import FileResponse, Response

    exchange = desk.exchange
    if exchange is None:
        return

    @app.get("/api/admin/export/{format}", response_class=FileResponse)
    def export(format: str) -> Response:
        if format not in exchange.formats:
            raise Refused(f"there is no export as {format[:40]!r}. Use one of {', '.join(exchange.formats)}.")
        folder = Path(tempfile.mkdtemp(prefix="surefoot-export-"))
        path = folder / f"preferences-{format}.{exchange.formats[format]}"
        try:
            exchange.write(desk.store.path, path, format)
        except SurefootError as error:
            shutil.rmtree(folder)
            raise Refused(str(error).replace(str(path), path.name)) from None
        task = BackgroundTask(shutil.rmtree, folder)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name, background=task)

    @app.post("/api/admin/import")
    async def import_(request: Request, name: Name, kind: FileKind) -> dict[str, str]:
        """The body is the file itself. Its votes are of the source import:NAME."""
        body = await request.body()

        def read() -> str:
            with tempfile.TemporaryDirectory(prefix="surefoot-import-") as folder:
                path = Path(folder) / f"{name}.{kind}"
                path.write_bytes(body)
                try:
                    said = exchange.read(desk.store.path, path, f"import:{name}")
                except DataError as error:
                    raise Refused(str(error).replace(str(path), path.name)) from None
                return said.replace(str(path), path.name).replace(str(desk.store.path), desk.store.path.name)

        return {"said": await asyncio.to_thread(read)}


def _add_reward_model(app: "FastAPI", desk: Desk) -> None:
    trainer = desk.trainer
    if trainer is None:
        return

    @app.post("/api/admin/reward")
    def train() -> dict[str, Any]:
        """Starts a reward model from the votes of this moment, where none is being trained."""
        return trainer.start()

    @app.get("/api/admin/reward")
    def trained() -> dict[str, Any]:
        return trainer.state()
