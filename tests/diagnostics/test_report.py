"""The report of a made-up demo, of its damaged and partial forms, and of hostile text."""

import json
import random
import re
import shutil
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fake_run import VERDICT, evaluate_samples, ppo_metrics, reward_metrics, sft_metrics, write_demo, write_run
from hostile import PAYLOADS
from surefoot.diagnostics import report
from surefoot.diagnostics.charts import MAX_POINTS, charts
from surefoot.diagnostics.report import verdict_words, write_report
from surefoot.diagnostics.run_view import read_report_view
from surefoot.diagnostics.samples import chosen_samples
from surefoot.diagnostics.summaries import comparisons
from surefoot.diagnostics.wording import clock, number
from surefoot.errors import RunError


class _Page(HTMLParser):
    """What a browser makes of the page: elements with attributes, text without scripts and styles, and the scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.pieces: list[str] = []
        self.ids: set[str] = set()
        self._raw = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.ids |= {value for name, value in attrs if name == "id" and value}
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            self.scripts.append((self.elements[-1][1], data))
        elif not self._raw:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.pieces))


def _page(folder: Path) -> _Page:
    return _Page(write_report(folder).read_text("utf-8"))


@pytest.fixture(autouse=True)
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves 5 MB of script out of all pages but the demo's, which is made before."""
    monkeypatch.setattr(report, "get_plotlyjs", lambda: "const Plotly = {};")


@pytest.fixture(scope="module")
def demo_html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_demo(tmp_path_factory.mktemp("demo") / "quickstart")).read_text("utf-8")


@pytest.fixture(scope="module")
def demo(demo_html: str) -> _Page:
    return _Page(demo_html)


def test_the_report_says_the_verdict_in_words_and_the_big_numbers(demo: _Page) -> None:
    for sentence in verdict_words(VERDICT):
        assert sentence in demo.text
    for figure in ("91.4 %", "+1.93", "−0.21", "+0.59", "8.9", "0.90", "15.6"):
        assert figure in demo.text


PANELS = [
    "Reward",
    "MiniLM judge",
    "VADER judge",
    "KL to the SFT model",
    "KL of an update",
    "Clip fraction",
    "Entropy of a token",
    "Explained variance",
    "Length of answers",
    "Answers cut by length",
    "Tether coefficient",
    "Penalty coefficient",
    "Learning rate",
    "Gradient norm",
    "Training loss",
    "Calibration",
    "Accuracy by length",
    "Pair accuracy",
]


@pytest.mark.parametrize("title", PANELS)
def test_the_report_holds_a_panel_for(title: str, demo_html: str) -> None:
    assert re.search(rf"<h4[^>]*>{re.escape(title)}</h4>", demo_html)


def test_every_panel_has_a_figure_words_for_it_and_a_table(demo: _Page) -> None:
    plots = [attrs for tag, attrs in demo.elements if attrs.get("class") == "plot"]
    data = {attrs["id"]: json.loads(body) for attrs, body in demo.scripts if attrs.get("type") == "application/json"}
    del data["replay-data"]
    assert len(plots) == len(data) > 20
    for plot in plots:
        figure = data[plot["data-figure"]]
        assert plot["role"] == "img" and plot["aria-label"]
        assert all(len(trace["x"]) == len(trace["y"]) for trace in figure["data"])
    assert len([tag for tag, _ in demo.elements if tag == "table"]) >= len(plots)


