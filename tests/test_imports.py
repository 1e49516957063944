"""Who may import whom: the table of the design, held against the source. An offender is named with file and line.

A part is a folder or a module directly below `surefoot`. The standard library is open to all; `errors`, `faults` and
numpy to all but core and types. An optional package is imported inside a function, where a missing extra can be told in one line.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import surefoot

SOURCE = Path(surefoot.__file__).parent
PROJECT = SOURCE.parents[1]

ALL = "everything"
# part: (from the package, from outside)
TABLE: dict[str, tuple[str, str]] = {
    "core": ("", "torch jaxtyping"),
    "types": ("", "torch jaxtyping"),
    "errors": ("", ""),
    "config": ("config_base config_lab config_ppo config_reward", "pydantic yaml"),
    "ppo": ("core types config micro_batches", "torch jaxtyping"),
    "control": ("core types config", "torch jaxtyping gymnasium safetensors PIL"),
    "lm": ("core types config", "torch jaxtyping transformers peft tokenizers safetensors gguf"),
    "rollout": ("types config lm", "torch jaxtyping transformers"),
    "rewards": ("types config lm", "torch jaxtyping transformers safetensors jsonschema referencing"),
    "preferences": ("config", "fastapi uvicorn jinja2 starlette pydantic"),  # no torch: an annotator's laptop
    "runtime": ("types config", "torch safetensors"),
    "runs": ("types config", "torch safetensors yaml tensorboard wandb trackio mlflow"),
    "diagnostics": ("core types runs", "torch jinja2 markupsafe plotly"),
    "build": (ALL, "torch jaxtyping"),
    "stages": (ALL, "torch jaxtyping"),
    "api": (ALL, "torch jaxtyping"),
    "launch": ("config stages", "typer rich"),
    "cli": ("config stages launch", "typer rich"),
}
# modules that the design's table does not list, and parts of it that stand in a file of their own
FURTHER: dict[str, tuple[str, str]] = {
    "__init__": ("", ""),
    "__main__": ("cli", ""),
    "cli_run": ("config stages launch", "typer"),
    "cli_store": ("config", "typer"),
    "cli_words": ("", ""),
    "faults": ("", ""),
    "micro_batches": ("config", "torch jaxtyping"),
    "content": ("", ""),
    "intervals": ("", ""),
    "config_base": ("", "pydantic"),
    "config_ppo": ("config_base", "pydantic"),
    "config_lab": ("config_base", "pydantic"),
    "config_reward": ("config_base", "pydantic"),
    "config_file": ("config config_names config_yaml", "pydantic pydantic_core yaml"),
    "config_names": ("config", "pydantic"),
    "config_yaml": ("config", "yaml"),
    "config_examples": ("config config_file", "pydantic"),
    "build_control": (ALL, "torch jaxtyping"),
    "build_data": (ALL, ""),
    "build_rewards": (ALL, ""),
    "api_control": (ALL, "torch jaxtyping"),
    "api_evaluate": (ALL, ""),
    "api_steps": (ALL, ""),
    "optim": ("core types config", "torch jaxtyping"),
    "ppo_figures": ("core types config", "torch jaxtyping"),
    "ppo_decisions": ("core types config", "torch jaxtyping"),
    "ppo_gradient": ("types config", ""),
    "ppo_by_hand": ("core types config", "torch jaxtyping"),
    "embedded": ("types config preferences", "torch transformers safetensors filelock tokenizers gguf vaderSentiment"),
    "progress": ("config", "rich"),
    "interchange": ("config content interchange_formats lm preferences", ""),
    "interchange_formats": ("config content preferences", "pyarrow"),
    "doctor": (ALL, "torch"),
    "doctor_rungs": (ALL, "torch"),
    "dry_run": (ALL, "torch"),
}
# a part may use what its row names, and these besides
BESIDES: dict[str, str] = {
    "ppo": "ppo_by_hand ppo_decisions ppo_figures optim",
    "ppo_by_hand": "ppo_decisions ppo_figures ppo_gradient",
    "ppo_decisions": "ppo_figures",
    "lm": "embedded content launch",  # the embedded default is one of its backbones; what this CPU is
    "preferences": "content intervals",
    "diagnostics": "intervals",
    "config": "launch",  # what this machine has instructions for
    "cli": "cli_run cli_store cli_words config_file config_names doctor interchange progress",
    "cli_run": "cli_words config_file dry_run progress",
}
OPEN_TO_ALL = ("errors", "faults", "numpy")
CLOSED = ("core", "types")  # to which even these are not open
ANYTHING_IN_A_FUNCTION = ("cli", "cli_run", "cli_store", "doctor", "dry_run")
WITHOUT_TORCH = (
    "__init__",
    "__main__",
    "cli",
    "cli_run",
    "config",
    "config_file",
    "content",
    "errors",
    "faults",
    "intervals",
    "launch",
    "preferences",
)
# packages that come with another: their name is on no list of ours
COMES_WITH = {"pydantic_core": "pydantic", "markupsafe": "jinja2", "tokenizers": "transformers", "starlette": "fastapi"}
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "vaderSentiment": "vadersentiment"}


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    module: str  # dotted, absolute
    in_function: bool
    for_types: bool

    @property
    def target(self) -> str:
        """The part of surefoot, or the package outside."""
        names = self.module.split(".")
        return names[1] if names[0] == "surefoot" and len(names) > 1 else names[0]

    @property
    def is_own(self) -> bool:
        return self.module.startswith("surefoot.")

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


class Collector(ast.NodeVisitor):
    def __init__(self, file: str, package: list[str], modules: set[str]) -> None:
        self.found: list[Import] = []
        self._file, self._package, self._modules = file, package, modules
        self._functions, self._types = 0, 0

    def _add(self, node: ast.stmt, module: str) -> None:
        self.found.append(Import(self._file, node.lineno, module, self._functions > 0, self._types > 0))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        start = self._package[: len(self._package) - node.level + 1] if node.level else []
        module = ".".join([*start, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{module}.{alias.name}"
            self._add(node, inner if inner in self._modules else module)

    def _visit_function(self, node: ast.AST) -> None:
        self._functions += 1
        self.generic_visit(node)
        self._functions -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function

    def visit_If(self, node: ast.If) -> None:
        guard = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        self._types += guard
        for child in node.body:
            self.visit(child)
        self._types -= guard
        for child in node.orelse:
            self.visit(child)


def module_name(root: Path, file: Path) -> str:
    names = ["surefoot", *file.relative_to(root).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def part_of(root: Path, file: Path) -> str:
    return file.relative_to(root).with_suffix("").parts[0]


@functools.cache
def imports_of(root: Path) -> dict[Path, list[Import]]:
    files = sorted(root.rglob("*.py"))
    modules = {module_name(root, file) for file in files}
    result = {}
    for file in files:
        relative = file.relative_to(root)
        collector = Collector(f"surefoot/{relative.as_posix()}", ["surefoot", *relative.parts[:-1]], modules)
        collector.visit(ast.parse(file.read_text("utf-8")))
        result[file] = collector.found
    return result


def offenders(root: Path, part: str) -> list[str]:
    """Every import of `part` that the table does not allow."""
    package, outside = (TABLE | FURTHER)[part]
    own = {*package.split(), *BESIDES.get(part, "").split(), part, "__init__"}
    found = []
    for file, imports in imports_of(root).items():
        if part_of(root, file) != part:
            continue
        for each in imports:
            if not allowed(each, part, own, outside.split(), package == ALL):
                found.append(str(each))
    return found


def allowed(each: Import, part: str, own: set[str], outside: list[str], everything: bool) -> bool:
    if each.target in OPEN_TO_ALL:
        return part not in CLOSED
    if each.module == "surefoot":
        return part not in CLOSED  # the package itself: its version
    if each.is_own:
        return everything or each.target in own or (each.in_function and part in ANYTHING_IN_A_FUNCTION)
    return each.target in sys.stdlib_module_names or each.target in outside


def requirements() -> tuple[set[str], set[str]]:
    """Distributions of the base install, and those of the extras."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower().replace("-", "_") for line in lines}

    return names(project["dependencies"]), {name for lines in project["optional-dependencies"].values() for name in names(lines)}


