"""YAML read as settings: every value keeps the line it stands on, and nothing of YAML that surprises is accepted.

Scalars follow YAML 1.2's core schema, so `1e-5` is a number and `no` is text. Refused, each with its line: duplicate keys, tags,
anchors and aliases, merge keys, several documents, nesting beyond section and setting, files beyond 1 MB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from surefoot.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """One value as written. `path` is ("ppo", "cliprange") or ("seed",); `where` is "run.yaml line 14" or "command line"."""

    path: tuple[str, ...]
    value: Any
    where: str
    text: str = ""  # the scalar as written

    @property
    def name(self) -> str:
        return ".".join(self.path)


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 scalars, without anchors, aliases and tags, and of bounded depth."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML reads it from the class

    def __init__(self, stream: str, source: str) -> None:
        super().__init__(stream)
        self.source = source
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        place = f"{self.source} line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ConfigError(f"{place}: anchors and aliases (& and *) are not allowed. Write the value out.")
        if event.tag is not None:
            raise ConfigError(f"{place}: the tag {event.tag!r} is not allowed. Remove it; no value needs one.")
        if self.depth >= MAX_DEPTH:
            raise ConfigError(f"{place}: nested deeper than {MAX_DEPTH} levels. There are sections and settings, no more.")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_NUMBER = r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    ("float", _NUMBER + r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+0123456789.")),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def read_settings(path: Path) -> list[Setting]:
    """The settings of a YAML file, in its order. An empty file has none.

    Raises: ConfigError for a file that cannot be read, is too large, is no YAML, or holds what the module's docstring refuses.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as problem:
        raise ConfigError(_unreadable(path, problem)) from problem
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            f"{path} is larger than {MAX_BYTES:,} bytes. A configuration has a few kilobytes; is this the right file?"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        byte = raw[problem.start]
        raise ConfigError(f"{path} line {line}: not UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8.") from problem
    return settings_of(text, str(path))


def settings_of(text: str, source: str) -> list[Setting]:
    """The settings of YAML text; `source` names it in messages."""
    root = _compose(text, source)
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag.endswith(":null")):
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{source} line {_line(root)}: {_kind(root)} instead of settings. Write lines such as `seed: 1`.")
    found: list[Setting] = []
    for key, node, where in _entries(root, source, ""):
        if not isinstance(node, yaml.MappingNode):
            found.append(_setting((key,), node, where))
            continue
        for sub, leaf, place in _entries(node, source, f"{key}."):
            if isinstance(leaf, yaml.MappingNode):
                raise ConfigError(f"{place}: {key}.{sub} holds a mapping. Give one value, or a list such as [a, b].")
            found.append(_setting((key, sub), leaf, place))
    return found


def parse_value(text: str, source: str) -> Any:
    """A scalar or a flow list (`[a, b]`) as YAML reads it; null for empty text."""
    node = _compose(text, source)
    if node is None:
        return None
    if isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{source}: {text!r} is a mapping. Give one value, or a list such as [a, b].")
    return _value(node, source)


def _compose(text: str, source: str) -> yaml.Node | None:
    """The node graph of one document. PyYAML's pure parser, since libyaml's cannot be stopped at an anchor."""
    try:
        loader = _StrictLoader(text, source)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as problem:
        line = text.count("\n", 0, problem.position) + 1
        raise ConfigError(f"{source} line {line}: the character {chr(problem.character)!r} is not allowed in YAML.") from problem
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{source} line {line}: not YAML: {problem.problem or problem.context}.") from problem
    except (ValueError, OverflowError) as problem:  # an escape such as "\UFFFFFFFF"
        raise ConfigError(f"{source}: not YAML: {problem}.") from problem


def _entries(mapping: yaml.MappingNode, source: str, prefix: str) -> list[tuple[str, yaml.Node, str]]:
    """(key, value node, where) of a mapping; keys are text and occur once."""
    seen: dict[str, int] = {}
    entries = []
    for key, node in mapping.value:
        where = f"{source} line {_line(key)}"
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{where}: {_kind(key)} is used as a name. Names are words such as seed or ppo.")
        if key.value in seen:
            raise ConfigError(f"{where}: {prefix}{key.value} is set twice, first on line {seen[key.value]}. Remove one.")
        seen[key.value] = _line(key)
        entries.append((key.value, node, where))
    return entries


def _setting(path: tuple[str, ...], node: yaml.Node, where: str) -> Setting:
    return Setting(path, _value(node, where), where, node.value if isinstance(node, yaml.ScalarNode) else "")


def _value(node: yaml.Node, where: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, where) for child in node.value]
    if isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{where}: a mapping stands in a list. Lists hold single values.")
    text: str = node.value
    match node.tag.rsplit(":", 1)[-1]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if len(text) <= 100:  # longer ones are no setting, and int() refuses above 4,300 digits
            return int(text.replace("_", ""))
        case "int" | "float":
            number = text.replace("_", "").lower()
            return float(number.replace(".inf", "inf").replace(".nan", "nan"))
        case _:
            return text


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: yaml.Node) -> str:
    return (
        "a mapping"
        if isinstance(node, yaml.MappingNode)
        else "a list"
        if isinstance(node, yaml.SequenceNode)
        else "a single value"
    )


def _unreadable(path: Path, problem: OSError) -> str:
    if path.is_dir():
        return f"{path} is a folder. Name a YAML file in it."
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        names = ", ".join(near[:5])
        there = f"YAML files in {path.parent}: {names}." if near else "Check the name; settings start with two dashes."
        return f"no file {path}. {there}"
    return f"{path} cannot be read: {problem.strerror}."
