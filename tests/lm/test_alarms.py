"""Alarms: what rings, when, what is said, that a run stops, and that a resumed run rings the same."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fake_run import ppo_metrics, write_run
from surefoot.api import PPORun
from surefoot.config import PPOConfig
from surefoot.diagnostics import report
from surefoot.diagnostics.attribution import FEATURES
from surefoot.diagnostics.metrics import find_metric
from surefoot.diagnostics.run_view import read_report_view
from surefoot.diagnostics.summaries import alarm_sentences
from surefoot.errors import ConfigError, TrainingError
from surefoot.preferences import PreferenceStore
from surefoot.runs import read_jsonl
from surefoot.stages.alarms import NAMES, Watch, advice, alarm_metrics
from surefoot.stages.countermeasures import tethered
from surefoot.stages.ppo_state import Carried
from tiny_language import make_backbone, single_tokens

HEALTHY = {
    "response_length/mean": 20.0,
    "drift/distinct_2": 0.8,
    "drift/repetition": 0.02,
    "policy/entropy_avg": 2.0,
    "drift/fluency": -2.0,
    "drift/eos_rate": 0.9,
    "drift/distance": 1.0,
    "drift/reward_length": 0.02,
    "drift/reward_repetition": 0.0,
    "drift/reward_token": 0.03,
    "drift/reward_position": 0.01,
    "drift/prompt_length": 1.0,
    "drift/prompt_tokens": 1.0,
    "drift/prompt_states": 1.2,
    "objective/kl": 4.0,
}
OUT_OF_RANGE = [
    ("length", "response_length/mean", 31.0, "answers have 31.0 tokens, and had 20.0"),
    ("length", "response_length/mean", 9.0, "answers have 9.0 tokens, and had 20.0"),
    ("repetition", "drift/distinct_2", 0.45, "0.45 of all word pairs are different ones, and 0.80 were"),
    ("repetition", "drift/repetition", 0.45, "45% of an answer's phrases stood in it before, and 2% did"),
    ("reward_length", "drift/reward_length", 0.4, "the reward pays for FEATURE, which explains 40% of its variance"),
    ("reward_repetition", "drift/reward_repetition", 0.4, "pays for FEATURE, which explains 40%"),
    ("reward_token", "drift/reward_token", 0.4, "pays for FEATURE, which explains 40%"),
    ("reward_position", "drift/reward_position", 0.4, "pays for FEATURE, which explains 40%"),
    ("distance", "drift/distance", 4.1, "answers lie 4.10 from what the reward model was trained on, and lay 1.00"),
    ("prompts", "drift/prompt_length", 36.0, "length by 36 squared standard errors): prompts have"),
    ("prompts", "drift/prompt_tokens", 6.0, "tokens by 6 squared standard errors"),
    ("prompts", "drift/prompt_states", 6.0, "states by 6 squared standard errors"),
    ("entropy", "policy/entropy_avg", 0.5, "entropy is 0.5 nats a token, and was 2 at the start"),
    ("kl", "objective/kl", 26.0, "26.0 nats a sequence away"),
    ("fluency", "drift/fluency", -3.2, "gives a token of an answer -3.20 nats, and gave -2.00"),
    ("eos", "drift/eos_rate", 0.4, "40% of the answers end by themselves, and 90% did"),
]


WORDS = {f"drift/pays/{name}": "FEATURE" for name in FEATURES} | {"drift/prompts": "prompts have"}


def watched(*metrics: dict[str, float], watch: Watch | None = None) -> list[dict[str, str]]:
    watch, rang = watch or Watch(), []
    for row in metrics:
        watch, ringing = watch.after(row, PPOConfig(), WORDS)
        rang.append(ringing)
    return rang


@pytest.mark.parametrize(("name", "key", "value", "words"), OUT_OF_RANGE)
def test_an_alarm_rings_in_the_second_update_out_of_range_and_alone(name: str, key: str, value: float, words: str) -> None:
    bad = {**HEALTHY, key: value}
    before, first, second, third, after = watched(HEALTHY, HEALTHY, bad, bad, HEALTHY)
    assert before == first == second == after == {}
    assert list(third) == [name] and words in third[name]
    assert watched(HEALTHY, HEALTHY, bad, HEALTHY, bad, HEALTHY)[-1] == {}, "a single update is a small sample"


def test_of_features_the_one_furthest_beyond_its_limit_rings_alone() -> None:
    both = {**HEALTHY, "drift/reward_length": 0.2, "drift/reward_token": 0.5}
    assert list(watched(HEALTHY, HEALTHY, both, both)[-1]) == ["reward_length"], "3.6 times 0.055, and twice 0.25"
    both = {**both, "drift/reward_token": 0.95}
    assert list(watched(HEALTHY, HEALTHY, both, both)[-1]) == ["reward_token"], "3.8 times 0.25"


@pytest.mark.parametrize(
    ("feature", "judged", "limit"),
    [
        ("length", True, 0.055),
        ("length", False, 0.055),
        ("repetition", True, 0.055),
        ("repetition", False, 0.055),
        ("token", True, 0.1),
        ("token", False, 0.25),
        ("position", True, 0.1),
        ("position", False, 0.1),
    ],
)
def test_a_feature_rings_beyond_the_limit_of_its_kind(feature: str, judged: bool, limit: float) -> None:
    for share, expected in ((limit - 0.001, []), (limit + 0.001, [f"reward_{feature}"])):
        row = {**HEALTHY, f"drift/reward_{feature}": share, **({"judge/vader": 0.0} if judged else {})}
        assert list(watched(HEALTHY, HEALTHY, row, row)[-1]) == expected


def test_the_beginning_is_the_mean_of_two_updates_and_never_rings() -> None:
    low, high = {**HEALTHY, "response_length/mean": 10.0}, {**HEALTHY, "response_length/mean": 30.0}
    assert watched(low, high, *[{**HEALTHY, "response_length/mean": 29.0}] * 3)[-1] == {}
    assert list(watched(low, high, *[{**HEALTHY, "response_length/mean": 31.0}] * 3)[-1]) == ["length"]
    assert watched(*[{**HEALTHY, "objective/kl": 99.0}] * 3) == [{}, {}, {}]


def test_a_rollout_without_a_score_says_nothing_and_ends_a_row() -> None:
    bad, nothing = {**HEALTHY, "objective/kl": 99.0}, {"objective/kl": 0.0, "policy/entropy_avg": 0.0}
    assert watched(HEALTHY, HEALTHY, bad, nothing, bad) == [{}] * 5


def test_every_alarm_is_documented_with_what_to_do() -> None:
    for name in NAMES:
        metric = find_metric(f"alarm/{name}", "ppo")
        assert metric is not None and advice(name) == metric.what_to_do
    assert set(NAMES) == {name for name, *_ in OUT_OF_RANGE}
    assert alarm_metrics({"kl": "far"}) == {f"alarm/{name}": float(name == "kl") for name in NAMES}


@pytest.mark.parametrize("setting", ["alarm_length", "alarm_kl"])
def test_a_limit_of_alarms_that_are_off_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f'{setting} = 0.25 has no effect: alarms = "off"'):
        PPOConfig(alarms="off", **{setting: 0.25})


PROMPTS = ["the film was", "the plot seemed", "the", "the cast looked"]
SMALL = {
    "rollout.response_length": 24,
    "ppo.rollout_batch_size": 16,
    "ppo.total_episodes": 96,
    "ppo.learning_rate": 0.01,
    "ppo.kl_coef": 0.0,
}


def words_bonus(prompts: list[str], completions: list[str]) -> list[float]:
    """A planted bug: the longer, the better."""
    return [float(len(completion)) for completion in completions]


def start(model: Any, tokenizer: Any, out: Path, **changed: Any) -> PPORun:
    """Every eighth token ends an answer, so that lengths differ."""
    settings = SMALL | {"rollout.stop_token": list(single_tokens(tokenizer).values())[::8]} | changed
    return PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=words_bonus, settings=settings, out=out)


def events(folder: Path) -> list[str]:
    return [row["message"] for row in read_jsonl(folder / "events.jsonl")]


def test_a_reward_that_pays_for_length_is_named_once_as_an_event_and_in_every_line(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    start(model, tokenizer, tmp_path / "run").learn()
    rows = read_jsonl(tmp_path / "run/metrics.jsonl")
    rang = [row["step"] for row in rows if row["alarm/reward_length"]]
    assert rang == [4, 5, 6]  # after two updates of the beginning, and one out of range
    assert all(row["drift/pays/length"] == "length" and row["drift/reward_length"] > 0.5 for row in rows[2:])
    told = [message for message in events(tmp_path / "run") if message.startswith("reward_length alarm at update")]
    assert len(told) == 1
    assert "at update 4: the reward pays for length, which explains" in told[0] and "length_penalty" in told[0]
    (seen,) = read_report_view(tmp_path / "run").stages
    (sentence,) = [one for one in alarm_sentences(seen) if "reward and length" in one]
    assert sentence.startswith("Alarm: reward and length, in 3 updates from 4 to 6: the reward pays for length.")


def test_alarms_stop_the_run_before_the_save_and_off_records_none(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    settings = {"ppo.alarms": "stop"}
    with pytest.raises(TrainingError, match=r"reward_length alarm at update \d+: .*ppo.alarms = stop. Last good") as stopped:
        start(model, tokenizer, tmp_path / "run", **settings).learn()
    assert stopped.value.exit_status == 3
    last = read_jsonl(tmp_path / "run/metrics.jsonl")[-1]
    assert last["alarm/reward_length"] == 1 and not (tmp_path / f"run/checkpoint-{last['step']}").exists()
    with pytest.raises(TrainingError, match=f"reward_length alarm at update {last['step']}"):  # and again, from the checkpoint
        start(model, tokenizer, tmp_path / "run", **settings).learn()
    steps = list(start(model, tokenizer, tmp_path / "off", **{"ppo.alarms": "off"}))
    assert not any(key.startswith("alarm/") for step in steps for key in step.metrics)


TETHERED = {"ppo.alarms": "tether", "ppo.kl_coef": 0.1, "ppo.alarm_tether_factor": 3, "ppo.alarm_tether_max": 0.5}


@pytest.mark.parametrize("settings", [{}, TETHERED])
def test_a_run_left_and_resumed_rings_the_same(model: Any, tokenizer: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    start(model, tokenizer, tmp_path / "whole", **settings).learn()
    for update in (1, 4):
        left = iter(start(model, tokenizer, tmp_path / "run", **settings))
        assert any(step.update == update for step in left)
        left.close()  # type: ignore[attr-defined]
    start(model, tokenizer, tmp_path / "run", **settings).learn()
    assert read_jsonl(tmp_path / "run/metrics.jsonl")[-1]["alarm/reward_length"] == 1
    for name in ("metrics.jsonl", "replay.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_alarm_raises_the_tether_by_its_factor_up_to_the_bound_and_says_so(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """It rings from update 4 on: 0.1 x 3 holds from update 5 on, and two updates later 0.9 would pass the bound of 0.5."""
    start(model, tokenizer, tmp_path / "run", **TETHERED, **{"ppo.total_episodes": 112}).learn()
    coefficients = [row["kl/coef"] for row in read_jsonl(tmp_path / "run/metrics.jsonl")]
    assert coefficients == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.3, 0.3, 0.5])
    told = [message for message in events(tmp_path / "run") if "kl_coef is raised" in message]
    assert len(told) == 2 and "reward_length" in told[0] and "from 0.1 to 0.3" in told[0] and "from 0.3 to 0.5" in told[1]


def test_a_shift_of_prompts_alone_raises_no_tether() -> None:
    cfg = PPOConfig(alarms="tether", kl_coef=0.1)
    at = Carried(kl_coef=0.1, watch=Watch(seen=4, rows={"prompts": 2, "kl": 2}))
    assert tethered(at, {"prompts": "other ones"}, cfg, 4, None) == at
    assert tethered(at, {"prompts": "other ones", "kl": "far"}, cfg, 4, None).kl_coef == pytest.approx(0.15)


def test_suspicious_answers_are_queued_once_against_those_of_the_sft_model(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    settings = {"ppo.alarms": "label", "ppo.alarm_labels": 3}
    start(model, tokenizer, tmp_path / "run", **settings).learn()
    told = [message for message in events(tmp_path / "run") if "answers queued in" in message]
    with PreferenceStore.open(tmp_path / "run/preferences.db", create=False) as store:
        pairs = store.pairs_without_votes()
    assert 0 < len(pairs) <= 3 * len(told) and all(pair.a != pair.b for pair in pairs)
    assert all(pair.prompt in PROMPTS and "reward_length" in pair.reason for pair in pairs[:3])
    assert len(told) == len({message.split(":")[0] for message in told}), "once for an alarm that begins"


def test_labels_without_a_place_to_queue_them_are_refused(model: Any, tokenizer: Any) -> None:
    run = PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=words_bonus, settings=SMALL | {"ppo.alarms": "label"})
    with pytest.raises(ConfigError, match=r"no store to queue answers in. Set ppo.alarm_store"):
        next(iter(run))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"alarm_tether_max": 0.5}, 'alarms = "warn" raises no tether'),
        ({"alarm_labels": 3}, 'alarms = "warn" queues no answers'),
        ({"alarms": "tether", "kl_coef": 0.0}, "Use one between 0 and that"),
        ({"alarms": "tether", "kl_coef": 2.0}, "Use one between 0 and that"),
    ],
)
def test_settings_of_a_countermeasure_that_cannot_act_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        PPOConfig(**settings)


def test_the_watch_comes_back_from_a_checkpoint_as_it_was() -> None:
    watch, _ = Watch().after(HEALTHY, PPOConfig())
    assert Watch(**asdict(watch)) == watch


def test_a_report_says_when_an_alarm_rang_what_it_means_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "get_plotlyjs", lambda: "const Plotly = {};")
    rows = [{**row, "alarm/length": float(7 <= row["step"] <= 12), "alarm/kl": 0.0} for row in ppo_metrics(random.Random(0))]
    page = report.write_report(write_run(tmp_path / "run", verb="ppo", metrics=rows)).read_text("utf-8")
    assert "Alarm: length, in 6 updates from 7 to 12. Answers are longer or shorter" in page
    assert "set length_penalty" in page and "Alarm: KL, " not in page


def test_what_the_page_calls_healthy_is_where_no_alarm_rings() -> None:
    cfg = PPOConfig()
    token = f"below {cfg.alarm_feature:g} with a judge, below {cfg.alarm_feature_unjudged:g} without"
    shape, place = f"below {cfg.alarm_shape:g}", f"below {cfg.alarm_feature:g}"
    healthy = {"length": shape, "repetition": shape, "token": token, "position": place}
    for feature, words in healthy.items():
        metric = find_metric(f"drift/reward_{feature}")
        assert metric is not None and metric.healthy == words
