"""Files and overrides become a Config or one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from surefoot.config import Config
from surefoot.config_file import VERB_SECTIONS, dump_config, load_config
from surefoot.config_names import OTHER_NAMES, fields, sections
from surefoot.config_yaml import settings_of
from surefoot.errors import ConfigError


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loads text as run.yaml, named as a user would name it: by a relative path."""
    monkeypatch.chdir(tmp_path)

    def load(text: str | None, *overrides: str, verb: str = "ppo", preset: str | None = None) -> Config:
        if text is not None:
            Path("run.yaml").write_text(text, encoding="utf-8")
        return load_config(Path("run.yaml") if text is not None else None, overrides, verb=verb, preset=preset)

    return load


@pytest.fixture
def refusal(load):
    """The message with which something is refused."""

    def refusal(text: str | None, *overrides: str, verb: str = "ppo", preset: str | None = None) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides, verb=verb, preset=preset)
        return str(caught.value)

    return refusal


def test_nothing_written_gives_the_schemas_defaults(load):
    assert load(None) == load("") == load("# only a comment\n") == load("ppo:\n") == Config()


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(load):
    assert load(None, verb="demo", preset="tiny").model.name == "tiny"
    assert load("model: {name: mine}", verb="demo", preset="tiny").model.name == "mine"
    cfg = load("model: {name: mine}\nseed: 5", "--model.name", "yours", verb="demo", preset="tiny")
    assert (cfg.model.name, cfg.seed) == ("yours", 5)


@pytest.mark.parametrize(
    "written", [("--ppo.cliprange", "0.1"), ("--ppo.cliprange=0.1",), ("ppo.cliprange=0.1",), ("--ppo.cliprange=1e-1",)]
)
def test_an_override_may_be_written_in_each_of_these_ways(load, written):
    assert load(None, *written).ppo.cliprange == 0.1


def test_a_number_in_scientific_notation_is_a_number(load):
    cfg = load("ppo:\n  learning_rate: 1e-5\n  total_episodes: 1e4\n  kl_coef: 5E-2\n  gamma: 1\n")
    assert (cfg.ppo.learning_rate, cfg.ppo.total_episodes, cfg.ppo.kl_coef, cfg.ppo.gamma) == (1e-5, 10_000, 0.05, 1.0)
    assert isinstance(cfg.ppo.total_episodes, int)


def test_negative_values_lists_and_null_are_values(load):
    cfg = load(None, "--ppo.length_penalty", "-0.5", "--rollout.stop_token", "[END, no]", "--ppo.max_grad_norm", "null")
    assert (cfg.ppo.length_penalty, cfg.rollout.stop_token, cfg.ppo.max_grad_norm) == (-0.5, ("END", "no"), None)


@pytest.mark.parametrize("word", ["7", "1e5", "true", "a: b", "[x]", "- x", "# no comment", "caf\u00e9 'n'"])
def test_where_text_is_asked_the_command_line_takes_words_as_they_stand(load, word):
    assert load(None, "--model.name", word).model.name == word


def test_quotes_around_text_are_taken_off_and_null_is_null_where_it_is_allowed(load):
    assert load(None, "--model.name='a b'").model.name == "a b"
    assert load(None, '--model.name="a\\tb"').model.name == "a\tb"
    assert load(None, "--model.name='").model.name == "'"
    assert load(None, "--model.name='a").model.name == "'a"
    assert load(None, "--model.name", "null").model.name == "null"
    for nothing in ("null", "~", ""):
        assert load(None, f"--data.train={nothing}").data.train is None


def test_a_list_of_numbers_is_one(load, refusal):
    assert load(None, "--control.hidden_sizes", "[32, 16]", verb="control").control.hidden_sizes == (32, 16)
    assert load(None, "--control.hidden_sizes", "8", verb="control").control.hidden_sizes == (8,)
    assert refusal(None, "--control.hidden_sizes", "[8, wide]", verb="control") == (
        'command line: control.hidden_sizes = [8, "wide"] is not allowed. Allowed: a list, each item a whole number above 0.'
    )
    assert refusal(None, "--control.hidden_sizes", "[8, 0]", verb="control") == (
        "command line: control.hidden_sizes = [8, 0] is not allowed. Allowed: a list, each item a whole number above 0."
    )


