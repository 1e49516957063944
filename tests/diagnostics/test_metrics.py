"""The table of metrics, its page, and what CONVENTIONS promises by name."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from fake_run import VERDICT, ppo_metrics, reward_metrics, sft_metrics
from surefoot.diagnostics.charts import SPECS
from surefoot.diagnostics.metrics import GROUPS, METRICS, find_metric, is_known, known_keys, metrics_page, verdict_keys

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

PROMISED = (
    "objective/kl",
    "objective/entropy",
    "objective/non_score_reward",
    "objective/rlhf_reward",
    "objective/scores",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "val/ratio",
    "val/ratio_var",
    "val/num_eos_tokens",
    "critic/explained_variance",
    "response_length/mean",
    "response_length/max",
    "response_length/cut",
    "kl/beta",
    "kl/coef",
    "kl/target",
    "lr",
    "episode",
    "timing/rollout",
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "train/approx_kl",
    "train/clip_fraction",
    "train/entropy_loss",
    "train/explained_variance",
    "train/policy_gradient_loss",
    "train/value_loss",
    "time/fps",
    "time/total_timesteps",
    "eval/mean_reward",
    "accuracy",
    "margin",
    "mean_reward",
    "min_reward",
    "max_reward",
)


def test_the_page_holds_each_key_of_the_table_once_a_section_and_no_other() -> None:
    sections = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    on_page = {s.splitlines()[0]: re.findall(r"^### `(.+)`$", s, flags=re.MULTILINE) for s in sections}
    assert on_page == {name: [metric.key for metric in group] for name, group in GROUPS.items()}


def test_the_page_is_the_one_that_the_table_writes() -> None:
    assert PAGE.read_text("utf-8") == metrics_page(), "run `python -m surefoot.diagnostics.metrics > docs/metrics.md`"


@pytest.mark.parametrize("group", GROUPS)
def test_no_key_stands_twice_in_a_group(group: str) -> None:
    assert [key for key, times in Counter(metric.key for metric in GROUPS[group]).items() if times > 1] == []


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_every_entry_says_all_it_has_to(metric) -> None:
    fields = (metric.title, metric.what, metric.formula, metric.denominator, metric.unit, metric.healthy, metric.what_to_do)
    assert all(text.strip() == text and text for text in fields)
    assert metric.what.endswith(".") and metric.what_to_do.endswith(".")


@pytest.mark.parametrize("key", PROMISED)
def test_every_promised_key_is_documented(key: str) -> None:
    assert is_known(key)


@pytest.mark.parametrize("rows", [ppo_metrics, sft_metrics, reward_metrics], ids=lambda rows: rows.__name__)
def test_every_key_of_the_made_up_runs_is_documented(rows) -> None:
    keys = {key for row in rows(random.Random(0)) for key in row}
    assert {key for key in keys if not is_known(key)} == set()


def test_verdict_keys_are_those_of_the_made_up_verdict_and_a_few_more() -> None:
    assert set(VERDICT) <= verdict_keys()


@pytest.mark.parametrize("kind", SPECS)
def test_every_charted_key_is_documented(kind: str) -> None:
    keys = {key for spec in SPECS[kind] for key in (*spec.keys, *([spec.target] if spec.target else []))}
    assert {key for key in keys if key not in known_keys()} == set()


def test_an_unknown_key_is_unknown() -> None:
    assert not is_known("policy/made_up")
    assert not is_known("policy/made_up_after")  # the family *_after holds names without a slash
    assert find_metric("made_up") is None


def test_a_family_covers_its_members_and_an_exact_entry_goes_first() -> None:
    assert find_metric("judge/other").key == "judge/*"
    assert find_metric("judge/vader").key == "judge/vader"
    assert find_metric("timing/rollout").key == "timing/*"


def test_one_key_means_what_its_kind_of_run_says() -> None:
    assert find_metric("loss", "sft").unit == "nats a token"
    assert find_metric("loss", "reward").unit == "nats a pair"
