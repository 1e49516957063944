"""Text that would run as a script, in every field of every page of `surefoot label`; and the pages under axe, in every guise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostile import ALL, SET
from label_parts.server import LabelServer
from surefoot.preferences import PreferenceStore

pytestmark = pytest.mark.browser

DRAWN = "body[data-view]:not([data-view=''])"


def test_there_are_sixty_payloads_and_more() -> None:
    assert len(set(ALL)) > 60


@pytest.fixture(scope="module", params=["with", "without"])
def policy(request: pytest.FixtureRequest) -> str:
    """With the content security policy, or without it, so that escaping has to hold alone."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    """Every payload as prompt, answer, model and note; names, tags and the file's name as far as they may be so."""
    path = tmp_path_factory.mktemp("hostile") / "<img src=x onerror=window.__hacked=1>.db"
    with PreferenceStore.open(path) as store, store.batch():
        for payload in ALL:
            prompt = store.add_prompt([{"role": "system", "content": payload}, {"role": "user", "content": payload}])
            a, b = (store.add_answer(prompt, payload + side, model=payload) for side in "ab")
            store.add_pair(prompt, a, b, reason=payload)
    tags = ",".join([payload.replace(",", "") for payload in ALL if len(payload) <= 80][:100])
    with LabelServer(path, "--repeats", "0", "--tags", tags, "--overlap", "3") as started:
        yield started


def _listen(page: Any) -> list[str]:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    return said


def _poke(page: Any) -> None:
    """What a person does by accident: moves, tabs, opens everything."""
    page.mouse.move(300, 300)
    page.mouse.move(700, 500)
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")


@pytest.fixture(scope="module")
def page(policy: str, server: LabelServer, chromium: Any) -> Any:
    """Signed in."""
    context = chromium.new_context(viewport={"width": 1366, "height": 800}, bypass_csp=policy == "without")
    page = context.new_page()
    page.goto(server.entrance)
    page.wait_for_selector(DRAWN)
    return page


def test_no_payload_runs_while_all_of_them_are_judged(page: Any, server: LabelServer) -> None:
    said = _listen(page)
    page.reload()
    judged = 0
    while True:
        page.wait_for_function("() => document.body.dataset.view || !document.getElementById('empty').hidden")
        view = page.get_attribute("body", "data-view")
        if not view:
            break
        page.keyboard.press("d")
        _poke(page)
        if judged % 8 == 0:  # a note, and every tag
            page.eval_on_selector_all("input[name=tag]", "all => all.slice(0, 20).forEach(box => { box.checked = true; })")
            page.fill("#note", ALL[judged % len(ALL)])
        page.focus("#prompt")
        page.keyboard.press("12tx"[judged % 4])
        page.wait_for_function("view => document.body.dataset.view !== view", arg=view)
        assert page.evaluate("window.__hacked") is None
        judged += 1
    page.wait_for_selector("body[data-waiting='0']")
    assert judged == len(set(ALL))
    assert said == []


def test_no_payload_runs_on_the_admins_page(page: Any, server: LabelServer) -> None:
    with PreferenceStore.open(server.store) as store, store.batch():
        for number, payload in enumerate(ALL):  # all of them among the eight pairs that most people differ on
            pair, choice = number % 8 + 1, "ab"[number % 3 % 2]
            key = f"{number:03}-0000"
            store.vote(pair, choice, source=f"human:v{number}", note=payload, tags=[payload], idempotency_key=key)
    said = _listen(page)
    for language in ("en", "zh"):
        page.goto(f"{server.address}/language/{language}?to=/admin")
        _poke(page)
        assert page.locator(".dispute").count() == 8
        assert {f"{payload}. {payload}" for payload in ALL} <= set(page.locator(".dispute .reasons dd").all_text_contents())
        assert page.evaluate("window.__hacked") is None
    for payload in ALL[:30]:
        page.fill("#invite-name", payload[:64])
        page.click("#invite")
        page.wait_for_function("() => document.getElementById('problem').textContent !== ''")
    assert page.evaluate("window.__hacked") is None
    assert [line for line in said if "422" not in line] == []


