"""`surefoot label` as a process, over HTTP: who gets in, what is refused, and no vote lost or doubled when it is killed."""

from __future__ import annotations

import http.client
import json
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hostile import PAYLOADS
from label_parts.client import Client
from label_parts.server import LabelServer
from surefoot.preferences import PreferenceStore

STRANGE_PATHS = (
    "/", "/admin", "/admin/", "/join", "/static/label.css", "/static/label.js", "/openapi.json", "/docs", "/redoc", "/nothing",
    "/api/admin/export/trl", "/api/admin/reward", "/language/zh", "/enter", "/enter?token=guess", "/join/guess", "/join/",
    "//", "/%2e%2e/",
)  # fmt: skip
POSTS = {
    "/api/next": {}, "/api/votes": {"key": "k" * 8, "view": 1, "pick": "left"}, "/api/undo": {"key": "k" * 8}, "/api/leave": {},
    "/api/join": {"name": "mallory"}, "/api/admin/invite": {"role": "admin"},
    "/api/admin/votes": {"source": "human:ann", "out": True},
    "/api/admin/account": {"name": "ann", "open": False}, "/api/admin/settle": {"key": "k" * 8, "pair": 1, "choice": "a"},
    "/api/admin/import?name=x&kind=jsonl": {}, "/api/admin/reward": {},
}  # fmt: skip


def make_store(path: Path, num_pairs: int) -> Path:
    with PreferenceStore.open(path) as store, store.batch():
        for i in range(num_pairs):
            prompt = store.add_prompt(f"Number {i}?")
            store.add_pair(prompt, *(store.add_answer(prompt, f"{word} {i}", model=f"secret-{word}") for word in ("yes", "no")))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    with LabelServer(make_store(tmp_path_factory.mktemp("label") / "p.db", 200), "--overlap", "2") as started:
        yield started


@pytest.fixture(scope="module")
def admin(server: LabelServer) -> Client:
    return Client(server.address).enter(server.entrance)


@pytest.fixture(scope="module")
def annotator(server: LabelServer, admin: Client) -> Client:
    return Client(server.address).join(admin.post("/api/admin/invite", {"role": "annotator"}).said["link"], "mei")


def count(server: LabelServer) -> int:
    with closing(sqlite3.connect(server.store)) as db:
        return int(db.execute("SELECT count(*) FROM votes").fetchone()[0])


def test_the_entrance_works_once(server: LabelServer, admin: Client) -> None:
    assert Client(server.address).get(server.entrance.removeprefix(server.address)).status == 401


@pytest.mark.parametrize("path", STRANGE_PATHS)
def test_a_stranger_gets_nothing(server: LabelServer, path: str) -> None:
    answer = Client(server.address).get(path)
    assert answer.status == 401
    assert b"secret" not in answer.body and not answer.cookies


@pytest.mark.parametrize("path", POSTS)
def test_a_stranger_posts_nothing(server: LabelServer, path: str) -> None:
    assert Client(server.address).post(path, POSTS[path]).status == 401


def test_an_annotator_gets_no_route_of_the_admins(annotator: Client) -> None:
    for path in ("/admin", "/admin/", "/api/admin/export/trl", "/api/admin/reward"):
        assert annotator.get(path).status == 403
    for path, body in POSTS.items():
        if path.startswith("/api/admin"):
            assert annotator.post(path, body).status == 403
    assert annotator.get("/").status == 200 and b"/admin" not in annotator.get("/").body


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"X_CSRF_Token": ""},
        {"X_CSRF_Token": "0" * 64},
        {"Origin": "http://localhost:1"},
    ],
)
def test_a_forged_post_is_refused(server: LabelServer, annotator: Client, headers: dict[str, str]) -> None:
    view, before = annotator.next()[0]["view"], count(server)
    body = {"key": str(uuid.uuid4()), "view": view, "pick": "left"}
    assert annotator.post("/api/votes", body, **headers).status == 403
    assert count(server) == before


def test_anothers_page_token_is_refused(server: LabelServer, admin: Client, annotator: Client) -> None:
    assert annotator.post("/api/next", {}, X_CSRF_Token=admin.csrf).status == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", "192.168.1.5", "", "127.0.0.1.evil"]
)
def test_a_host_that_is_none_of_the_servers_names_is_refused(annotator: Client, host: str) -> None:
    assert annotator.get("/", Host=host or "-").status == 403


