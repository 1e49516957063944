"""The files in configs/ are the documented defaults, and they load."""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot.config import Config
from surefoot.config_examples import OWN, example, settled, write_examples
from surefoot.config_file import VERB_SECTIONS, VERB_UNREAD, load_config
from surefoot.config_names import fields
from surefoot.config_yaml import read_settings

FOLDER = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("verb", sorted(OWN))
def test_an_example_is_what_the_schema_writes(verb):
    assert (FOLDER / f"{verb}.yaml").read_text(encoding="utf-8") == example(verb), "the schema changed: run `make configs`"


@pytest.mark.parametrize("verb", sorted(OWN))
def test_an_example_loads_and_differs_from_the_defaults_only_in_what_is_the_users_own(verb):
    assert load_config(FOLDER / f"{verb}.yaml", [], verb=verb) == settled(verb)
    if verb != "control":  # whose defaults are Stable-Baselines3's
        assert settled(verb) == Config.model_validate(OWN[verb])


@pytest.mark.parametrize("verb", sorted(OWN))
def test_an_example_names_every_setting_that_its_verb_reads(verb):
    written = {setting.name for setting in read_settings(FOLDER / f"{verb}.yaml")}
    read = {name for name in fields() if "." not in name or name.partition(".")[0] in VERB_SECTIONS[verb]}
    assert written == read - set(VERB_UNREAD.get(verb, {}))


def test_the_demos_example_is_its_default_preset():
    assert load_config(FOLDER / "demo.yaml", [], verb="demo") == load_config(None, [], verb="demo", preset="default")


@pytest.mark.parametrize("name", sorted(path.name for path in (FOLDER / "control").iterdir()))
def test_a_recipe_of_control_loads_and_says_how_it_is_run(name):
    cfg = load_config(FOLDER / "control" / name, [], verb="control", preset="default")
    text = (FOLDER / "control" / name).read_text(encoding="utf-8")
    assert text.startswith(f"# surefoot control configs/control/{name} --out runs/")
    assert cfg.control != Config().control and cfg.control.env in text


@pytest.mark.parametrize("preset", ["default", "tiny"])
@pytest.mark.parametrize(
    "override", [(), ("--ppo.objective=penalty",), ("--ppo.objective=policy_gradient",), ("--ppo.kl_coef=0",)]
)
def test_the_demo_takes_what_its_readers_are_told_to_try(preset, override):
    cfg = load_config(None, override, verb="demo", preset=preset)
    name, _, value = override[0].removeprefix("--ppo.").partition("=") if override else ("objective", "", "clip")
    assert str(getattr(cfg.ppo, name)) == (value if name == "objective" else "0.0")


def test_writing_the_examples_gives_these_files(tmp_path):
    write_examples(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        f"{verb}.yaml": (FOLDER / f"{verb}.yaml").read_bytes() for verb in OWN
    }