def test_the_report_is_one_file_that_asks_nothing_of_a_network(demo: _Page) -> None:
    """The policy forbids all sources but the page itself, and no element points outside of it."""
    policy = next(attrs["content"] for tag, attrs in demo.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "http" not in policy and "unsafe-eval" not in policy
    assert re.search(r"script-src ('sha256-[^']+' ){3};", policy)
    pointers = [attrs[name] for _, attrs in demo.elements for name in ("src", "href", "action", "data") if name in attrs]
    assert pointers and all(pointer.startswith("#") for pointer in pointers)
    assert {pointer[1:] for pointer in pointers} <= demo.ids


def test_plotly_is_inlined_once(demo: _Page) -> None:
    runnable = [body for attrs, body in demo.scripts if "type" not in attrs]
    assert len(runnable) == 3
    assert sum(len(body) > 1_000_000 for body in runnable) == 1


def test_two_reports_of_one_folder_are_equal_and_leave_nothing_else_behind(tmp_path: Path) -> None:
    folder = write_demo(tmp_path / "a")
    before = {path.name for path in folder.iterdir()}
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}


def test_settings_and_versions_stand_folded_in_the_report(demo: _Page) -> None:
    assert "versions.torch" in demo.text and "2.13.0" in demo.text and "learning_rate: 0.0003" in demo.text
    assert not any("open" in attrs for tag, attrs in demo.elements if tag == "details")


def test_seconds_by_stage_are_shown(demo: _Page) -> None:
    assert "15 min 02 s" in demo.text and "evaluate 1 min 28 s" in demo.text


def _elements(texts: Iterable[Mapping[str, str]], folder: Path) -> list[tuple[str, list[str]]]:
    """Elements and attribute names of the report of an evaluation whose answers hold `texts`."""
    scores = {"judge_before": 0.0, "judge_after": 1.0}
    rows = [{"prompt": "p", "before": "b", "after": "a", **scores, **text} for text in texts]
    page = _page(write_run(folder, verb="evaluate", metrics=[], samples=rows))
    return [(tag, sorted(attrs)) for tag, attrs in page.elements]


@pytest.mark.parametrize("where", ["prompt", "before", "after"])
@pytest.mark.parametrize("half", [PAYLOADS[::2], PAYLOADS[1::2]], ids=["even", "odd"])
def test_hostile_text_of_prompts_and_answers_stays_text(half: tuple[str, ...], where: str, tmp_path: Path) -> None:
    """The page has the same elements and attributes as one with plain words in the place of the payloads."""
    assert len(half) <= 20, "all of them must be shown"
    plain = _elements([{} for _ in half], tmp_path / "plain")
    assert _elements([{where: payload} for payload in half], tmp_path / "hostile") == plain


def test_hostile_text_of_settings_keys_and_reasons_stays_text(tmp_path: Path) -> None:
    hostile = dict.fromkeys(PAYLOADS, 1.5) | {f"judge/{payload}": 0.5 for payload in PAYLOADS}
    everything = "\n".join(PAYLOADS)
    folder = write_run(
        tmp_path / "run",
        verb="ppo",
        metrics=[{"step": 1, **hostile}, {"step": 2, **hostile}],
        samples=[{"step": 1, "prompt": payload, "completion": payload, "score": 1.0} for payload in PAYLOADS],
        status="stopped",
        reason=everything,
        git={payload: payload for payload in PAYLOADS},
    )
    (folder / "config.yaml").write_text(everything, "utf-8")
    (folder / "timings.jsonl").write_text(json.dumps({"step": 1, **hostile}))
    page = _page(folder)
    assert all(re.sub(r"\s+", " ", payload) in page.text for payload in PAYLOADS if "\u2028" not in payload)
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"img", "svg", "iframe", "object", "embed", "base", "form", "math", "link"}
    )
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert len([attrs for attrs, _ in page.scripts if "type" not in attrs]) == 3
    names = [trace["name"] for attrs, body in page.scripts if "type" in attrs for trace in json.loads(body)["data"]]
    assert len(names) == len(PAYLOADS) and not any("<" in name for name in names)  # Plotly reads tags in names


