"""From YAML and dotted overrides to a `Config`, and back. A refusal is one line: where, which setting, its value, what is right.

Three layers, later ones win: a preset of the verb, the user's file, the command line (`--ppo.cliprange 0.1` or
`--ppo.cliprange=0.1`). A name twice within a layer is refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from surefoot.config import UNREAD_IN_CONTROL, Config, RewardSourceConfig
from surefoot.config_names import allowed, fields, item_type, kinds, listing, members, nearest, sections, shown
from surefoot.config_yaml import Setting, parse_value, read_settings, settings_of
from surefoot.errors import ConfigError

COMMAND_LINE = "command line"

# Which sections a verb reads; `seed` and `threads` are read by all. A setting of another section has no effect and is refused.
VERB_SECTIONS = {
    "sft": ("model", "data", "sft"),
    "pairs": ("model", "data", "pairs", "rollout", "reward_source"),
    "reward": ("model", "data", "reward"),
    "ppo": ("model", "data", "rollout", "ppo", "reward_source"),
    "evaluate": ("model", "data", "rollout", "evaluate", "reward_source"),
    "chat": ("model", "rollout"),
    "demo": ("model", "sft", "reward", "reward_source", "rollout", "ppo", "evaluate"),  # brings its own data
    "rounds": ("model", "data", "sft", "pairs", "reward", "rollout", "ppo", "evaluate", "reward_source", "rounds"),
    "compare": ("model", "data", "rollout", "evaluate"),
    "overoptimize": ("model", "data", "sft", "reward", "reward_source", "rollout", "ppo", "evaluate", "overoptimize"),
    "control": ("control", "ppo"),
}

# Of the section `data` a verb reads these settings alone.
VERB_DATA = {
    "sft": ("train", "validation", "validation_share"),
    "pairs": ("prompts", "long_prompts"),
    "reward": ("train", "validation", "validation_share"),
    "ppo": ("prompts", "long_prompts"),
    "evaluate": ("eval_prompts", "long_prompts"),
    "rounds": ("prompts", "eval_prompts", "long_prompts", "validation", "validation_share"),
    "compare": ("eval_prompts", "long_prompts"),
    "overoptimize": ("train", "validation", "validation_share", "prompts", "eval_prompts", "long_prompts"),
}

# Settings of a section that a verb reads, which it does not read, and why.
_OF_ROUNDS = "each round works on what the one before it made"
_TWO_WORDS = "the two models are the words after compare"
VERB_UNREAD = {
    "control": {f"ppo.{name}": reason for name, reason in UNREAD_IN_CONTROL.items()},
    "chat": {"report_to": "a talk records no metrics"},
    "demo": {
        **{
            f"reward_source.{name}": "the demo's own reward model pays"
            for name in RewardSourceConfig.model_fields
            if name not in ("ensemble", "ensemble_k", "batch_size")
        },
        "reward.store": "the demo's own votes are learnt",
        "evaluate.against": "the policy is compared with the demo's SFT model",
        "evaluate.judges": "the demo brings judges that no part of it is trained on",
    },
    "rounds": {
        "pairs.models": "the policy of the last round answers",
        "pairs.annotator": "rounds.annotator says who votes",
        "pairs.store": "the votes of all rounds stand in preferences.db of the run folder",
        "pairs.max_prompts": "rounds.prompts_per_round says how many prompts are answered",
        **dict.fromkeys(("reward.store", "ppo.start", "evaluate.against"), _OF_ROUNDS),
        **dict.fromkeys(("reward_source.source", "reward_source.sources", "reward_source.weights"), _OF_ROUNDS),
    },
    "compare": {
        **dict.fromkeys(("model.name", "evaluate.against"), _TWO_WORDS),
        "evaluate.best_of": "no reward tells the best of n answers",
    },
    "overoptimize": {
        "evaluate.num_prompts": "overoptimize.num_prompts says how many",
        "evaluate.best_of": "overoptimize.best_of says how many answers",
        **dict.fromkeys(("evaluate.against", "ppo.start"), "every variant begins from the SFT model"),
    },
}

PRESETS = {
    "demo": {"default": "demo.yaml", "tiny": "demo-tiny.yaml"},
    "rounds": {"default": "rounds.yaml", "tiny": "rounds-tiny.yaml"},
    "overoptimize": {"default": "overoptimize.yaml", "tiny": "overoptimize-tiny.yaml"},
    "control": {"default": "control.yaml"},
}


def load_config(
    path: Path | None, overrides: Sequence[str], *, verb: str, preset: str | None = None, options: Sequence[str] = ()
) -> Config:
    """The configuration of one run of `verb`. Settings that nobody wrote keep the schema's defaults.

    `options` are names of command-line options that are no settings; they only help to guess what a misspelt one meant.

    Raises: ConfigError, one line for each problem that was found.
    """
    layers = []
    if preset is not None:
        layers.append(_preset(verb, preset))
    if path is not None:
        layers.append(read_settings(path))
    layers.append(_overrides(overrides))
    _refuse_unknown([setting for layer in layers for setting in layer], verb, options)
    settings = {setting.path: setting for layer in layers for setting in layer}
    _refuse_unread(list(settings.values()), verb)
    cfg = _validate(settings)
    if verb in ("demo", "rounds") and cfg.reward.ensemble == 1 and cfg.reward_source.ensemble != "mean":
        raise ConfigError(
            f"reward_source.ensemble = {cfg.reward_source.ensemble} has no effect on one reward model. Set reward.ensemble = 4, "
            "or reward_source.ensemble = mean."
        )
    return cfg


def changed(cfg: Config, words: Sequence[str], *, verb: str, where: str) -> Config:
    """`cfg` with settings written over it, each "ppo.kl_coef=0"; checked as if all had been written together.

    Raises: ConfigError, as `load_config` does; `where` says in it where the words stand.
    """
    if loose := next((word for word in words if "=" not in word), None):
        raise ConfigError(f"{where}: {loose!r} is no setting. Write for example ppo.kl_coef=0, without spaces.")
    over = _overrides([f"--{word}" for word in words], where)
    _refuse_unknown(over, verb, ())
    _refuse_unread(over, verb)
    base = settings_of(dump_config(cfg, verb=verb), where)
    return _validate({setting.path: setting for setting in (*base, *over)})


def dump_config(cfg: Config, *, verb: str | None = None, comments: bool = False) -> str:
    """YAML with every setting; reading it gives an equal Config. `verb`: what it reads alone; `comments` adds meanings."""
    known = sections()
    only, unread = (known, {}) if verb is None else (VERB_SECTIONS[verb], VERB_UNREAD.get(verb, {}))
    lines: list[str] = []
    for name, info in Config.model_fields.items():
        value = getattr(cfg, name)
        if name not in known:
            lines.append(_line(name, value, info.description if comments else None))
        elif name in only:
            lines += ["", f"{name}:"] if comments else [f"{name}:"]
            lines += [
                "  " + _line(key, getattr(value, key), field.description if comments else None)
                for key, field in known[name].model_fields.items()
                if f"{name}.{key}" not in unread
            ]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any, comment: str | None) -> str:
    return f"{key}: {_scalar(value)}" + (f"  # {comment}" if comment else "")


def _scalar(value: Any) -> str:
    """One value on one line, such that YAML 1.1 and 1.2 readers both read it back."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float():
            # repr writes 1e-05, which YAML 1.1 takes for text
            return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
        case int():
            return str(value)
        case tuple() | list():
            return f"[{', '.join(_scalar(item) for item in value)}]"
        case str() if _is_plain(value):
            return value
        case _:
            return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**9).strip()


