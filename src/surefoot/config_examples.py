"""The documented example of each verb: every setting that it reads, with its default and its meaning, written from the schema.

`make configs` writes them into configs/; a test holds that the files there are these. The demo's example is its default preset.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from surefoot.config import Config
from surefoot.config_file import dump_config, load_config

# What no default can know: whose data, which model.
OWN: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "sft": {"data": {"train": "sentences.jsonl"}},
    "pairs": {"data": {"prompts": "prompts.jsonl"}, "model": {"name": "runs/sft/final"}},
    "reward": {"data": {"train": "preferences.jsonl"}, "model": {"name": "runs/sft/final"}},
    "ppo": {
        "data": {"prompts": "prompts.jsonl"},
        "model": {"name": "runs/sft/final"},
        "reward_source": {"source": "runs/reward/final"},
    },
    "evaluate": {
        "data": {"eval_prompts": "held-out-prompts.jsonl"},
        "model": {"name": "runs/ppo/final"},
        "evaluate": {"judges": ("vader",), "against": "runs/sft/final"},
    },
    "rounds": {
        "data": {"prompts": "prompts.jsonl", "eval_prompts": "held-out-prompts.jsonl"},
        "model": {"name": "runs/sft/final"},
        "evaluate": {"judges": ("vader",)},
    },
    "compare": {"data": {"eval_prompts": "held-out-prompts.jsonl"}, "evaluate": {"judges": ("vader",)}},
    "overoptimize": {
        "data": {"train": "preferences.jsonl", "prompts": "prompts.jsonl", "eval_prompts": "held-out-prompts.jsonl"},
        "model": {"name": "runs/sft/final"},
        "evaluate": {"judges": ("vader",)},
    },
    "control": {"control": {"env": "CartPole-v1"}},
}

ABOUT = {
    "sft": "Supervised fine-tuning. data.train holds {prompt, completion}, {messages} or {text}, one a line.",
    "pairs": "Two or more answers to each prompt, into a preference store. data.prompts holds {prompt}, one a line.",
    "reward": "A reward model. data.train holds {prompt, chosen, rejected[, margin]}; or name a store in reward.store.",
    "ppo": "PPO. data.prompts holds {prompt}, one a line; reward_source.source is a reward model's folder or module:function.",
    "rounds": "Rounds of answers, votes, reward model and PPO. People vote with surefoot label; docs/rounds.md has the loop.",
    "compare": "Two models' answers to the same held-out prompts, by named judges or, with --people, by people.",
    "overoptimize": "How far a reward can be optimised before judges fall; the last one named decides. docs/overoptimization.md.",
    "control": "PPO in a Gymnasium environment; the defaults are Stable-Baselines3's. docs/control.md has recipes.",
    "evaluate": "A model against another on held-out prompts, by judges that were never trained on.",
}


def example(verb: str) -> str:
    """The text of configs/VERB.yaml: comments, then every setting that `verb` reads."""
    own = ", ".join(f"{section}.{key}" for section, settings in OWN[verb].items() for key in settings)
    words = " A B" if verb == "compare" else ""
    head = [
        f"# surefoot {verb}{words} configs/{verb}.yaml --out runs/{verb}",
        f"# {ABOUT[verb]}",
        f"# To be set by you: {own}. Everything else stands at its default and may be left out.",
        "",
    ]
    return "\n".join(head) + dump_config(settled(verb), verb=verb, comments=True)


def settled(verb: str) -> Config:
    """The defaults of `verb`, its preset's where it has one, and what is the user's own."""
    own = [f"--{section}.{key}={json.dumps(value)}" for section, keys in OWN[verb].items() for key, value in keys.items()]
    return load_config(None, own, verb=verb, preset="default" if verb == "control" else None)


def write_examples(folder: Path) -> None:
    """Writes configs/VERB.yaml for every verb that has an example."""
    for verb in OWN:
        (folder / f"{verb}.yaml").write_text(example(verb), encoding="utf-8")


if __name__ == "__main__":
    write_examples(Path(sys.argv[1]))