def test_messages_and_odd_values_of_samples_are_shown_as_text(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Say <b>hello</b>"}]
    page = _page(write_demo(tmp_path / "run", prompt=messages, before=None, after=3))
    assert "20 of 64 held-out prompts" in page.text
    assert not any(tag == "b" and attrs for tag, attrs in page.elements)


def test_control_characters_and_half_surrogates_are_shown_as_signs_and_do_not_stop_the_report(tmp_path: Path) -> None:
    folder = write_demo(tmp_path / "run")
    rows = evaluate_samples(random.Random(0), count=1)
    rows[0] |= {"before": "a\x00b\x1bc", "after": "\ud800 right \u202e left"}
    (folder / "evaluate/samples.jsonl").write_text(json.dumps(rows[0]))
    html = write_report(folder).read_text("utf-8")
    assert "a\ufffdb\ufffdc" in html and "\ufffd right \u202e left" in html


@pytest.mark.parametrize("missing", ["sft", "reward", "ppo", "evaluate"])
def test_a_missing_stage_is_left_out_with_a_sentence(missing: str, tmp_path: Path) -> None:
    folder = write_demo(tmp_path / "run")
    shutil.rmtree(folder / missing)
    sentence = {
        "sft": "No fine-tuning curves: sft/metrics.jsonl is missing or empty.",
        "reward": "No reward-model curves: reward/metrics.jsonl is missing or empty.",
        "ppo": "No PPO curves: ppo/metrics.jsonl is missing or empty.",
        "evaluate": "No answers side by side: evaluate/samples.jsonl is missing or empty.",
    }[missing]
    assert sentence in _page(folder).text


@pytest.mark.parametrize("key", list(VERDICT))
def test_a_verdict_without_one_of_its_figures_makes_a_report(key: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "verdict.json").write_text(json.dumps({k: v for k, v in VERDICT.items() if k != key}))
    assert "Verdict" in _page(folder).text


@pytest.mark.parametrize("odd", [None, "text", -1, [], {}, [1], {"bins": [{"confidence": "x"}, 3]}, {"n": {}}])
def test_a_verdict_of_odd_values_makes_a_report(odd: object, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "verdict.json").write_text(json.dumps(dict.fromkeys(VERDICT, odd)))
    assert "Verdict" in _page(folder).text


def test_a_run_that_stopped_early_says_so_on_top_with_the_reason(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run",
        verb="ppo",
        metrics=ppo_metrics(random.Random(0), updates=7),
        status="stopped",
        reason="KL passed ppo.kl_max.",
    )
    text = _page(folder).text
    assert "Not finished. PPO stopped early (stopped). Its last recorded step is 7. Reason: KL passed ppo.kl_max." in text
    assert text.index("Not finished") < text.index("7 steps were recorded")


def test_a_run_that_has_not_ended_says_so_and_one_that_is_done_does_not(tmp_path: Path) -> None:
    rows = sft_metrics(random.Random(0))
    running = write_run(tmp_path / "a", verb="sft", metrics=rows, status="started")
    done = write_run(tmp_path / "b", verb="sft", metrics=rows)
    assert "still running, or it was killed" in _page(running).text
    assert "Not finished" not in _page(done).text


@pytest.mark.parametrize(
    ("verb", "rows", "expected"),
    [
        ("ppo", ppo_metrics, ("Reward", "KL to the SFT model", "40 steps were recorded")),
        ("sft", sft_metrics, ("Training loss", "The held-out loss went from")),
        ("reward", reward_metrics, ("Pair accuracy", "Held-out pair accuracy went from")),
    ],
)
def test_a_single_run_has_its_curves_and_no_word_of_a_missing_demo(verb, rows, expected, tmp_path: Path) -> None:
    text = _page(write_run(tmp_path / "run", verb=verb, metrics=rows(random.Random(0)))).text
    assert all(words in text for words in expected)
    assert "is missing or empty" not in text


def test_a_single_ppo_run_without_judges_claims_no_better_answers(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if not k.startswith("judge/")} for row in ppo_metrics(random.Random(0))]
    assert "No judge was asked" in _page(write_run(tmp_path / "run", verb="ppo", metrics=rows)).text


