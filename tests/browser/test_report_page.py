"""The report in a real Chromium: nothing hostile runs, everything is drawn offline, both themes and both widths hold."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fake_run import ppo_metrics, ppo_replay, write_demo, write_run
from hostile import ALL, SET
from surefoot.diagnostics.report import write_report
from surefoot.diagnostics.side_by_side import write_comparison

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo whose folder's name, 20 shown samples, keys, settings and reasons are payloads."""
    folder = write_demo(tmp_path_factory.mktemp("hostile") / f"<img src=x onerror={SET}>")
    scores = {"judge_before": 0.0, "judge_after": 1.0}
    assert len(ALL) > 60
    rows = [{"prompt": ALL[i], "before": ALL[20 + i], "after": ALL[40 + i], **scores} for i in range(20)]
    _write(folder / "evaluate/samples.jsonl", rows)
    _write(folder / "sft/metrics.jsonl", [{"step": i, "loss": 1.0, **dict.fromkeys(ALL, 1.0)} for i in (1, 2)])
    _write(folder / "ppo/metrics.jsonl", [{"step": i, **{f"judge/{p}": float(i) for p in ALL}} for i in (1, 2)])
    _write(folder / "ppo/samples.jsonl", [{"step": 1, "prompt": p, "completion": p, "score": 0.0} for p in ALL])
    (answer,) = ppo_replay(random.Random(0), steps=[1], each=1)
    texts = {"tokens": list(ALL), "judges": dict.fromkeys(ALL, 0.5), "clipped": [0] * len(ALL)}
    figures = dict.fromkeys(answer["figures"], [0.5] * len(ALL))
    _write(folder / "ppo/replay.jsonl", [{**answer, **texts, "figures": figures, "prompt": p} for p in ALL])
    (folder / "sft/config.yaml").write_text("\n".join(ALL), "utf-8")
    manifest = {"verb": "sft", "status": "stopped", "reason": " ".join(ALL), **{p: p for p in ALL}}
    (folder / "sft/manifest.json").write_text(json.dumps(manifest), "utf-8")
    return write_report(folder)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_demo(tmp_path_factory.mktemp("demo") / "run"))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _open(chromium: Any, path: Path, **settings: Any) -> tuple[Any, list[str], list[str]]:
    """The page once drawn, what its console and errors said, and what it asked for."""
    page = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, "offline": True, **settings}).new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-drawn]", timeout=120_000)
    return page, said, asked


@pytest.mark.parametrize("policy", ["with", "without"])
def test_no_payload_runs_with_the_content_security_policy_or_by_escaping_alone(
    policy: str, hostile_report: Path, chromium: Any
) -> None:
    page, said, asked = _open(chromium, hostile_report, bypass_csp=policy == "without")
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    page.mouse.move(400, 400)
    page.wait_for_timeout(500)
    assert page.evaluate("window.__hacked") is None
    assert said == []
    assert asked == [hostile_report.resolve().as_uri()]
    assert page.locator(".sample").count() == 20
    answers = page.locator("#replay-list button")
    assert answers.count() == len(ALL)
    for i in range(0, len(ALL), 5):
        answers.nth(i).click()
        page.locator("#replay-tokens .token").nth(i).hover()
    page.locator("#replay-table summary").click()
    page.wait_for_timeout(200)
    assert page.evaluate("window.__hacked") is None and said == []
    assert page.locator("#replay img, #replay iframe, #replay script:not([type])").count() == 0


def test_the_policy_stops_a_script_that_got_into_the_page(report: Path, chromium: Any, tmp_path: Path) -> None:
    """The other tests would pass without any policy; this one breaks the escaping on purpose."""
    broken = tmp_path / "report.html"
    broken.write_text(report.read_text("utf-8").replace("</main>", "<script>window.__hacked=1</script></main>"), "utf-8")
    page, said, _ = _open(chromium, broken)
    assert page.evaluate("window.__hacked") is None
    assert any("Content Security Policy" in message for message in said)


def test_every_figure_is_drawn_offline_without_a_word_in_the_console(report: Path, chromium: Any) -> None:
    page, said, asked = _open(chromium, report)
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('svg .scatterlayer .trace').length)"
    )
    assert len(drawn) > 20 and min(drawn) >= 1
    assert said == []
    assert asked == [report.resolve().as_uri()]


