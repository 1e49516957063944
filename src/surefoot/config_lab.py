"""The section `overoptimize`: a study of how far a proxy reward can be optimised before judges that never entered it fall."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from surefoot.config_base import Section

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
VARIED = ("label_noise", "num_labels", "stop_kl")  # settings of this section that a variant may change


class OveroptimizeConfig(Section):
    variants: tuple[str, ...] = Field(
        ("untethered ppo.kl_coef=0", "tethered"),
        description='each "NAME SETTING=VALUE ...": what it changes of ppo, reward, reward_source, and of the last three below',
    )
    num_seeds: PositiveInt = Field(1, description="seeds from seed on, each with SFT and reward models of its own")
    models: str | None = Field(
        None,
        description="folder with sft/final and reward/final, as a demo leaves it, taken in place of new ones; the reward model "
        "where it was trained with the settings of `reward`; {seed} in it stands for the seed",
    )
    join: tuple[str, ...] = Field(
        (), description="finished run folders with other seeds or variants of a study: nothing is trained, they are put together"
    )
    eval_every: PositiveInt = Field(2, description="updates between two looks at the held-out prompts; the last update is one")
    num_prompts: Annotated[int, Field(ge=2)] = Field(64, description="held-out prompts, one answer to each at a look")
    best_of: Annotated[int, Field(ge=4)] = Field(
        64, description="answers of the SFT model to each held-out prompt, the pool of best-of-n"
    )
    resamples: Annotated[int, Field(ge=100)] = Field(1_000, description="bootstrap draws of prompts behind each interval")
    label_noise: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="share of preferences that are turned round")
    num_labels: PositiveInt | None = Field(None, description="preferences that a reward model learns from; default: all")
    stop_kl: PositiveFloat | None = Field(
        None, description="end PPO at the first look at which the KL to the SFT model has passed this, nats a sequence"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [name for name, _ in self.named_variants]
        if not names:
            raise ValueError(
                'variants = [] leaves nothing to compare. Name at least one, for example "untethered ppo.kl_coef=0".'
            )
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"variants: {name!r} is no name for a variant. Use up to 40 of a-z 0-9 - and _, and its settings after it."
                )
            if names.count(name) > 1:
                raise ValueError(f"variants: {name!r} stands twice. Give each variant a name of its own.")
        if self.join:
            unread = ("variants", "num_seeds", "models", "eval_every", "num_prompts", "best_of", *VARIED)
            self.refuse_without_effect(unread, "join trains nothing; what it names was measured already")
        if self.num_seeds > 1 and self.models is not None and "{seed}" not in self.models:
            raise ValueError(
                f"models = {self.models!r} names one folder for {self.num_seeds} seeds. Write {{seed}} where the seed stands."
            )
        return self

    @property
    def named_variants(self) -> list[tuple[str, tuple[str, ...]]]:
        """(name, words SETTING=VALUE) of each variant."""
        return [(words[0], tuple(words[1:])) for words in (variant.split() or [""] for variant in self.variants)]
