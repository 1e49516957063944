"""docs/equations.md and the docstrings of core say the same."""

import inspect
import re
from pathlib import Path

import pytest

from surefoot import core

PAGE = (Path(__file__).parents[2] / "docs" / "equations.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\|.*\| (?P<section>all|8\.3\.\d) \| `(?P<function>\w+)` \| (?P<file>\w+\.py) \| (?P<differs>.+) \|$", re.MULTILINE
)
ROWS = {row["function"]: row for row in ROW.finditer(PAGE)}


def first_line(function):
    return inspect.getdoc(function).splitlines()[0]


def test_every_public_name_of_core_stands_on_the_page_once_and_no_other():
    assert sorted(row["function"] for row in ROW.finditer(PAGE)) == sorted(core.__all__)


def test_no_row_of_the_page_escapes_the_comparison():
    headed = [line for line in PAGE.splitlines() if line.startswith("|") and line.endswith(" |") and "`" in line]
    assert len(headed) == len(ROWS)


def test_every_public_function_of_a_module_of_core_is_exported():
    modules = [getattr(core, name) for name in ("masking", "surrogate", "kl", "coefficient", "advantage", "preference")]
    public = {
        name
        for module in modules
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    }
    assert public == set(core.__all__)


@pytest.mark.parametrize("name", core.__all__)
def test_the_section_in_the_first_line_of_the_docstring_is_that_of_the_page(name):
    tags = re.findall(r"\((8\.3\.\d)\)", first_line(getattr(core, name)))
    expected = [] if ROWS[name]["section"] == "all" else [ROWS[name]["section"]]
    assert tags == expected


@pytest.mark.parametrize("name", core.__all__)
def test_the_file_on_the_page_is_where_the_function_lives(name):
    assert getattr(core, name).__module__ == "surefoot.core." + ROWS[name]["file"].removesuffix(".py")


@pytest.mark.parametrize("name", core.__all__)
def test_the_section_of_the_page_is_that_of_the_table_of_contents(name):
    lines = [line for line in core.__doc__.splitlines() if f"`{name}`" in line and re.match(r"8\.3|all", line)]
    assert [line.split()[0] for line in lines] == [ROWS[name]["section"]]


@pytest.mark.parametrize("name", core.__all__)
def test_every_number_of_a_correction_on_the_page_stands_in_a_docstring(name):
    docstrings = " ".join(inspect.getdoc(getattr(core, each)) for each in core.__all__)
    for number in re.findall(r"\d+\.\d{2,}", ROWS[name]["differs"]):
        assert number in docstrings, number
