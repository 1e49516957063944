"""Hostile and careless YAML ends in one line, never in another exception and never in a surprise."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.config_file import load_config
from surefoot.config_yaml import MAX_BYTES, parse_value, read_settings, settings_of
from surefoot.errors import ConfigError


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("-.5", -0.5), ("1.", 1.0), ("+3", 3), ("007", 7), ("1_000", 1000), ("0.1e+1", 1.0),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("'1'", "1"), ('"a\\tb"', "a\tb"),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("12:30:45", "12:30:45"), ("2026-11-22", "2026-11-22"), ("0x10", "0x10"),
        ("1e", "1e"), ("e5", "e5"), ("-", [None]), ("[a, 1, true]", ["a", 1, True]), ("<<", "<<"), ("1__", 1),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text, value):
    found = parse_value(text, "here")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("seed: 1\nseed: 2\n", "x.yaml line 2: seed is set twice, first on line 1. Remove one."),
        ("ppo:\n  gamma: 1\n  gamma: 1\n", "x.yaml line 3: ppo.gamma is set twice, first on line 2. Remove one."),
        ("a: &x 1\nb: *x\n", "x.yaml line 1: anchors and aliases (& and *) are not allowed. Write the value out."),
        ("a: 1\nb: *x\n", "x.yaml line 2: anchors and aliases (& and *) are not allowed. Write the value out."),
        (
            "a: !!python/name:os.system x\n",
            "x.yaml line 1: the tag 'tag:yaml.org,2002:python/name:os.system' is not allowed. Remove it; no value needs one.",
        ),
        ("a: !mine 1\n", "x.yaml line 1: the tag '!mine' is not allowed. Remove it; no value needs one."),
        ("- a\n- b\n", "x.yaml line 1: a list instead of settings. Write lines such as `seed: 1`."),
        ("just words\n", "x.yaml line 1: a single value instead of settings. Write lines such as `seed: 1`."),
        ("a: 1\n---\nb: 2\n", "x.yaml line 2: not YAML: but found another document."),
        ("a: 1\n\tb: 2\n", "x.yaml line 2: not YAML: found character '\\t' that cannot start any token."),
        ("a:\n  b:\n    c: 1\n", "x.yaml line 2: a.b holds a mapping. Give one value, or a list such as [a, b]."),
        ("a: [{b: 1}]\n", "x.yaml line 1: a mapping stands in a list. Lists hold single values."),
        ("? [a]\n: 1\n", "x.yaml line 1: a list is used as a name. Names are words such as seed or ppo."),
        ("a: 1\nb: \x07\n", "x.yaml line 2: the character '\\x07' is not allowed in YAML."),
        ("a: " + "[" * 50, "x.yaml line 1: nested deeper than 8 levels. There are sections and settings, no more."),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_with_its_line(text, sentence):
    with pytest.raises(ConfigError) as caught:
        settings_of(text, "x.yaml")
    assert str(caught.value) == sentence


def test_every_setting_keeps_its_line():
    text = "# one\nseed: 1\n\nppo:\n  gamma: 1\n  # six\n  lam:\n    0.5\nmodel: {name: a,\n  dtype: b}\n"
    assert {setting.name: setting.where for setting in settings_of(text, "x.yaml")} == {
        "seed": "x.yaml line 2",
        "ppo.gamma": "x.yaml line 5",
        "ppo.lam": "x.yaml line 7",
        "model.name": "x.yaml line 9",
        "model.dtype": "x.yaml line 10",
    }


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    (tmp_path / "ppo.yaml").write_text("seed: 1", encoding="utf-8")
    cases = {
        tmp_path / "pppo.yaml": f"no file {tmp_path / 'pppo.yaml'}. YAML files in {tmp_path}: ppo.yaml.",
        tmp_path: f"{tmp_path} is a folder. Name a YAML file in it.",
        tmp_path / "none" / "x.yaml": f"no file {tmp_path / 'none' / 'x.yaml'}. Check the name; settings start with two dashes.",
    }
    for path, sentence in cases.items():
        with pytest.raises(ConfigError) as caught:
            read_settings(path)
        assert str(caught.value) == sentence


def test_a_file_that_is_no_configuration_is_refused_before_it_is_parsed(tmp_path: Path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"a" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="is larger than 1,000,000 bytes"):
        read_settings(path)
    path.write_bytes(b"seed: 1\nname: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"line 2: not UTF-8 \(byte 0xe9\)"):
        read_settings(path)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\r\nthreads: 1\r\n")
    assert [(setting.name, setting.value) for setting in read_settings(path)] == [("seed", 3), ("threads", 1)]


@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(alphabet=":-[]{}&*!|>'\"#%@`,?\\ \n\tabe019._x\U0001f600\x00\x85\ud7ff", max_size=60).map(str.encode),
    )
)
def test_any_bytes_are_a_configuration_or_one_clear_error(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(raw)
    try:
        load_config(path, [], verb="ppo")
    except ConfigError as problem:
        assert str(problem).strip()


@given(st.lists(st.text(alphabet="-=.: [ae1]{}'\"&*!ppogamseedlr", max_size=14), max_size=4))
def test_any_words_are_overrides_or_one_clear_error(words):
    try:
        load_config(None, words, verb="ppo")
    except ConfigError as problem:
        assert str(problem).strip()