def distribution(package: str) -> str:
    package = COMES_WITH.get(package, package)
    return DISTRIBUTIONS.get(package, package)


def reaches_torch(root: Path, start: str) -> str:
    """The chain of imports by which importing `start` imports torch; "" when it does not."""
    by_module = {module_name(root, file): imports for file, imports in imports_of(root).items()}
    chains = {start: start}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        parents = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
        at_once = [each.module for each in by_module.get(module, []) if not each.in_function and not each.for_types]
        for following in [*parents, *at_once]:
            if following.split(".")[0] == "torch":
                return f"{chains[module]} -> torch"
            if following in by_module and following not in chains:
                chains[following] = f"{chains[module]} -> {following}"
                waiting.append(following)
    return ""


@pytest.mark.parametrize("part", TABLE | FURTHER)
def test_a_part_imports_only_what_the_table_allows(part: str) -> None:
    assert offenders(SOURCE, part) == []


def test_every_part_of_the_tree_has_a_row() -> None:
    assert {part_of(SOURCE, file) for file in SOURCE.rglob("*.py")} - set(TABLE | FURTHER) == set()


def test_what_is_imported_outside_functions_belongs_to_the_base_install() -> None:
    base, _ = requirements()
    loose = [
        str(each)
        for imports in imports_of(SOURCE).values()
        for each in imports
        if not (
            each.in_function
            or each.for_types
            or each.module.split(".")[0] == "surefoot"
            or each.target in sys.stdlib_module_names
        )
        and distribution(each.target) not in base
    ]
    assert loose == []


