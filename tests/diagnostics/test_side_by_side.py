"""Two runs on one page: what is drawn, what differs, what is refused; and the replay that a report embeds."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from fake_run import ppo_metrics, ppo_replay, sft_metrics, write_demo, write_lines, write_run
from hostile import PAYLOADS
from surefoot.cli import run as surefoot
from surefoot.diagnostics import replay_view, report
from surefoot.diagnostics.replay_view import replay_content
from surefoot.diagnostics.run_view import read_report_view
from surefoot.diagnostics.side_by_side import different_settings, write_comparison
from surefoot.errors import ConfigError


@pytest.fixture(autouse=True)
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "get_plotlyjs", lambda: "const Plotly = {};")


def figures(page: str) -> list[dict]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json" id="chart[^"]*">(.*?)</script>', page)]


def test_each_number_of_both_runs_is_drawn_on_one_axis_with_the_run_it_is_of(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", verb="ppo", metrics=ppo_metrics(random.Random(1), updates=9))
    b = write_run(tmp_path / "b", verb="ppo", metrics=ppo_metrics(random.Random(2), updates=12))
    target = write_comparison(a, b)
    assert target == a / "report-with-b.html"
    drawn = figures(target.read_text("utf-8"))
    assert len(drawn) > 12
    for figure in drawn:
        assert [trace["name"] for trace in figure["data"]] == ["A: a", "B: b"]
    scores = [row["objective/scores"] for row in ppo_metrics(random.Random(2), updates=12)]
    assert drawn[0]["data"][1]["y"] == scores and drawn[0]["data"][0]["x"] == list(range(1, 10))


def test_settings_that_differ_are_listed_and_equal_ones_are_not(tmp_path: Path) -> None:
    folders = []
    for name, kl_coef, judges in (("a", "0.05", "[]"), ("b", "0.1  # a comment", "\n    - vader\n    - minilm")):
        folder = write_run(tmp_path / name, verb="ppo", metrics=ppo_metrics(random.Random(1)))
        text = f"seed: 0\nppo:\n  kl_coef: {kl_coef}\n  lam: 0.95\nevaluate:\n  judges: {judges}\n"
        (folder / "config.yaml").write_text(text + ("threads: 2\n" if name == "b" else ""), "utf-8")
        folders.append(folder)
    a, b = (read_report_view(folder).stages[0] for folder in folders)
    assert different_settings(a, b) == [
        ("ppo.kl_coef", "0.05", "0.1"),
        ("evaluate.judges", "[]", "- vader - minilm"),
        ("threads", "\N{EN DASH}", "2"),
    ]
    assert different_settings(a, a) == []


def test_demos_have_both_verdicts_and_every_stage(tmp_path: Path) -> None:
    a, b = write_demo(tmp_path / "a"), write_demo(tmp_path / "b", verdict={"judge_after": 0.25})
    page = write_comparison(a, b).read_text("utf-8")
    assert all(f'<section id="{kind}"' in page for kind in ("verdict", "ppo", "reward", "sft"))
    assert "0.25" in page and "Both ran with the same settings." in page


def test_what_cannot_be_compared_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path / "a", verb="ppo", metrics=ppo_metrics(random.Random(1)))
    b = write_run(tmp_path / "b", verb="sft", metrics=sft_metrics(random.Random(1)))
    with pytest.raises(ConfigError, match=r"a holds ppo, .*b holds sft: they have no curves in common"):
        write_comparison(a, b)
    with pytest.raises(ConfigError, match="compared with itself"):
        write_comparison(a, a / ".." / "a")
    assert surefoot(["report", str(a), str(tmp_path / "none")]) == 2
    assert "no run folder" in capsys.readouterr().err
    c = write_run(tmp_path / "c", verb="ppo", metrics=ppo_metrics(random.Random(1)))
    assert surefoot(["report", str(a), str(c)]) == 0
    assert capsys.readouterr().out.strip().endswith("report-with-c.html")


def test_hostile_names_and_settings_stay_text(tmp_path: Path) -> None:
    a = write_run(tmp_path / "<img src=x onerror=window.__hacked=1>", verb="ppo", metrics=ppo_metrics(random.Random(1)))
    b = write_run(tmp_path / "b", verb="ppo", metrics=ppo_metrics(random.Random(1)), status="stopped", reason=PAYLOADS[0])
    (a / "config.yaml").write_text("".join(f"ppo:\n  kl_coef: {payload}\n" for payload in PAYLOADS), "utf-8")
    page = write_comparison(a, b).read_text("utf-8")
    assert "<img" not in page and page.count("<script") == page.count("</script") == 3 + len(figures(page))
    assert all("<" not in trace["name"] for figure in figures(page) for trace in figure["data"])


def embedded(folder: Path) -> dict:
    page = report.write_report(folder).read_text("utf-8")
    return json.loads(re.search(r'id="replay-data">(.*?)</script>', page)[1])


def test_a_report_embeds_every_recorded_answer_with_its_ranks(tmp_path: Path) -> None:
    folder = write_demo(tmp_path / "run")
    rows, answers = ppo_replay(random.Random(1)), embedded(folder)["answers"]
    assert len(answers) == len(rows) == 40
    for row, answer in zip(rows, answers, strict=True):
        assert answer["tokens"] == row["tokens"] and answer["figures"] == row["figures"]
    assert answers[1]["paid"] > 0.9 and answers[1]["found"] == pytest.approx(
        (0.5 + 2 / 39) / 2, abs=0.002
    )  # vader ties, minilm's least
    gaps = {i: answer["paid"] - answer["found"] for i, answer in enumerate(answers)}
    assert set(sorted(gaps, key=gaps.get)[-5:]) == {i for i, row in enumerate(rows) if row["row"] == 1}


def test_damaged_lines_of_a_replay_are_left_out_and_no_judge_is_no_hindrance(tmp_path: Path) -> None:
    rows = ppo_replay(random.Random(1), steps=[3], each=3)
    del rows[1]["figures"]["ratio"]
    rows[2]["clipped"].pop()
    rows[0]["judges"] = {}
    folder = write_run(tmp_path / "run", verb="ppo", metrics=ppo_metrics(random.Random(1)))
    write_lines(folder / "replay.jsonl", [*rows, {"step": 4}, {"tokens": 3}])
    content = embedded(folder)
    assert len(content["answers"]) == 1 and content["judge"] == "" and "paid" not in content["answers"][0]
    write_lines(folder / "replay.jsonl", [{"step": 4}])
    assert 'id="replay"' not in report.write_report(folder).read_text("utf-8")


def test_a_page_holds_a_bounded_number_of_tokens_with_the_first_and_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "run", verb="ppo", metrics=ppo_metrics(random.Random(1)))
    write_lines(folder / "replay.jsonl", ppo_replay(random.Random(1), steps=range(1, 41)))
    (run,) = read_report_view(folder).stages
    whole = replay_content(run)
    assert whole is not None and whole["num_steps"] == 40
    tokens = sum(len(answer["tokens"]) for answer in whole["answers"])
    monkeypatch.setattr(replay_view, "MAX_PAGE_TOKENS", tokens // 4)
    thinned = replay_content(run)
    assert thinned is not None and 9 <= thinned["num_steps"] <= 11 and thinned["all_steps"] == 40
    steps = [answer["step"] for answer in thinned["answers"]]
    assert steps[0] == 1 and steps[-1] == 40
    assert "of 40 recorded updates, evenly spaced" in report.write_report(folder).read_text("utf-8")
