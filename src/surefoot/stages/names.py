"""What a word on the command line means where a model is wanted."""

from __future__ import annotations

from pathlib import Path

from surefoot.config import Config


def model_of(name: str) -> str:
    """The model folder that `name` means: a run folder's final model, a demo's or the last round's policy, or the name itself."""
    numbered = [(path, path.parts[-3].partition("-")[2]) for path in Path(name).glob("ppo-*/final/config.json")]
    rounds = [path for path, number in sorted(numbered, key=lambda one: one[1].zfill(9)) if number.isdigit()]
    for inside in ("final", "ppo/final", *(str(path.parent.relative_to(name)) for path in rounds[-1:]), "sft/final"):
        if (Path(name) / inside / "config.json").exists():
            return str(Path(name) / inside)
    return name


def between(cfg: Config, a: str, b: str) -> Config:
    """`cfg` with the two models of a comparison."""
    model = cfg.model.model_copy(update={"name": model_of(a)})
    return cfg.model_copy(update={"model": model, "evaluate": cfg.evaluate.model_copy(update={"against": model_of(b)})})
