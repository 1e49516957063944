"""`surefoot label` in a real Chromium: pairs by keyboard alone, every key, nothing lost whatever happens to server or page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from label_parts.server import LabelServer
from surefoot.preferences import PreferenceStore, Vote
from surefoot.preferences.serve import invite

pytestmark = pytest.mark.browser

SCREEN = {"width": 1366, "height": 700}  # a laptop's window
DRAWN = "body[data-view]:not([data-view=''])"


def make_store(path: Path, num_pairs: int, words: int = 12) -> Path:
    with PreferenceStore.open(path) as store, store.batch():
        for i in range(num_pairs):
            prompt = store.add_prompt(f"Say something about number {i}.")
            texts = (f"Number {i} is {how} " + "and so on " * (words // 3) for how in ("fine", "odd"))
            a, b = (store.add_answer(prompt, text, model=f"model-{k}") for k, text in enumerate(texts))
            store.add_pair(prompt, a, b)
    return path


def votes(path: Path) -> list[Vote]:
    with PreferenceStore.open(path) as store:
        return list(store.votes())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LabelServer]:
    with LabelServer(make_store(tmp_path / "p.db", 40), "--repeats", "0") as started:
        yield started


def enter(chromium: Any, server: LabelServer, language: str = "en", **settings: Any) -> tuple[Any, list[str]]:
    """A signed-in page with its first pair, and what console and errors said."""
    context = chromium.new_context(viewport=SCREEN, locale=language, **settings)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(server.entrance)
    page.wait_for_selector(DRAWN)
    return page, said


def press(page: Any, key: str) -> None:
    """Presses a key that votes; returns when the next pair is before one's eyes."""
    view = page.get_attribute("body", "data-view")
    page.wait_for_selector(DRAWN)
    page.keyboard.press(key)
    page.wait_for_function("view => document.body.dataset.view !== view", arg=view)


def all_saved(page: Any) -> None:
    page.wait_for_selector("body[data-waiting='0']", timeout=60_000)


@pytest.mark.parametrize(("language", "word"), [("en", "Answer 1 is better"), ("zh-CN", "回答 1 更好")])
def test_thirty_pairs_by_keyboard_alone(language: str, word: str, server: LabelServer, chromium: Any) -> None:
    page, said = enter(chromium, server, language)
    assert word in page.inner_text("footer")
    keys = ["1", "2", "a", "b", "t", "x", "s"]
    for i in range(30):
        press(page, keys[i % len(keys)])
    all_saved(page)
    cast = votes(server.store)
    assert len(cast) == 30 and len({vote.pair for vote in cast}) == 30
    sided = {"1": "left", "a": "left", "2": "right", "b": "right", "t": "tie", "x": "both_bad", "s": "skip"}
    for i, vote in enumerate(cast):
        pick = {vote.left: "left"}.get(vote.choice, "right") if vote.choice in ("a", "b") else vote.choice
        assert pick == sided[keys[i % len(keys)]]
    assert {vote.left for vote in cast} == {"a", "b"}  # sides are drawn: one draw in 2**29 fails here
    assert said == []


