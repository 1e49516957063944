"""Importing the package and asking for help import no torch, nor anything else that is slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

VERBS = (
    "demo",
    "sft",
    "pairs",
    "label",
    "reward",
    "ppo",
    "control",
    "evaluate",
    "rounds",
    "compare",
    "overoptimize",
    "report",
    "chat",
    "doctor",
    "import",
    "export",
)
SOURCES = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
SLOW = ("torch", "transformers", "numpy", "pydantic", "yaml", "plotly", "jinja2")


def modules_after(code: str) -> set[str]:
    """Which of the slow packages a fresh interpreter has imported after running `code`."""
    report = f"import sys; print(','.join(name for name in {SLOW!r} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], env=SOURCES, capture_output=True, text=True, check=True)
    return set(done.stderr.strip().split(",")) - {""}


def test_the_probe_sees_a_slow_package():
    assert modules_after("import yaml") == {"yaml"}


@pytest.mark.parametrize(
    "code",
    [
        "import surefoot; surefoot.__version__",
        "import surefoot; dir(surefoot); surefoot.SurefootError",
        "import surefoot.__main__",
    ],
)
def test_importing_surefoot_imports_nothing_slow(code):
    assert modules_after(code) == set()


def test_help_of_every_verb_imports_nothing_slow():
    calls = "\n".join(f"assert run([{verb!r}, '--help']) == 0" for verb in VERBS)
    imported = modules_after(f"from surefoot.cli import run\nassert run(['--help']) == run(['--version']) == 0\n{calls}")
    assert imported <= {"pydantic"}  # typer's own, where a verb has options


def test_reading_a_configuration_imports_no_torch():
    code = "import surefoot; surefoot.load_config(None, ['--seed=1'], verb='demo', preset='tiny')"
    assert modules_after(code) == {"pydantic", "yaml"}


def test_help_names_the_verbs_that_exist_and_no_others():
    done = subprocess.run([sys.executable, "-m", "surefoot", "--help"], env=SOURCES, capture_output=True, text=True, check=True)
    listed = {
        line.split()[1] for line in done.stdout.splitlines() if line.startswith("│ ") and line[2] != " " and "--" not in line
    }
    assert listed == set(VERBS)


def test_every_exported_name_is_there_and_an_unknown_one_says_what_is():
    import surefoot

    for name in surefoot._EXPORTS:
        assert name in dir(surefoot)
        assert getattr(surefoot, name).__name__ == name
    with pytest.raises(AttributeError, match=r"has no attribute 'train'. It exports Config"):
        surefoot.train  # noqa: B018


def test_a_submodule_can_be_imported_by_name():
    from surefoot import core

    assert core.__name__ == "surefoot.core"
