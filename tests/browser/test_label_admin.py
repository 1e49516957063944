"""The admin's page in a real Chromium: one click each for what it offers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from label_parts.server import LabelServer
from surefoot.preferences import PreferenceStore

pytestmark = pytest.mark.browser


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LabelServer]:
    """Thirty pairs; four people, of whom one votes the other way round."""
    rng, path = random.Random(0), tmp_path / "p.db"
    with PreferenceStore.open(path) as store, store.batch():
        for i in range(30):
            prompt = store.add_prompt(f"Number {i}?")
            pair = store.add_pair(prompt, *(store.add_answer(prompt, f"{word} {i}", model=word) for word in ("yes", "no")))
            for name in ("ann", "bob", "mei", "upside"):
                choice = "b" if name == "upside" else "a"
                store.vote(
                    pair, choice, source=f"human:{name}", left=rng.choice("ab"), seconds=5.0, idempotency_key=f"{name}-{i:05d}"
                )
    with LabelServer(path, "--overlap", "5") as started:
        yield started


@pytest.fixture
def page(server: LabelServer, chromium: Any) -> Any:
    page = chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True).new_page()
    page.goto(server.entrance)
    page.goto(f"{server.address}/admin")
    return page


def sources(server: LabelServer) -> set[str]:
    with PreferenceStore.open(server.store) as store:
        return set(store.counts().by_source)


def test_inverted_votes_are_pointed_out_and_go_out_and_back_with_one_click_each(server: LabelServer, page: Any) -> None:
    assert "human:upside: votes look inverted. 0 of 30 votes agree" in page.inner_text(".look")
    with page.expect_navigation():
        page.click(".look button")
    assert sources(server) == {"human:ann", "human:bob", "human:mei"}
    assert page.locator(".look").count() == 0
    with page.expect_navigation():
        page.click("text=Put votes back")
    assert "human:upside" in sources(server)


def test_on_a_phone_the_table_of_people_scrolls_and_its_words_lie_flat(server: LabelServer, page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 780})
    page.goto(f"{server.address}/language/zh?to=/admin")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    rows = page.locator("tbody tr")
    assert max(rows.nth(i).bounding_box()["height"] for i in range(rows.count())) < 60


def test_a_decision_counts_in_place_of_the_votes(server: LabelServer, page: Any) -> None:
    pair = int(page.get_attribute(".dispute button[data-choice=b]", "data-pair"))
    with page.expect_navigation():
        page.click(f"button[data-pair='{pair}'][data-choice=b]")
    with PreferenceStore.open(server.store) as store:
        results = {str(p.prompt): (p.chosen, p.target) for p in store.preferences()}
    assert results[f"Number {pair - 1}?"] == (f"no {pair - 1}", None)
    assert results[f"Number {pair}?"] == (f"yes {pair}", 0.75)


def test_votes_are_downloaded_and_taken_in_again(server: LabelServer, page: Any, tmp_path: Path) -> None:
    for format, ending in {"trl": "jsonl", "label-studio": "json", "argilla": "json"}.items():
        with page.expect_download() as download:
            page.click(f"a[href='/api/admin/export/{format}']")
        file = tmp_path / f"{format}.{ending}"
        download.value.save_as(file)
        assert download.value.suggested_filename == f"preferences-{format}.{ending}"
        page.set_input_files("#file", {"name": f"{format}.{ending}", "mimeType": "text/plain", "buffer": file.read_bytes()})
        page.click("#import")
        page.wait_for_function("name => document.getElementById('done').textContent.includes(name)", arg=f"import:{format}")
        said = page.inner_text("#done")
        assert f"new votes of import:{format} (0 there already)" in said and said.startswith(f"{format}.{ending}: ")
    assert json.loads((tmp_path / "trl.jsonl").read_text().splitlines()[0])["target"] == 0.75
    page.set_input_files("#file", {"name": "broken.jsonl", "mimeType": "text/plain", "buffer": b"{no json\n"})
    page.click("#import")
    page.wait_for_function("() => document.getElementById('problem').textContent !== ''")
    assert "broken.jsonl line 1" in page.inner_text("#problem")


def test_an_account_is_closed_after_a_second_click_and_its_page_is_shut(server: LabelServer, page: Any, chromium: Any) -> None:
    page.click("#invite")
    page.wait_for_selector("#link:not([hidden])")
    guest = chromium.new_context().new_page()
    guest.goto(page.inner_text("#link-text"))
    guest.fill("#name", "zoe")
    guest.press("#name", "Enter")
    guest.wait_for_selector("body.label")
    page.reload()
    row = page.locator("tr", has_text="human:zoe")
    row.get_by_text("Close account").click()
    with page.expect_navigation():
        row.get_by_text("Sure?").click()
    guest.reload()
    assert "This page needs a link" in guest.inner_text("h1")