def test_no_payload_runs_where_one_joins(page: Any, server: LabelServer, chromium: Any) -> None:
    page.goto(f"{server.address}/language/en?to=/admin")
    page.click("#invite")
    page.wait_for_selector("#link:not([hidden])")
    guest = chromium.new_context().new_page()
    said = _listen(guest)
    guest.goto(page.inner_text("#link-text"))
    for payload in ALL[:30]:
        guest.fill("#name", payload[:64])
        guest.click("#join")
        guest.wait_for_function("() => document.getElementById('problem').textContent !== ''")
        assert guest.evaluate("window.__hacked") is None
    assert [line for line in said if "409" not in line] == []


def test_the_policy_stops_a_script_that_got_into_the_page(server: LabelServer, chromium: Any, page: Any) -> None:
    """The other tests would pass without any policy; this one breaks the escaping on purpose."""
    context = chromium.new_context(storage_state=page.context.storage_state())
    tab = context.new_page()
    said = _listen(tab)

    def broken(route: Any) -> None:
        answer = route.fetch()
        body = answer.text().replace("</main>", f"<script>{SET}</script><img src=x onerror={SET}></main>")
        route.fulfill(response=answer, body=body)

    tab.route(f"{server.address}/", broken)
    tab.goto(server.address)
    tab.wait_for_timeout(300)
    assert tab.evaluate("window.__hacked") is None
    assert any("Content Security Policy" in line for line in said)


def test_another_site_can_neither_frame_the_page_nor_post_to_it(server: LabelServer, chromium: Any, page: Any) -> None:
    context = chromium.new_context(storage_state=page.context.storage_state())
    tab = context.new_page()
    evil = "http://evil.test/"
    posts = f"fetch('{server.address}/api/leave', {{method: 'POST', credentials: 'include', mode: 'no-cors'}})"
    html = f"<iframe src='{server.address}/'></iframe><script>{posts}.catch(() => 0).then(() => document.title = 'sent')</script>"
    tab.route(evil, lambda route: route.fulfill(content_type="text/html", body=html))
    tab.goto(evil)
    tab.wait_for_function("() => document.title === 'sent'")
    frame = next(frame for frame in tab.frames if frame is not tab.main_frame)
    assert "Surefoot" not in frame.content()
    tab.goto(server.address)  # still signed in: nothing was posted
    assert "Surefoot" in tab.title() and tab.locator("footer.desk").count() == 1


@pytest.mark.parametrize("guise", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1366])
def test_axe_finds_nothing_serious(guise: Any, width: int, tmp_path: Path, chromium: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    path = tmp_path / "p.db"
    with PreferenceStore.open(path) as store:
        for i in range(5):
            prompt = store.add_prompt(f"Number {i}?")
            pair = store.add_pair(prompt, *(store.add_answer(prompt, f"{word} {i}", model=word) for word in ("yes", "no")))
            if i > 2:
                for name, choice in (("x", "a"), ("y", "b")):
                    store.vote(pair, choice, source=f"human:{name}")
    with LabelServer(path, "--overlap", "3") as server:
        context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=guise, bypass_csp=True)
        page = context.new_page()
        page.goto(server.entrance)
        page.wait_for_selector(DRAWN)
        findings = axe.run(page).response["violations"]
        page.keyboard.press("d")
        findings += axe.run(page).response["violations"]
        page.keyboard.press("?")
        findings += axe.run(page).response["violations"]
        for where in ("/admin", "/language/zh?to=/admin"):
            page.goto(server.address + where)
            findings += axe.run(page).response["violations"]
        page.click("#invite")
        page.wait_for_selector("#link:not([hidden])")
        link = page.inner_text("#link-text")
        findings += axe.run(page).response["violations"]
        guest = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=guise, bypass_csp=True).new_page()
        guest.goto(link)
        findings += axe.run(guest).response["violations"]
    serious = {(f["id"], f["nodes"][0]["html"][:120]) for f in findings if f["impact"] in ("serious", "critical")}
    assert serious == set()