def test_one_word_may_stand_for_a_list_of_one_on_the_command_line(load):
    assert load(None, "--evaluate.judges", "vader", verb="evaluate").evaluate.judges == ("vader",)
    assert load(None, "--rollout.stop_token=###").rollout.stop_token == ("###",)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("seed: 1\nppo:\n  clip_eps: 0.1\n", "run.yaml line 3: no setting ppo.clip_eps. Did you mean ppo.cliprange?"),
        ("rollout:\n  kl_coef: 0.1\n", "run.yaml line 2: no setting rollout.kl_coef. Did you mean ppo.kl_coef?"),
        ("kl_coef: 0.1\n", "run.yaml line 1: no setting kl_coef. Did you mean ppo.kl_coef?"),
        ("ppo: {init_kl_coef: 0.1}\n", "run.yaml line 1: no setting ppo.init_kl_coef. Did you mean ppo.kl_coef?"),
        ("ppo: {clipramge: 0.1}\n", "run.yaml line 1: no setting ppo.clipramge. Did you mean ppo.cliprange?"),
        ("ppo: {lr: 0.1}\n", "run.yaml line 1: no setting ppo.lr. Did you mean ppo.learning_rate?"),
        (
            "per_device_train_batch_size: 4\n",
            "run.yaml line 1: no setting per_device_train_batch_size. Did you mean ppo.micro_batch_size?",
        ),
        ("rollout: {clirange: 1}\n", "run.yaml line 1: no setting rollout.clirange. Did you mean ppo.cliprange?"),
        ("pairs: {learning_rat: 1}\n", "run.yaml line 1: no setting pairs.learning_rat. Did you mean ppo.learning_rate?"),
        ("sft: {learning_rat: 1}\n", "run.yaml line 1: no setting sft.learning_rat. Did you mean sft.learning_rate?"),
        ("sede: 1\n", "run.yaml line 1: no setting sede. Did you mean seed?"),
        (
            "gravity: 1\nnum_epoch: 1\n",
            "run.yaml line 1: no setting gravity. `surefoot ppo --dry-run` prints all that there are.\n"
            "run.yaml line 2: no setting num_epoch. Did you mean sft.num_epochs or reward.num_epochs?",
        ),
        ("rolout: 1\n", "run.yaml line 1: no setting rolout. Did you mean rollout?"),
        ("ppo: {xyzzy: 1}\n", "run.yaml line 1: no setting ppo.xyzzy. `surefoot ppo --dry-run` prints all that there are."),
        (
            "ppo.gamma: 0.5\n",
            "run.yaml line 1: no setting 'ppo.gamma' at the top level. Write `ppo:` and below it, indented, `gamma: 0.5`.",
        ),
        (
            "seed: 1\nppo: 3\n",
            "run.yaml line 2: ppo is a section, not a setting. Set one of its settings, for example ppo.learning_rate.",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(refusal, text, sentence):
    assert refusal(text) == sentence


def test_every_unknown_name_is_reported_at_once(refusal):
    lines = refusal("ppo:\n  clip_eps: 1\n  lambda: 1\n", "--foo.bar", "1").splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["run.yaml line 2", "run.yaml line 3", "command line"]


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ("ppo.gamma=2", "ppo.gamma = 2 is not allowed. Allowed: a number of at least 0 and of at most 1."),
        ("ppo.cliprange=1", "ppo.cliprange = 1 is not allowed. Allowed: a number above 0 and below 1."),
        ("ppo.cliprange=fast", 'ppo.cliprange = "fast" is not allowed. Allowed: a number above 0 and below 1.'),
        ("ppo.kl_coef=true", "ppo.kl_coef = true is not allowed. Allowed: a number of at least 0."),
        ("ppo.kl_coef=.nan", "ppo.kl_coef = NaN is not allowed. Allowed: a number of at least 0."),
        ("ppo.kl_coef='0.1'", 'ppo.kl_coef = "0.1" is not allowed. Allowed: a number of at least 0.'),
        ("ppo.num_ppo_epochs=0", "ppo.num_ppo_epochs = 0 is not allowed. Allowed: a whole number above 0."),
        ("ppo.num_ppo_epochs=1.5", "ppo.num_ppo_epochs = 1.5 is not allowed. Allowed: a whole number above 0."),
        ("ppo.reward_clip=-1", "ppo.reward_clip = -1 is not allowed. Allowed: a number above 0 or null."),
        ("ppo.whiten_rewards=yes", 'ppo.whiten_rewards = "yes" is not allowed. Allowed: true or false.'),
        ("ppo.whiten_rewards=1", "ppo.whiten_rewards = 1 is not allowed. Allowed: true or false."),
        (
            "ppo.kl_coef='" + "x" * 100 + "'",
            f'ppo.kl_coef = "{"x" * 69}... (102 characters) is not allowed. Allowed: a number of at least 0.',
        ),
        ("ppo.gamma=null", "ppo.gamma = null is not allowed. Allowed: a number of at least 0 and of at most 1."),
        ("ppo.gamma=[1]", "ppo.gamma = [1] is not allowed. Allowed: a number of at least 0 and of at most 1."),
        ("rollout.stop_token=[1]", "rollout.stop_token = [1] is not allowed. Allowed: a list, each item text."),
        (
            "ppo.objective=penality",
            'ppo.objective = "penality" is not allowed. Allowed: clip, penalty or policy_gradient. Did you mean penalty?',
        ),
        ("seed=-1", "seed = -1 is not allowed. Allowed: a whole number of at least 0 and of at most 9e+12."),
    ],
)
def test_a_value_is_refused_with_what_is_allowed(refusal, setting, sentence):
    assert refusal(None, f"--{setting}") == f"command line: {sentence}"