def _is_plain(text: str) -> bool:
    """Whether text needs no quotes: a word or a path, and none that YAML 1.1 or 1.2 takes for something else."""
    word = re.fullmatch(r"[A-Za-z_][\w./:-]*[\w/]", text, re.ASCII) is not None
    return word and parse_value(text, "") == text == yaml.safe_load(text)


def _preset(verb: str, name: str) -> list[Setting]:
    known = PRESETS.get(verb, {})
    if name not in known:
        what = f"Presets: {listing(list(known))}." if known else f"surefoot {verb} has no presets."
        raise ConfigError(f"no preset {name!r} for surefoot {verb}. {what}")
    text = (files("surefoot") / "presets" / known[name]).read_text(encoding="utf-8")
    return settings_of(text, f"preset {name}")


def _overrides(tokens: Sequence[str], where: str = COMMAND_LINE) -> list[Setting]:
    """`--a.b VALUE`, `--a.b=VALUE` or `a.b=VALUE`, as settings."""
    found: dict[tuple[str, ...], Setting] = {}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        name, equals, text = token.removeprefix("--").partition("=")
        if not equals:
            if not token.startswith("--"):
                raise ConfigError(f"{where}: {token!r} is no setting. Write for example --ppo.cliprange 0.1.")
            if rest and not rest[0].startswith("--"):
                text = rest.pop(0)
            elif name in fields():
                raise ConfigError(f"{where}: --{name} has no value. Write --{name} VALUE.")
        path = tuple(name.replace("-", "_").split("."))
        if path in found:
            raise ConfigError(f"{where}: {'.'.join(path)} is given twice. Remove one of the two.")
        found[path] = _override(path, text, where)
    return list(found.values())