def test_a_single_evaluation_has_a_verdict_and_its_answers(tmp_path: Path) -> None:
    rows = evaluate_samples(random.Random(0))
    renamed = [{k.replace("judge_", "minilm_"): v for k, v in row.items()} for row in rows]
    folder = write_run(tmp_path / "run", verb="evaluate", metrics=[], samples=renamed)
    figures = {
        "num_prompts": 64,
        "minilm_before": -0.2,
        "minilm_after": 1.8,
        "win_rates": {"vader": {"win_rate": 0.7, "interval": [0.6, 0.8]}, "minilm": {"win_rate": 0.9, "interval": [0.8, 0.95]}},
    }
    (folder / "evaluation.json").write_text(json.dumps(figures))
    text = _page(folder).text
    assert "The policy is clearly better than the SFT model: its answer wins on 90 % of 64" in text
    assert "minilm +" in text and "best" in text
    assert "20 of 64 held-out prompts: the 5 that gained most by the judge, the 5 that gained least, and others" in text
    assert "curves:" not in text and "calibration" not in text  # it is no demo of which parts are missing


def test_of_few_answers_as_many_are_called_best_as_there_are(tmp_path: Path) -> None:
    folder = write_demo(tmp_path / "run")
    for count, words in (
        (8, "8 of 8 held-out prompts: the 2 that gained most by the judge, the 2 that"),
        (1, "1 of 1 held-out prompts. One"),
    ):
        rows = evaluate_samples(random.Random(0), count=count)
        (folder / "evaluate/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert words in _page(folder).text


def test_a_run_of_one_step_counts_it_as_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", verb="pairs", metrics=[{"step": 8, "pairs": 8, "votes": 0}], samples=[])
    assert "1 step was recorded, the last is step 8." in _page(folder).text


def test_a_manifest_without_status_and_a_folder_with_metrics_alone_make_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "objective/kl": 0.1}\n{"step": 2, "objective/kl": 0.4}\n')
    text = _page(folder).text
    assert "KL to the SFT model" in text and "No manifest.json lies in this folder." in text


def test_damaged_lines_are_counted_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", verb="sft", metrics=sft_metrics(random.Random(0)))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": 61, "loss": 3.')
    text = _page(folder).text
    assert "run/metrics.jsonl: 2 lines (the first is line 61) are not a JSON object and left out." in text
    assert "60 steps were recorded" in text


def test_a_damaged_verdict_is_named(tmp_path: Path) -> None:
    folder = write_demo(tmp_path / "run")
    (folder / "verdict.json").write_text("{")
    assert "run/verdict.json is not a JSON object and left out." in _page(folder).text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run folder: it holds none of verdict\.json"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="there is no such folder"):
        write_report(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_no_chart_shows_is_listed_and_an_undocumented_one_is_called_so(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0, "made_up": 2.5}, {"step": 2, "loss": 0.5, "made_up": 7.5}]
    text = _page(write_run(tmp_path / "run", verb="sft", metrics=rows)).text
    assert "made_up 2.5 7.5 not documented" in text


def test_numbers_that_are_not_finite_leave_gaps_and_no_nan_in_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", verb="sft", metrics=[{"step": 1, "loss": 1.0}, {"step": 3, "loss": 0.5}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": NaN}\n{"step": 4, "loss": null}\n{"step": 5, "loss": 1e999}\n')
    (chart,) = charts(read_report_view(folder).stages[0])
    assert list(chart.figure["data"][0]["y"]) == [1.0, 0.5]