def test_a_value_in_a_file_is_refused_with_its_line(refusal):
    text = "seed: 1\n\nppo:\n  # a comment\n  objective: clip\n  gamma: 2\nmodel:\n  name: 5\n"
    assert refusal(text).splitlines() == [
        "run.yaml line 8: model.name = 5 is not allowed. Allowed: text.",
    ]
    assert refusal(text.replace("name: 5", "name: five")) == (
        "run.yaml line 6: ppo.gamma = 2 is not allowed. Allowed: a number of at least 0 and of at most 1."
    )


def test_a_contradiction_speaks_in_the_schemas_own_sentence_and_says_where_it_was_written(refusal):
    assert refusal("ppo:\n  num_mini_batches: 3\n") == (
        "run.yaml line 2: ppo.num_mini_batches = 3 does not divide the 64 rows of a rollout. Use one of 1, 2, 4, 8, 16, 32, 64."
    )
    assert refusal("ppo:\n  beta: 3\n", "--ppo.objective=clip") == (
        'run.yaml line 2: ppo.beta = 3.0 has no effect: objective = "clip" has no beta'
    )
    said = refusal(None, "--ppo.kl_in=loss")
    assert said.startswith("command line: ppo.kl_in = 'loss' with kl_estimator = 'k1': over the policy's own samples")
    assert "Value error" not in said


def test_data_that_the_verb_does_not_read_is_refused(refusal, load):
    assert refusal("data:\n  train: rows.jsonl\n") == (
        'run.yaml line 2: data.train = "rows.jsonl" has no effect: surefoot ppo reads data.prompts and data.long_prompts. '
        "Remove it; it is for surefoot sft, reward or overoptimize."
    )
    assert load("data: {train: null, validation_share: 0.1, prompts: p.jsonl}", verb="ppo").data.prompts == "p.jsonl"


def test_a_section_that_the_verb_does_not_read_is_refused(refusal, load):
    assert refusal("sft:\n  batch_size: 3\n") == (
        "run.yaml line 2: sft.batch_size = 3 has no effect: surefoot ppo reads the sections model, data, rollout, ppo and "
        "reward_source. Remove it; sft is for surefoot sft, demo, rounds or overoptimize."
    )
    assert load("sft:\n  batch_size: 16\n") == Config()  # the default: a run's own config.yaml names every setting


def test_a_runs_own_configuration_serves_the_next_verb(load, tmp_path):
    assert load(dump_config(load(None, "--seed=3", verb="sft")), verb="ppo").seed == 3


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["--ppo.gamma"], "command line: --ppo.gamma has no value. Write --ppo.gamma VALUE."),
        (["--ppo.gamma", "--seed", "1"], "command line: --ppo.gamma has no value. Write --ppo.gamma VALUE."),
        (["stray"], "command line: 'stray' is no setting. Write for example --ppo.cliprange 0.1."),
        (["--seed=1", "--seed", "2"], "command line: seed is given twice. Remove one of the two."),
        (["--ppo.gamma={a: 1}"], "command line: '{a: 1}' is a mapping. Give one value, or a list such as [a, b]."),
        (["--dryrun"], "command line: no setting dryrun. Did you mean --dry-run?"),
    ],
)
def test_what_is_wrong_with_an_override_is_said(overrides, sentence):
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides, verb="ppo", options=("out", "dry-run"))
    assert str(caught.value) == sentence


def test_an_unknown_preset_is_refused_with_the_known_ones(refusal):
    assert refusal(None, verb="demo", preset="huge") == "no preset 'huge' for surefoot demo. Presets: default or tiny."
    assert refusal(None, verb="sft", preset="tiny") == "no preset 'tiny' for surefoot sft. surefoot sft has no presets."