def test_a_vote_at_a_killed_server_is_kept_over_a_reload_and_arrives_once(server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    press(page, "1")
    all_saved(page)
    server.kill()
    press(page, "2")
    page.wait_for_selector("body[data-waiting='1']")
    assert "1 vote waits in this browser" in page.inner_text("#sending")
    server.start()
    page.reload()
    all_saved(page)
    page.wait_for_selector(DRAWN)
    press(page, "t")
    all_saved(page)
    assert [vote.choice == "tie" for vote in votes(server.store)] == [False, False, True]


@pytest.mark.parametrize("site", ["vote-arrived", "vote-stored"])
def test_a_server_that_dies_between_click_and_acknowledgement_has_every_vote_once(
    site: str, tmp_path: Path, chromium: Any
) -> None:
    server = LabelServer(make_store(tmp_path / "p.db", 20), "--repeats", "0").start(fault=f"{site}:3:kill")
    page, _ = enter(chromium, server)
    for key in "12":
        press(page, key)
    all_saved(page)
    press(page, "t")  # the third ballot: the server kills itself before, or after, it writes
    server.wait_until_dead()
    assert len(votes(server.store)) == (2 if site == "vote-arrived" else 3)
    server.start()
    all_saved(page)
    press(page, "x")
    all_saved(page)
    assert [vote.choice for vote in votes(server.store)][2:] == ["tie", "both_bad"]
    server.kill()


def invited(page: Any, server: LabelServer, name: str) -> None:
    """Signs the page's browser in under a name, as an invitation from the command line does."""
    page.goto(invite(server.store, name, "annotator", port=server.port))
    page.click("#join")
    page.wait_for_selector(DRAWN)


def test_a_waiting_vote_is_sent_by_nobody_but_its_voter(server: LabelServer, chromium: Any) -> None:
    page = chromium.new_context(viewport=SCREEN, locale="en").new_page()
    invited(page, server, "ann-lee")
    server.kill()
    press(page, "t")
    page.goto("about:blank")
    server.start()
    invited(page, server, "ann")  # the same browser, and the beginning of the other's name
    all_saved(page)
    press(page, "x")
    all_saved(page)
    invited(page, server, "ann-lee")
    all_saved(page)
    assert {(vote.source, vote.choice) for vote in votes(server.store)} == {("human:ann-lee", "tie"), ("human:ann", "both_bad")}


def test_a_tab_from_before_a_new_sign_in_says_so_and_keeps_its_vote(server: LabelServer, chromium: Any) -> None:
    page = chromium.new_context(viewport=SCREEN, locale="en").new_page()
    invited(page, server, "mei")
    invited(page.context.new_page(), server, "mei")
    press(page, "t")
    page.wait_for_function("() => document.getElementById('sending').textContent.includes('Reload it')")
    page.reload()
    all_saved(page)
    assert [vote.choice for vote in votes(server.store)] == ["tie"]


def test_undo_goes_back_vote_by_vote_and_redraws_the_pair(server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    prompts = []
    for _ in range(3):
        page.wait_for_selector(DRAWN)
        prompts.append(page.inner_text("#prompt-text"))
        press(page, "1")
    all_saved(page)
    for prompt in reversed(prompts):
        press(page, "u")
        all_saved(page)
        assert page.inner_text("#prompt-text") == prompt
    assert votes(server.store) == []
    assert page.is_disabled("#undo")
    press(page, "t")
    all_saved(page)
    assert [vote.choice for vote in votes(server.store)] == ["tie"]


def test_undo_reaches_votes_of_before_a_reload(server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    prompt = page.inner_text("#prompt-text")
    press(page, "1")
    all_saved(page)
    page.reload()
    page.wait_for_selector("#undo:not([disabled])")
    press(page, "u")
    all_saved(page)
    assert page.inner_text("#prompt-text") == prompt and votes(server.store) == []


def test_an_undo_of_a_vote_that_still_waits_follows_it(server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    server.kill()
    press(page, "1")
    page.keyboard.press("u")
    page.wait_for_selector("body[data-waiting='2']")
    server.start()
    all_saved(page)
    with PreferenceStore.open(server.store) as store:
        assert (store.counts().votes, store.counts().undone) == (0, 1)


def test_strength_tags_and_note_go_with_the_vote_and_are_cleared(server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    page.check("input[name=tag][value=clear]", force=True)
    page.keyboard.press("n")
    page.keyboard.type("the first is tidier, 1 2 t x")  # no shortcut while one writes
    page.keyboard.press("Enter")
    press(page, "1")
    all_saved(page)
    (vote,) = votes(server.store)
    assert (vote.choice, vote.strength, vote.tags, vote.note) == (vote.left, 3, ("clear",), "the first is tidier, 1 2 t x")
    assert vote.seconds is not None and vote.seconds > 0
    assert page.locator(".why input:checked").count() == 0 and page.input_value("#note") == ""


def test_enter_takes_a_word_of_an_input_method_and_half_a_character_costs_no_vote(server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    page.keyboard.press("n")
    event = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true})"
    page.evaluate(f"document.getElementById('note').dispatchEvent({event})")
    assert page.evaluate("document.activeElement.id") == "note"
    page.evaluate("document.getElementById('note').value = 'good ' + '😀'[0]")  # as the limit of the note's length may leave it
    page.keyboard.press("Enter")
    press(page, "t")
    all_saved(page)
    assert [vote.note for vote in votes(server.store)] == ["good \ufffd"]


def test_the_word_difference_is_marked_and_the_text_stays_the_same(server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    before = page.text_content("#left-text"), page.text_content("#right-text")
    page.keyboard.press("d")
    assert sorted(page.locator("mark").all_inner_texts()) == ["fine", "odd"]
    assert (page.text_content("#left-text"), page.text_content("#right-text")) == before
    page.keyboard.press("d")
    assert page.locator("mark").count() == 0


def test_words_and_not_spaces_say_what_two_texts_share(server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    texts = [
        "the young actor, whom I had not seen before, is a find.",
        "the young actor is a find, the old one is tired, as I was.",
    ]
    left, right = page.evaluate("async (texts) => (await import('/static/diff.js')).compare(...texts)", texts)
    assert left == [["the young actor", True], [", whom I had not seen before,", False], [" is a find.", True]]
    assert right == [["the young actor is a find", True], [", the old one is tired, as I was", False], [".", True]]
    for text, parts in zip(texts, (left, right), strict=True):
        assert "".join(part for part, _ in parts) == text


def test_models_are_told_after_the_vote_alone(server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    assert "model-" not in page.content()
    press(page, "1")
    all_saved(page)
    page.wait_for_function("() => document.getElementById('said').textContent.includes('model-')")


def test_help_opens_by_key_and_single_keys_can_be_switched_off(server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("t")  # a dialog is open: not a vote
    page.uncheck("#single-keys")
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    page.wait_for_timeout(300)
    assert votes(server.store) == []
    for _ in range(12):  # by Tab and Enter alone
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.pick") == "tie":
            break
    press(page, "Enter")
    all_saved(page)
    assert [vote.choice for vote in votes(server.store)] == ["tie"]


def test_two_tabs_of_one_browser_give_one_vote_a_pair(server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    other = page.context.new_page()
    other.goto(server.address)
    other.wait_for_selector(DRAWN)
    assert other.get_attribute("body", "data-view") == page.get_attribute("body", "data-view")
    press(page, "1")
    all_saved(page)
    press(other, "2")
    all_saved(other)
    other.wait_for_function("() => document.getElementById('said').textContent.includes('another tab')")
    assert len(votes(server.store)) == 1


def test_two_browsers_on_one_queue_never_hold_the_same_pair(server: LabelServer, chromium: Any) -> None:
    first, _ = enter(chromium, server)
    first.goto(f"{server.address}/admin")
    first.click("#invite")
    first.wait_for_selector("#link:not([hidden])")
    link = first.inner_text("#link-text")
    first.goto(server.address)
    first.wait_for_selector(DRAWN)
    second = chromium.new_context(viewport=SCREEN).new_page()
    second.goto(link)
    second.fill("#name", "mei")
    second.click("#join")
    second.wait_for_selector(DRAWN)
    for _ in range(15):
        for page in (first, second):
            page.wait_for_selector(DRAWN)
        assert first.inner_text("#prompt-text") != second.inner_text("#prompt-text")
        with PreferenceStore.open(server.store) as store, store.reader() as db:
            held = db.execute("SELECT pair, slot FROM leases").fetchall()
        assert len(set(held)) == len(held)
        press(first, "1")
        press(second, "2")
    for page in (first, second):
        all_saved(page)
    cast = votes(server.store)
    assert len(cast) == len({vote.pair for vote in cast}) == 30


def test_answers_of_120_words_fit_a_laptops_window_without_scrolling(tmp_path: Path, chromium: Any) -> None:
    with LabelServer(make_store(tmp_path / "p.db", 2, words=120)) as server:
        page, _ = enter(chromium, server)
        page.set_viewport_size({"width": 1280, "height": 640})
        for place in ("html", "#prompt-text", "#left-text", "#right-text"):
            high, shown = page.eval_on_selector(place, "it => [it.scrollHeight, it.clientHeight]")
            assert high <= shown, place
        box = page.locator(".choices").bounding_box()
        assert box["y"] + box["height"] <= 640


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
def test_the_page_never_scrolls_sideways(width: int, server: LabelServer, chromium: Any) -> None:
    page, _ = enter(chromium, server)
    page.set_viewport_size({"width": width, "height": 800})
    for path in ("/", "/admin"):
        page.goto(server.address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_phone_shows_the_choices_at_the_bottom_while_one_reads(tmp_path: Path, chromium: Any) -> None:
    with LabelServer(make_store(tmp_path / "p.db", 3, words=120)) as server:
        page, _ = enter(chromium, server, has_touch=True)
        page.set_viewport_size({"width": 390, "height": 780})
        for place in (".pick[data-pick=left]", ".pick[data-pick=skip]", "#undo", "#sending"):
            box = page.locator(place).bounding_box()
            assert 0 < box["y"] < box["y"] + box["height"] <= 780, place
        assert page.locator(".pick[data-pick=left]").bounding_box()["height"] >= 44
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        last = [page.locator(place).bounding_box() for place in ("#note", ".choices")]
        assert last[0]["y"] + last[0]["height"] <= last[1]["y"]  # nothing lies below the choices for good
        view = page.get_attribute("body", "data-view")
        page.tap(".pick[data-pick=left]")
        page.wait_for_function("view => document.body.dataset.view !== view", arg=view)
        assert page.evaluate("window.scrollY") == 0  # the next pair is read from its beginning
        all_saved(page)
        assert len(votes(server.store)) == 1
        server.kill()
        page.tap(".pick[data-pick=left]")
        page.wait_for_selector("body[data-waiting='1']")
        assert page.locator("#sending").bounding_box()["y"] < 780 and "1 vote waits" in page.inner_text("#sending")


def test_an_empty_queue_says_so(tmp_path: Path, chromium: Any) -> None:
    with LabelServer(make_store(tmp_path / "p.db", 1)) as server:
        page, _ = enter(chromium, server)
        press(page, "1")
        page.wait_for_selector("#empty:not([hidden])")
        assert "Nothing is left" in page.inner_text("#empty")