def test_every_answer_carries_the_policy_and_may_not_be_framed(server: LabelServer, admin: Client) -> None:
    for answer in (
        admin.get("/"),
        admin.get("/admin"),
        admin.get("/nothing"),
        Client(server.address).get("/"),
        admin.post("/api/next", {}),
    ):
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy and "default-src 'none'" in policy
        assert answer.headers["x-frame-options"] == "DENY" and answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(server: LabelServer, admin: Client) -> None:
    link = admin.post("/api/admin/invite", {"role": "annotator"}).said["link"]
    client = Client(server.address)
    cookie = client.get(link.removeprefix(server.address)).cookies[-1]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie


def test_models_are_told_after_the_vote_and_not_before(annotator: Client) -> None:
    answer = annotator.post("/api/next", {})
    assert b"secret" not in answer.body and b"secret" not in annotator.get("/").body
    item = answer.said["items"][0]
    told = annotator.vote(item["view"], "left").said
    assert told["left_model"] == f"secret-{item['left'][0]['content'].split()[0]}"
    assert b"secret" not in annotator.post("/api/next", {}).body


def test_a_vote_posted_a_hundred_times_is_one(server: LabelServer, annotator: Client) -> None:
    view, key, before = annotator.next()[0]["view"], str(uuid.uuid4()), count(server)
    assert {annotator.vote(view, "right", key, strength=3, tags=["clear"], note="why").status for _ in range(100)} == {200}
    assert count(server) == before + 1
    assert annotator.vote(view, "left").status == 409  # another tab
    assert count(server) == before + 1


@pytest.mark.parametrize(
    "body",
    [
        {"view": "1"}, {"view": 0}, {"view": 2**63}, {"pick": "a"}, {"pick": None}, {"strength": 5}, {"strength": 1.5},
        {"strength": True},
        {"key": "short"}, {"key": "x" * 65}, {"key": "../../etc"}, {"note": "x" * 2001}, {"note": 1}, {"note": "\ud800"},
        {"tags": ["?"]},
        {"tags": "clear"}, {"seconds": -1}, {"seconds": 1e300}, {"more": 1}, {"pick": "tie", "strength": 2}, {"view": 10**9},
    ],
)  # fmt: skip
def test_a_ballot_that_makes_no_sense_is_refused_in_one_line(
    server: LabelServer, annotator: Client, body: dict[str, object]
) -> None:
    good = {"key": str(uuid.uuid4()), "view": annotator.next()[0]["view"], "pick": "left"}
    before = count(server)
    answer = annotator.post("/api/votes", good | body)
    assert answer.status in (409, 422)
    assert "\n" not in answer.said["error"]
    assert count(server) == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":' * 5000])
def test_a_body_that_is_no_ballot_is_refused(annotator: Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Origin": annotator.address, "X-CSRF-Token": annotator.csrf}
    assert annotator.request("POST", "/api/votes", body, headers).status in (400, 422)


def test_a_body_that_is_too_long_is_refused_before_it_is_read(annotator: Client) -> None:
    headers = {"Origin": annotator.address, "X-CSRF-Token": annotator.csrf, "Content-Length": "99999999"}
    client = Client(annotator.address, annotator.cookies)
    assert client.request("POST", "/api/votes", b"", headers).status == 413


ESCAPES = ("../x", "..%2fx", "..%5cx", "%2e%2e%2f", "/etc/passwd", "x/../../y", "x%00", "..", ".", "a b", "A", "x" * 65, "")


@pytest.mark.parametrize("name", ESCAPES)
def test_no_path_leaves_its_folder(server: LabelServer, admin: Client, name: str) -> None:
    folder = sorted(path.name for path in server.store.parent.iterdir())
    headers = {"Origin": admin.address, "X-CSRF-Token": admin.csrf}
    row = json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}).encode()
    imported = admin.request("POST", f"/api/admin/import?name={name.replace(' ', '+')}&kind=jsonl", row, headers)
    assert imported.status in (409, 422) or name in (".", "..")
    for path in (f"/api/admin/export/{name}", f"/static/{name}", f"/join/{name}"):
        assert admin.get(path.replace(" ", "%20")).status in (401, 404, 405, 409)
    assert sorted(path.name for path in server.store.parent.iterdir()) == folder


def test_what_is_exported_can_be_imported(server: LabelServer, admin: Client, annotator: Client) -> None:
    annotator.vote(annotator.next()[0]["view"], "left")
    rows = admin.get("/api/admin/export/trl").body
    assert set(json.loads(rows.splitlines()[0])) >= {"prompt", "chosen", "rejected"}
    headers = {"Origin": admin.address, "X-CSRF-Token": admin.csrf}
    said = [admin.request("POST", "/api/admin/import?name=back&kind=jsonl", rows, headers).said["said"] for _ in range(2)]
    assert f"{len(rows.splitlines())} new votes of import:back" in said[0] and " 0 new votes" in said[1]


