"""Every member of every Literal, every bound of every number: walked by introspection, so that none is forgotten."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from surefoot.config import Config
from surefoot.config_file import VERB_DATA, VERB_SECTIONS, load_config
from surefoot.config_names import allowed, fields, kinds, members
from surefoot.errors import ConfigError

CHOICES = [
    (name, member)
    for name, info in fields().items()
    for member in members(info.annotation)
    if (name, member) != ("model.dtype", "auto")  # kept as what it is on this machine: tests/cli/test_launch.py
]

# What must stand beside a member that cannot stand alone, and a part of the sentence with which it is refused without it.
COMPANIONS = {
    ("ppo.kl_in", "loss"): (["ppo.kl_estimator=exact"], "its expected gradient is zero"),
    ("ppo.kl_direction", "sft_policy"): (["ppo.kl_estimator=exact", "ppo.kl_in=loss"], "an expectation under the SFT model"),
    ("pairs.select", "uncertainty"): (["pairs.max_pairs=5"], "has no effect: all pairs are queued"),
    ("pairs.select", "disagreement"): (["pairs.max_pairs=5"], "has no effect: all pairs are queued"),
    ("pairs.select", "distance"): (["pairs.max_pairs=5"], "has no effect: all pairs are queued"),
    ("pairs.select", "kl"): (["pairs.max_pairs=5", "pairs.against=runs/sft/final"], "has no effect: all pairs are queued"),
}

# A setting that is read only beside another one's value.
READ_BESIDE = {
    "ppo.beta_controller": ["ppo.objective=penalty"],
    "ppo.beta_estimator": ["ppo.objective=penalty"],
    "reward.bootstrap": ["reward.ensemble=2"],
    "reward_source.protocol": ["reward_source.source=http://127.0.0.1:5000/get_reward"],
}


def verb_of(name: str) -> str:
    """A verb that reads the setting."""
    section, _, key = name.partition(".")
    if section == "data":
        return next(verb for verb, keys in VERB_DATA.items() if key in keys)
    return next((verb for verb, read in VERB_SECTIONS.items() if name.partition(".")[0] in read), "ppo")


def load(name: str, *settings: str) -> Config:
    return load_config(None, [f"--{setting}" for setting in settings], verb=verb_of(name))


def value_of(cfg: Config, name: str) -> object:
    section, _, key = name.rpartition(".")
    value = getattr(getattr(cfg, section) if section else cfg, key)
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value  # a list of the one that was chosen


def test_there_are_choices_to_walk():
    assert len(CHOICES) >= 40
    assert {("ppo.objective", "penalty"), ("model.tuning", "full"), ("ppo.critic", "model")} <= set(CHOICES)


@pytest.mark.parametrize("name, member", CHOICES)
def test_each_member_of_each_choice_can_be_loaded(name, member):
    beside, _ = COMPANIONS.get((name, member), ([], ""))
    cfg = load(name, f"{name}={member}", *beside, *READ_BESIDE.get(name, []))
    assert value_of(cfg, name) == member


@pytest.mark.parametrize("name, member", CHOICES)
def test_each_member_that_cannot_stand_alone_is_refused_with_the_reason(name, member):
    info = fields()[name]
    needs_company = (name, member) in COMPANIONS or (name in READ_BESIDE and member != info.default)
    if not needs_company:
        assert value_of(load(name, f"{name}={member}"), name) == member
        return
    _, reason = COMPANIONS.get((name, member), ([], "has no effect: "))
    with pytest.raises(ConfigError) as caught:
        load(name, f"{name}={member}")
    assert str(caught.value).startswith(f"command line: {name.partition('.')[0]}.")
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", sorted({name for name, _ in CHOICES}))
def test_what_is_no_member_is_refused_with_all_members(name):
    with pytest.raises(ConfigError) as caught:
        load(name, f"{name}=neither")
    given = '["neither"]' if tuple in kinds(fields()[name].annotation) else '"neither"'
    assert f"{name} = {given} is not allowed." in str(caught.value)
    assert all(str(member) in str(caught.value) for member in members(fields()[name].annotation))


def test_the_tether_is_allowed_where_its_gradient_is_right_and_nowhere_else():
    directions, places, estimators = ("policy_sft", "sft_policy"), ("reward", "loss"), ("exact", "k1", "k2", "k3")
    loaded = set()
    for direction, place, estimator in itertools.product(directions, places, estimators):
        try:
            load("ppo", f"ppo.kl_direction={direction}", f"ppo.kl_in={place}", f"ppo.kl_estimator={estimator}")
        except ConfigError as problem:
            assert "Allowed: kl_in reward with policy_sft and exact, k1, k2 or k3" in str(problem)
        else:
            loaded.add((direction, place, estimator))
    assert loaded == {
        ("policy_sft", "reward", "exact"),
        ("policy_sft", "reward", "k1"),
        ("policy_sft", "reward", "k2"),
        ("policy_sft", "reward", "k3"),
        ("policy_sft", "loss", "exact"),
        ("policy_sft", "loss", "k2"),
        ("sft_policy", "loss", "exact"),
    }


NUMBERS = [name for name, info in fields().items() if kinds(info.annotation) & {int, float}]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_never_text_or_a_truth_value_or_infinite(name):
    for written in ("much", "true", ".inf", "-.inf", ".nan"):
        with pytest.raises(ConfigError, match=r"is not allowed\. Allowed: "):
            load(name, f"{name}={written}")


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_beyond_its_bounds_is_refused(name):
    words = allowed(fields()[name])
    step = {"above": 0, "below": 0, "of at least": -1, "of at most": 1}  # from the bound to a number that it does not allow
    bounds = re.findall(rf"({'|'.join(step)}) (-?\d+)(?![.\de])", words)
    tried = [str(int(number) + step[bound]) for bound, number in bounds]
    assert tried or name == "ppo.length_penalty", f"{name} has bounds this test does not know: {words}"
    for value in tried:
        with pytest.raises(ConfigError, match="is not allowed"):
            load(name, f"{name}={value}")


@pytest.mark.parametrize("name, largest", [("seed", 9_000_000_000_000), ("threads", 512)])
def test_a_number_that_torch_or_the_machine_cannot_take_is_refused(name, largest):
    assert value_of(load(name, f"{name}={largest}"), name) == largest
    with pytest.raises(ConfigError, match=rf"^command line: {name} = {largest + 1} is not allowed\. Allowed: a whole number"):
        load(name, f"{name}={largest + 1}")


def test_a_horizon_that_one_rollout_outruns_is_refused_with_one_that_will_do():
    load("ppo.kl_horizon", "ppo.kl_controller=proportional", "ppo.rollout_batch_size=64", "ppo.kl_horizon=13")
    with pytest.raises(ConfigError) as caught:
        load("ppo.kl_horizon", "ppo.kl_controller=proportional", "ppo.rollout_batch_size=64", "ppo.kl_horizon=12")
    assert str(caught.value) == (
        "command line: ppo.kl_horizon = 12 is too short for rollouts of 64 answers: one step of the rule could make kl_coef 0. "
        "Use 13 or more."
    )


SWITCHES = [name for name, info in fields().items() if bool in kinds(info.annotation)]


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_true_or_false_and_nothing_else(name):
    beside = READ_BESIDE.get(name, [])
    assert value_of(load(name, f"{name}=true", *beside), name) is True
    assert value_of(load(name, f"{name}=false", *beside), name) is False
    for written in ("yes", "1", "on", "null"):
        with pytest.raises(ConfigError, match="Allowed: true or false"):
            load(name, f"{name}={written}")


def test_every_setting_can_be_said_in_words():
    assert {name for name, info in fields().items() if not allowed(info)} == set()


def test_an_example_file_exists_for_every_verb_that_trains():
    folder = Path(__file__).parents[2] / "configs"
    verbs = {"sft", "pairs", "reward", "ppo", "control", "evaluate", "demo", "rounds", "compare", "overoptimize"}
    assert {path.stem for path in folder.glob("*.yaml")} == verbs


def test_a_setting_that_is_a_list_is_a_list_alone():
    """`tuple[...] | None` would be a list whose empty form has two spellings; the reader of lists relies on there being none."""
    assert {
        name for name, info in fields().items() if tuple in kinds(info.annotation) and kinds(info.annotation) != {tuple}
    } == set()