def _override(path: tuple[str, ...], text: str, where: str) -> Setting:
    """One override. Where the schema asks for text, the words are taken as they stand: `--model.name 7b` needs no quotes."""
    info = fields().get(".".join(path))
    types = kinds(info.annotation) if info is not None else set()
    if types - {type(None)} == {str} and not (type(None) in types and text in ("null", "~", "")):
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
        return Setting(path, parse_value(text, where) if quoted else text, where, text)
    if info is not None and tuple in types and not text.lstrip().startswith("["):
        return Setting(path, [text if kinds(item_type(info.annotation)) == {str} else parse_value(text, where)], where, text)
    return Setting(path, parse_value(text, where), where, text)


def _refuse_unknown(settings: Sequence[Setting], verb: str, options: Sequence[str]) -> None:
    known, homes = fields(), sections()
    problems = []
    for setting in settings:
        dotted = any("." in part for part in setting.path)
        if setting.name in known and not dotted:
            continue
        if setting.name in homes:
            if setting.value is None and setting.where != COMMAND_LINE:
                continue  # `ppo:` with nothing below it sets nothing
            first = next(iter(homes[setting.name].model_fields))
            what = f"{setting.name} is a section, not a setting. Set one of its settings, for example {setting.name}.{first}."
        elif dotted and len(setting.path) == 1:
            home, _, key = setting.name.partition(".")
            what = (
                f"no setting {setting.name!r} at the top level. Write `{home}:` and below it, indented, `{key}: {setting.text}`."
            )
        else:
            flags = [f"--{option}" for option in options]
            flag = difflib.get_close_matches(f"--{setting.name.replace('_', '-')}", flags, n=1, cutoff=0.75)
            guess = f"Did you mean {flag[0]}?" if flag else nearest(setting.name, VERB_SECTIONS[verb])
            what = f"no setting {setting.name}. {guess or f'`surefoot {verb} --dry-run` prints all that there are.'}"
        problems.append(f"{setting.where}: {what}")
    if problems:
        raise ConfigError("\n".join(problems))