def test_what_is_imported_inside_functions_is_in_the_base_install_or_an_extra() -> None:
    base, extras = requirements()
    unknown = [
        str(each)
        for imports in imports_of(SOURCE).values()
        for each in imports
        if each.module.split(".")[0] != "surefoot"
        and each.target not in sys.stdlib_module_names
        and distribution(each.target).lower() not in base | extras
    ]
    assert unknown == []


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_importing_this_part_imports_no_torch(part: str) -> None:
    modules = [module_name(SOURCE, file) for file in SOURCE.rglob("*.py") if part_of(SOURCE, file) == part]
    assert [chain for module in modules if (chain := reaches_torch(SOURCE, module))] == []


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("part", "text", "named"),
    [
        ("core", "from surefoot import errors", ["surefoot/core/kl.py:1 imports surefoot.errors"]),
        ("core", "import surefoot.faults as f", ["surefoot/core/kl.py:1 imports surefoot.faults"]),
        ("core", "\nfrom ..errors import SurefootError", ["surefoot/core/kl.py:2 imports surefoot.errors"]),
        ("core", "import numpy.typing", ["surefoot/core/kl.py:1 imports numpy.typing"]),
        ("core", "from surefoot import __version__", ["surefoot/core/kl.py:1 imports surefoot"]),
        ("core", "def f():\n    import pydantic", ["surefoot/core/kl.py:2 imports pydantic"]),
        ("core", "from .. import types", ["surefoot/core/kl.py:1 imports surefoot.types"]),
        ("core", "import math, torch.nn\nfrom .masking import x\nfrom jaxtyping import Float", []),
        (
            "preferences",
            "class A:\n    def f(self):\n        from torch import nn",
            ["surefoot/preferences/kl.py:3 imports torch"],
        ),
        ("preferences", "import numpy\nfrom surefoot.errors import DataError\nfrom surefoot.faults import fault_point", []),
        ("preferences", "from surefoot.lm.data import x", ["surefoot/preferences/kl.py:1 imports surefoot.lm.data"]),
        ("cli", "from surefoot import lm", ["surefoot/cli/kl.py:1 imports surefoot.lm"]),
        ("cli", "def f():\n    from surefoot import lm", []),
        (
            "rewards",
            "if TYPE_CHECKING:\n    from surefoot.stages import sft",
            ["surefoot/rewards/kl.py:2 imports surefoot.stages"],
        ),
        ("stages", "from surefoot.lm import data\nfrom surefoot.build import x", []),
        ("stages", "import fastapi", ["surefoot/stages/kl.py:1 imports fastapi"]),
    ],
)
def test_the_search_finds_an_offender_however_it_is_written(part: str, text: str, named: list[str], tmp_path: Path) -> None:
    empty = {f"{name}/__init__.py": "" for name in ("core", "lm", "stages")} | {"errors.py": "", "types.py": "", "faults.py": ""}
    root = tree(tmp_path, {**empty, f"{part}/kl.py": text})
    assert offenders(root, part) == named


def test_torch_is_found_behind_other_modules_and_not_behind_functions(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "a.py": "from surefoot.b import c",
        "b/__init__.py": "",
        "b/c.py": "import surefoot.d.e",
        "d/__init__.py": "from torch import nn",
        "d/e.py": "",
        "late.py": "if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch",
    }
    root = tree(tmp_path, files)
    assert reaches_torch(root, "surefoot.a") == "surefoot.a -> surefoot.b.c -> surefoot.d.e -> surefoot.d -> torch"
    assert reaches_torch(root, "surefoot.late") == ""


def imports_everywhere() -> Iterator[Import]:
    for imports in imports_of(SOURCE).values():
        yield from imports


def test_the_search_sees_the_tree() -> None:
    assert len(list(imports_everywhere())) > 100
    assert any(each.in_function for each in imports_everywhere()) and any(each.is_own for each in imports_everywhere())