@pytest.mark.parametrize(
    "cfg",
    [
        Config(),
        Config.model_validate({"seed": 7, "ppo": {"learning_rate": 1e-5, "length_penalty": -1e-20, "reward_clip": 1e20}}),
        Config.model_validate(
            {"rollout": {"stop_token": ("\n\n", "no", "1e5", "a b", "", "\u00e9\U0001f600", "x: y", "#", "'\"", "\x07\x85")}}
        ),
        Config.model_validate(
            {"model": {"name": "C:\\models\\x"}, "data": {"train": "null", "prompts": "~", "eval_prompts": "on"}}
        ),
    ],
)
def test_what_is_dumped_is_read_back_equal(cfg):
    assert read(dump_config(cfg)) == cfg
    assert read(dump_config(cfg, comments=True)) == cfg


def test_another_reader_of_yaml_reads_the_dump_alike():
    cfg = Config.model_validate({"ppo": {"learning_rate": 1e-5, "length_penalty": 3e-07}, "data": {"train": "no"}})
    again = yaml.safe_load(dump_config(cfg))  # YAML 1.1: `no` is false there, and 1e-05 is text
    assert Config.model_validate(again) == cfg
    assert isinstance(again["ppo"]["learning_rate"], float)


def test_the_dump_names_every_setting():
    loaded = yaml.safe_load(dump_config(Config()))
    assert {name for name in fields() if "." not in name} | {f"{s}.{k}" for s in sections() for k in loaded[s]} == set(fields())


def test_every_other_name_leads_to_a_setting_that_exists_and_is_none_itself():
    ends = {name.rpartition(".")[2] for name in fields()}
    assert {target for target in OTHER_NAMES.values() if target not in fields() and target not in ends} == set()
    assert set(OTHER_NAMES) & set(fields()) == set()


def test_every_section_is_read_by_a_verb_and_every_verb_reads_sections_that_exist():
    assert {section for read in VERB_SECTIONS.values() for section in read} == set(sections())


def read(text: str) -> Config:
    """Reads a dump of all sections, which no single verb would."""
    nested: dict[str, object] = {}
    for setting in settings_of(text, "dump"):
        value = tuple(setting.value) if isinstance(setting.value, list) else setting.value
        home = nested.setdefault(setting.path[0], {}) if len(setting.path) == 2 else nested
        home[setting.path[-1]] = value  # type: ignore[index]
    return Config.model_validate(nested)


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        (
            "ppo",
            ["--ppo.kl_coef=0", "--ppo.kl_controller=proportional"],
            'kl_coef = 0 with kl_controller = "proportional": the rule',
        ),
        (
            "control",
            ["--ppo.objective=penalty", "--ppo.beta=0", "--ppo.beta_controller=doubling"],
            'beta = 0 with beta_controller = "doubling": the rule multiplies it, and 0 stays 0',
        ),
        (
            "reward",
            ["--reward.store=v.db", "--data.train=p.jsonl"],
            "data.train = 'p.jsonl' and reward.store = 'v.db' are both set",
        ),
        ("demo", ["--reward.store=x"], 'reward.store = "x" has no effect in surefoot demo: the demo\'s own votes'),
        ("demo", ["--evaluate.against=x"], 'evaluate.against = "x" has no effect in surefoot demo'),
        ("demo", ["--evaluate.judges=[a:b]"], 'evaluate.judges = ["a:b"] has no effect in surefoot demo: the demo brings'),
    ],
)
def test_a_setting_that_another_makes_idle_is_refused(verb: str, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, words, verb=verb)
    assert said in str(caught.value)


@pytest.mark.parametrize("words", ["source=runs/reward/final", "sources=[a, b]", "weights=[1]"])
def test_rounds_pay_by_the_reward_model_of_each_round_alone(words: str) -> None:
    with pytest.raises(ConfigError, match=r"has no effect in surefoot rounds: each round works on what the one before it made"):
        load_config(None, [f"--reward_source.{words}"], verb="rounds", preset="tiny")


def test_a_rule_for_members_without_members_is_refused_before_anything_is_trained():
    for verb, preset in (("demo", "tiny"), ("rounds", "tiny")):
        with pytest.raises(ConfigError, match=r"reward_source\.ensemble = min has no effect on one reward model\. Set reward"):
            load_config(None, ["--reward_source.ensemble=min"], verb=verb, preset=preset)
    words = ["--reward_source.ensemble=min", "--reward.ensemble=2", "--reward.method=head"]
    assert load_config(None, words, verb="demo", preset="tiny").reward_source.ensemble == "min"
    with pytest.raises(ConfigError, match=r"no effect in surefoot demo: the demo's own reward model pays"):
        load_config(None, ["--reward_source.source=len"], verb="demo", preset="tiny")
