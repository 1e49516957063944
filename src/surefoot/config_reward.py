"""The sections `reward`, which trains a reward model, and `reward_source`, which says what pays in PPO."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic import NonNegativeFloat as ZeroOrMore
from pydantic import NonNegativeInt as ZeroOrMoreInt

from surefoot.config_base import OptimizerConfig, Section


class RewardConfig(OptimizerConfig):
    learning_rate: PositiveFloat = 1e-3
    method: Literal["head", "adapter", "full"] = Field(
        "head", description="head on frozen states; head and LoRA adapter; every weight"
    )
    layer: PositiveInt | None = Field(None, description="layer the head reads (1 = after the first block); default: the last")
    num_epochs: PositiveInt = 1
    batch_size: PositiveInt = Field(64, description="pairs a step")
    micro_batch_size: PositiveInt = Field(16, description="pairs a forward; changes nothing but memory and speed")
    max_steps: PositiveInt | None = None
    center_coef: ZeroOrMore = Field(0.0, description="pulls the mean of a pair's scores to 0: adds coef * (R_w + R_l)^2 / 4")
    use_margin: bool = True
    normalize: bool = Field(
        True, description="save mean and deviation on training answers; scores leave in units of the deviation"
    )
    store: str | None = Field(None, description="preference store to train on, in place of data.train")
    save_every: PositiveInt = 50
    ensemble: PositiveInt = Field(
        1, description="members: heads on one trunk, or adapters; above 1 their disagreement is recorded"
    )
    ensemble_layers: tuple[PositiveInt, ...] = Field((), description="layers that the members read, in turn; default: layer")
    bootstrap: bool = Field(True, description="each member learns from its own bootstrap of the pairs")

    @model_validator(mode="after")
    def _check_ensemble(self) -> Self:
        if self.ensemble == 1:
            self.refuse_without_effect(("ensemble_layers", "bootstrap"), "ensemble = 1 has one member")
        elif self.method == "full":
            raise ValueError(
                f'ensemble = {self.ensemble} with method = "full": members share a trunk. Use method = "head" or "adapter", or '
                "ensemble = 1."
            )
        elif not self.normalize:
            raise ValueError(
                f"ensemble = {self.ensemble} with normalize = false: the zero of a member's raw scores is its own, so that they "
                "cannot be compared. Leave normalize = true, or set ensemble = 1."
            )
        elif self.layer is not None and self.ensemble_layers:
            raise ValueError(f"layer = {self.layer} has no effect: ensemble_layers names the layers. Set one of the two.")
        elif len(self.ensemble_layers) > self.ensemble:
            raise ValueError(
                f"ensemble_layers = {list(self.ensemble_layers)} are more than the {self.ensemble} members. "
                "Name fewer, or raise ensemble."
            )
        return self


class RewardSourceConfig(Section):
    source: str | None = Field(
        None,
        description="a reward-model folder, module:function, a server's URL, or a check such as regex:PATTERN (docs/rewards.md)",
    )
    sources: tuple[str, ...] = Field((), description="several in place of one: the score is the sum of weight times score")
    weights: tuple[float, ...] = Field((), description="one for each of sources, 0 to record and not to pay; default: 1 each")
    batch_size: PositiveInt = Field(32, description="answers scored at once; changes nothing but memory and speed")
    ensemble: Literal["mean", "min", "mean_minus_std"] = Field("mean", description="how an ensemble's members become one score")
    ensemble_k: ZeroOrMore = Field(1.0, description="k of mean - k std")
    protocol: Literal["openrlhf", "surefoot"] = Field("openrlhf", description="what is said to a server (docs/rewards.md)")
    label_column: str | None = Field(None, description='column of the prompts that OpenRLHF\'s servers get as "labels"')
    timeout: PositiveFloat = Field(
        60.0, description="seconds that a server has for one request, from connecting to its last byte"
    )
    max_retries: ZeroOrMoreInt = Field(8, description="further attempts at a request before the run is paused (exit 75)")
    retry_wait: PositiveFloat = Field(0.5, description="seconds before the first of them; doubled each time, up to 30")

    @property
    def every(self) -> tuple[str, ...]:
        """The sources, one or several."""
        return self.sources or (() if self.source is None else (self.source,))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source is not None and self.sources:
            raise ValueError(f"source = {self.source!r} and sources = {list(self.sources)!r} are both set. Set one of the two.")
        if self.weights and not self.sources:
            raise ValueError(f"weights = {list(self.weights)} has no effect: it weighs sources, and none is set.")
        if self.weights and len(self.weights) != len(self.sources):
            raise ValueError(
                f"weights = {list(self.weights)} are {len(self.weights)} for {len(self.sources)} sources. Give one each."
            )
        if self.weights and not any(self.weights):
            raise ValueError(f"weights = {list(self.weights)} pay for nothing. Give one source at least a weight other than 0.")
        if not any(is_url(source) for source in self.every):
            names = ("protocol", "label_column", "timeout", "max_retries", "retry_wait")
            self.refuse_without_effect(names, "no source is a server's URL (http://... or https://...)")
        if self.ensemble != "mean_minus_std":
            self.refuse_without_effect(("ensemble_k",), f'ensemble = "{self.ensemble}" has no k')
        if self.protocol == "surefoot":
            self.refuse_without_effect(("label_column",), 'protocol = "surefoot" sends every column')
        return self


def is_url(source: str) -> bool:
    """Whether a reward source is a server."""
    return source.lower().startswith(("http://", "https://"))