def _refuse_unread(settings: Sequence[Setting], verb: str) -> None:
    """Refuses settings that the verb does not read. Values equal to the default pass: a run's own config.yaml names them all."""
    read, unread, known = VERB_SECTIONS[verb], VERB_UNREAD.get(verb, {}), fields()
    problems = []
    for setting in settings:
        home = setting.path[0]
        is_top = len(setting.path) == 1
        is_read = is_top or (home in read and (home != "data" or setting.path[1] in VERB_DATA[verb]))
        if is_read and setting.name not in unread:
            continue
        default = known[setting.name].default
        if setting.value == (list(default) if isinstance(default, tuple) else default):
            continue
        if setting.name in unread:
            what = f"{setting.name} = {shown(setting.value)} has no effect in surefoot {verb}: {unread[setting.name]}."
            problems.append(f"{setting.where}: {what}")
            continue
        if home in read:
            verbs = [other for other, names in VERB_DATA.items() if setting.path[1] in names]
            problems.append(
                f"{setting.where}: {setting.name} = {shown(setting.value)} has no effect: surefoot {verb} reads "
                f"{listing([f'data.{name}' for name in VERB_DATA[verb]], 'and')}. Remove it; it is for surefoot {listing(verbs)}."
            )
            continue
        verbs = [other for other, homes in VERB_SECTIONS.items() if home in homes]
        problems.append(
            f"{setting.where}: {setting.name} = {shown(setting.value)} has no effect: surefoot {verb} reads the sections "
            f"{listing(read, 'and')}. Remove it; {home} is for surefoot {listing(verbs)}."
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _validate(settings: Mapping[tuple[str, ...], Setting]) -> Config:
    known = fields()
    given = [setting for setting in settings.values() if setting.name in known]
    problems = [_refusal(setting) for setting in given if not _has_right_type(setting.value, known[setting.name].annotation)]
    if problems:
        raise ConfigError("\n".join(problems))
    nested: dict[str, Any] = {}
    for setting in given:
        *home, key = setting.path
        level = nested.setdefault(home[0], {}) if home else nested
        level[key] = tuple(setting.value) if isinstance(setting.value, list) else setting.value
    try:
        return Config.model_validate(nested)
    except ValidationError as problem:
        raise ConfigError("\n".join(dict.fromkeys(_sentence(error, settings) for error in problem.errors()))) from None


def _has_right_type(value: Any, annotation: Any) -> bool:
    """Whether the YAML type fits, before pydantic looks at ranges: it would take "3" for 3 and true for 1.0."""
    types = kinds(annotation)
    if isinstance(value, list):
        return tuple in types and all(_has_right_type(item, item_type(annotation)) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return bool(types & {int, float})
    if isinstance(value, float):  # a whole number may be written 1e4
        return float in types or (int in types and value.is_integer())
    return type(value) in types


def _refusal(setting: Setting) -> str:
    """ "run.yaml line 3: ppo.gamma = 2 is not allowed. Allowed: a number of at least 0 and of at most 1."""
    info = fields()[setting.name]
    words = [str(member) for member in members(info.annotation)]
    given = setting.value if isinstance(setting.value, list) else [setting.value]
    odd = [str(value) for value in given if str(value) not in words]
    close = difflib.get_close_matches(odd[0], words, n=1) if words and odd else []
    guess = f" Did you mean {close[0]}?" if close else ""
    return f"{setting.where}: {setting.name} = {shown(setting.value)} is not allowed. Allowed: {allowed(info)}.{guess}"


def _sentence(error: ErrorDetails, settings: Mapping[tuple[str, ...], Setting]) -> str:
    """One pydantic error in one line. A validator of the schema speaks for itself; it is told where its settings were written."""
    path = tuple(str(part) for part in error["loc"][:2])
    path = path if path in settings else path[:1]  # an item of a list at the top level is no setting
    if error["type"] != "value_error":
        return _refusal(settings[path])
    said = str(error["ctx"]["error"]) if "ctx" in error else error["msg"]
    homes = sections()
    keys = homes[path[0]].model_fields if path and path[0] in homes else {}
    named = [(*path, word) if word in keys else tuple(word.split(".")) for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)?", said)]
    where = next((settings[name].where for name in named if name in settings), "")
    starts_with_its_name = re.split(r"[^a-z_]", said, maxsplit=1)[0] in keys
    prefix = "" if not path else f"{path[0]}." if starts_with_its_name else f"{path[0]}: "
    return (f"{where}: " if where else "") + prefix + said
