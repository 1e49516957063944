"""The model card beside every exported model: what it is, what it was made from, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from surefoot.config import Config

LOADERS = {
    "sft": "AutoModelForCausalLM",
    "ppo": "AutoModelForCausalLM",
    "reward": "AutoModelForSequenceClassification",
}
SUMMARIES = {
    "sft": "A language model after supervised fine-tuning.",
    "ppo": "A language model after PPO against a reward, tethered to its SFT model by a KL penalty.",
    "reward": "A reward model: one raw score an answer. `reward.json` holds the mean and deviation that turn it into units.",
}


def write_card(folder: Path, stage: str, cfg: Config, base: str, figures: Mapping[str, object]) -> None:
    """Writes README.md into `folder`. `figures` are shown as they are."""
    shown = json.dumps(dict(figures), indent=2, default=str)
    text = f"""---
library_name: transformers
tags: [surefoot, {stage}]
---
# {SUMMARIES[stage]}

Trained by Surefoot from `{Path(base).name}`, seed {cfg.seed}. The run folder's `config.yaml` holds every setting.

```python
from transformers import {LOADERS[stage]}, AutoTokenizer
model = {LOADERS[stage]}.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```

Held-out figures at the end of training:

```json
{shown}
```
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_control_card(folder: Path, cfg: Config, figures: Mapping[str, object]) -> None:
    """Writes README.md beside an agent."""
    shown = json.dumps(dict(figures), indent=2, default=str)
    text = f"""---
library_name: surefoot
tags: [surefoot, reinforcement-learning, ppo]
---
# An agent for {cfg.control.env}

Trained by Surefoot with PPO, objective `{cfg.ppo.objective}`, seed {cfg.seed}. `config.yaml` holds every setting.

```python
import surefoot
run = surefoot.ControlRun.load(".")
action, _ = run.predict(observation, deterministic=True)
```

Figures at the end of training:

```json
{shown}
```
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