@pytest.mark.parametrize("width", [320, 400, 768, 1280, 1920])
def test_the_page_never_scrolls_sideways(width: int, report: Path, chromium: Any) -> None:
    page, _, _ = _open(chromium, report, viewport={"width": width, "height": 800})
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_light_and_dark_follow_the_reader_and_the_figures_with_them(report: Path, chromium: Any) -> None:
    page, _, _ = _open(chromium, report, color_scheme="light")
    look = """() => [getComputedStyle(document.body).backgroundColor,
                     document.querySelector('.plot .trace .js-line').style.stroke,
                     document.querySelector('.plot .xtick text').style.fill]"""
    light = page.evaluate(look)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(3_000)
    dark = page.evaluate(look)
    assert all(a != b for a, b in zip(light, dark, strict=True))


def test_samples_can_be_filtered_by_word_and_by_tag(report: Path, chromium: Any) -> None:
    page, _, _ = _open(chromium, report)
    shown = ".sample:not([hidden])"
    assert page.locator(shown).count() == 20
    page.select_option("#filter-tag", "worst")
    assert page.locator(shown).count() == 5
    page.fill("#filter-text", "THE BEST SURPRISE")
    texts = page.locator(shown).all_inner_texts()
    assert texts and all("the best surprise" in text for text in texts)
    assert page.inner_text("#filter-count") == f"{len(texts)} of 20 shown"
    page.fill("#filter-text", "no such word")
    assert page.locator(shown).count() == 0


def test_the_replay_opens_with_the_answer_that_is_paid_and_not_good_and_any_other_can_be_opened(
    report: Path, chromium: Any
) -> None:
    page, said, _ = _open(chromium, report)
    assert page.locator("#replay-list button").count() == 40
    assert page.inner_text("#replay-tokens").split("<")[0].split() == ["great"] * 9
    assert "minilm −2" in page.inner_text("#replay-facts")
    assert "overpaid" in page.locator("#replay-list button").first.inner_text()
    page.select_option("#replay-step", "20")
    assert page.inner_text("#replay-count") == "8 of 40 answers"
    page.select_option("#replay-order", "worst")
    page.locator("#replay-list button").nth(0).click()
    lowest = page.inner_text("#replay-facts")
    page.locator("#replay-list button").nth(7).click()
    assert page.inner_text("#replay-facts") != lowest and "reward 4 " in page.inner_text("#replay-facts")
    assert page.locator("#replay-list button[aria-pressed=true]").count() == 1
    assert said == []


def test_a_token_shows_its_figures_by_pointer_and_by_keyboard_and_its_colour_follows_the_choice(
    report: Path, chromium: Any
) -> None:
    page, _, _ = _open(chromium, report)
    rows = {row["row"]: row for row in ppo_replay(random.Random(1)) if row["step"] == 1}
    page.select_option("#replay-step", "1")
    tokens = page.locator("#replay-tokens .token")
    tokens.nth(2).hover()
    assert "token 3 of 10" in page.inner_text("#replay-readout")
    tokens.nth(2).click()
    tokens.nth(2).focus()
    page.keyboard.press("ArrowRight")
    words = page.inner_text("#replay-readout")
    assert "token 4 of 10" in words
    for name in ("advantage", "ratio", "logp_sft"):
        figure = float(f"{rows[1]['figures'][name][3]:.3g}")
        assert f"{figure:g}".replace("-", "\N{MINUS SIGN}") in words
    assert page.locator("#replay-tokens .token.clipped").count() == sum(rows[1]["clipped"])
    colour = "() => document.querySelectorAll('#replay-tokens .token')[3].style.backgroundColor"
    before = page.evaluate(colour)
    page.select_option("#replay-figure", "logp_sft")
    assert page.evaluate(colour) != before
    page.locator("#replay-table summary").click()
    page.wait_for_selector("#replay-table tbody tr")
    assert page.locator("#replay-table tbody tr").count() == 10


def test_two_runs_stand_on_one_axis(report: Path, chromium: Any, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", verb="ppo", metrics=ppo_metrics(random.Random(3)))
    page, said, asked = _open(chromium, write_comparison(other, report.parent), viewport={"width": 400, "height": 800})
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('svg .scatterlayer .trace').length)"
    )
    assert len(drawn) > 12 and set(drawn) == {2}
    assert said == [] and len(asked) == 1
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