def test_hostile_text_is_text_on_every_page(tmp_path: Path) -> None:
    store = make_store(tmp_path / "p.db", 0)
    with PreferenceStore.open(store) as opened:
        for payload in PAYLOADS:
            prompt = opened.add_prompt(payload)
            a, b = (opened.add_answer(prompt, payload + side, model=payload) for side in "ab")
            pair = opened.add_pair(prompt, a, b)
            for name, choice in (("x", "a"), ("y", "b")):
                opened.vote(pair, choice, source=f"human:{name}", note=payload)
    with LabelServer(store, "--tags", ",".join(p.replace(",", "") for p in PAYLOADS[:8])) as started:
        client = Client(started.address).enter(started.entrance)
        for path in ("/", "/admin"):
            page = client.get(path).body.decode()
            assert (
                "<script>window" not in page
                and "<img" not in page
                and "onload=window.__hacked=1>" not in page.replace("&gt;", "")
            )
    assert started.stop() == 0


@pytest.mark.parametrize("site", ["vote-arrived", "vote-stored"])
def test_a_vote_is_stored_once_when_the_server_dies_before_or_after_it_wrote(site: str, tmp_path: Path) -> None:
    server = LabelServer(make_store(tmp_path / "p.db", 10)).start(fault=f"{site}:3:kill")
    client = Client(server.address).enter(server.entrance)
    keys = [str(uuid.uuid4()) for _ in range(6)]
    for i, key in enumerate(keys):
        if i == 2:
            body = {"key": key, "view": client.next()[0]["view"], "pick": "tie"}
            with pytest.raises((OSError, http.client.HTTPException)):
                client.post("/api/votes", body)
            server.wait_until_dead()
            assert count(server) == (2 if site == "vote-arrived" else 3)
            server.start()
            assert client.post_until_acknowledged("/api/votes", body).status == 200
        else:
            assert client.vote(client.next()[0]["view"], "tie", key).status == 200
    server.kill()
    with closing(sqlite3.connect(server.store)) as db:
        assert [key for (key,) in db.execute("SELECT idempotency_key FROM votes ORDER BY id")] == keys


def label(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "surefoot", "label", *words], capture_output=True, text=True, timeout=60)


def test_another_host_is_refused_without_accounts_and_served_with_them(tmp_path: Path) -> None:
    store = make_store(tmp_path / "p.db", 3)
    refused = label("--store", str(store), "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert f"--host 0.0.0.0 can be reached by others, and {store} has no accounts." in refused.stderr
    server = LabelServer(store, "--host", "0.0.0.0")
    invited = label("--store", str(store), "--invite", "boss", "--role", "admin", "--port", str(server.port))
    link = invited.stdout.strip()
    with server:
        assert server.entrance == ""  # no token is offered to the world
        client = Client(server.address).join(link, "boss")
        assert client.get("/admin").status == 200
        assert client.get("/", Host="192.0.2.7:80").status == 200 and client.get("/", Host="evil.example").status == 403


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--store", "nowhere.db"), "no preference store at nowhere.db."),
        (("--overlap", "0"), "--overlap = 0 asks for no votes."),
        (("--repeats", "0.9"), "--repeats = 0.9 is out of range."),
        (("--address", "label.example.org"), "--address = 'label.example.org' is no address."),
        (("--address", "http://["), "--address = 'http://[' is no address."),
        (("--name", "Ann Lee"), "name = 'Ann Lee' is not allowed."),
        (("--tags", f"clear,{'x' * 81}"), "--tags: 'xxxx"),
        (("--invite", "ann", "--address", "label.example.org"), "--address = 'label.example.org' is no address."),
        (("--invite", "Ann Lee"), "name = 'Ann Lee' is not allowed."),
        (("--host", "256.1.1.1"), "cannot listen at 256.1.1.1 port 0"),
    ],
)
def test_a_wrong_option_is_one_line(words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    store = () if "--store" in words else ("--store", str(make_store(tmp_path / "p.db", 1)))
    if "256.1.1.1" in words:
        label(*store, "--invite", "anybody")
    refused = label(*store, "--port", "0", *words)
    assert refused.returncode == 2
    assert sentence in refused.stderr and refused.stderr.count("\n") == 1
