"""Surefoot: language models from human preferences with PPO, on one machine. Importing this package imports no torch.

The Python face is exported lazily: a name of `_EXPORTS` is imported from its module when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Config": "surefoot.config",
    "ConfigError": "surefoot.errors",
    "ControlRun": "surefoot.api_control",
    "EvaluateRun": "surefoot.api_evaluate",
    "PPORun": "surefoot.api",
    "RewardRun": "surefoot.api",
    "SFTRun": "surefoot.api",
    "SurefootError": "surefoot.errors",
    "dump_config": "surefoot.config_file",
    "load_config": "surefoot.config_file",
}


def __getattr__(name: str) -> Any:
    # a plain fall-through to some module would be asked for `surefoot.core` too, by every `from surefoot import core`
    if name not in _EXPORTS:
        raise AttributeError(f"module 'surefoot' has no attribute {name!r}. It exports {', '.join(sorted(_EXPORTS))}.")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