def test_long_curves_are_thinned_to_their_ends_and_it_is_said(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": float(i)} for i in range(5_000)]
    (chart,) = charts(read_report_view(write_run(tmp_path / "run", verb="sft", metrics=rows)).stages[0])
    x = list(chart.figure["data"][0]["x"])
    assert len(x) == MAX_POINTS and (x[0], x[-1]) == (0.0, 4_999.0) and x == sorted(set(x))
    assert f"{MAX_POINTS:,} of 5,000 points are drawn." in chart.what
    assert [row[0] for row in chart.table.rows][-1] == "4999"


def test_a_critic_that_is_not_clipped_has_no_panel_for_its_clip(tmp_path: Path) -> None:
    rows = ppo_metrics(random.Random(0))
    titles = [chart.title for chart in charts(read_report_view(write_run(tmp_path / "a", verb="ppo", metrics=rows)).stages[0])]
    clipped = [{**row, "val/clipfrac_avg": 0.1} for row in rows]
    more = [chart.title for chart in charts(read_report_view(write_run(tmp_path / "b", verb="ppo", metrics=clipped)).stages[0])]
    assert set(more) - set(titles) == {"Clip fraction of the critic"}


def test_samples_are_the_five_best_the_five_worst_and_ten_others_by_the_judge() -> None:
    rows = [{"prompt": f"p{i}", "before": "b", "after": "a", "judge_before": 0.0, "judge_after": float(i)} for i in range(60)]
    random.Random(1).shuffle(rows)
    found = chosen_samples(rows)
    assert [s.prompt for s in found if s.tag == "best"] == ["p59", "p58", "p57", "p56", "p55"]
    assert [s.prompt for s in found if s.tag == "worst"] == ["p0", "p1", "p2", "p3", "p4"]
    others = [s.prompt for s in found if s.tag == "random"]
    assert len(others) == 10 and len({s.prompt for s in found}) == 20
    assert chosen_samples(rows) == found


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 19, 20, 21])
def test_few_samples_are_all_shown_once(count: int) -> None:
    rows = [{"prompt": f"p{i}", "before": "b", "after": "a", "judge_before": 0.0, "judge_after": float(i)} for i in range(count)]
    found = chosen_samples(rows)
    assert len({s.prompt for s in found}) == len(found) == min(count, 20)


def test_samples_without_scores_are_drawn_at_random() -> None:
    found = chosen_samples([{"prompt": f"p{i}", "before": "b", "after": "a"} for i in range(30)])
    assert [s.tag for s in found] == ["random"] * 20


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.69314, "0.6931"), (12.3456, "12.35"), (1234.5, "1,234"), (0.00003, "3e-05"), (-2.5, "-2.5")],
)
def test_numbers_have_four_digits_that_matter(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(8.31, "8.3 s"), (245.9, "4 min 05 s"), (3_725, "1 h 02 min")])
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_an_answer_without_text_is_called_so(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "before": "b", "after": " \n"}]
    assert "After no text" in _page(write_run(tmp_path / "run", verb="evaluate", metrics=[], samples=rows)).text


def test_a_curve_of_two_looks_is_drawn_as_two_points_and_no_line(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "validation/loss": 6.0},
        *({"step": i, "loss": 6.0 / i} for i in range(1, 9)),
        {"step": 8, "validation/loss": 2.0},
    ]
    (chart,) = charts(read_report_view(write_run(tmp_path / "run", verb="sft", metrics=rows)).stages[0])
    assert {trace["name"]: trace["mode"] for trace in chart.figure["data"]} == {"loss": "lines", "validation/loss": "markers"}


def test_the_table_of_all_figures_sets_the_policy_beside_the_best_of_n() -> None:
    rows = {row.title: row for row in comparisons(VERDICT)}
    assert len(rows) == 11  # all but VADER's win rate, which this verdict does not hold
    assert (rows["Judge"].before, rows["Judge"].after, rows["Judge"].best) == ("-0.214", "1.932", "1.21")
    assert (rows["KL to the SFT model"].after, rows["KL to the SFT model"].best) == ("8.94", "1.2")
    assert rows["Win rate by the judge"].interval == "95 % interval 87 to 94 %"
    named = comparisons({"judge": "minilm", "judge_after": 1.0, "best_of_n": {"n": 4, "minilm": 0.5, "minilm_win_rate": 0.7}})
    assert [(row.title, row.best) for row in named] == [("Win rate by the judge", "70.0 %"), ("Judge", "0.5")]
