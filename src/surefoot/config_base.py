"""What every section of the configuration is made of: strict, frozen, numbers finite."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator
from pydantic import NonNegativeFloat as ZeroOrMore
from pydantic import NonNegativeInt as ZeroOrMoreInt

Share = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Rule = Literal["fixed", "exponential", "doubling", "proportional"]
Scheduler = Literal["constant", "linear", "cosine"]


class Section(BaseModel):
    """A part of the configuration. Frozen; unknown keys are refused; numbers must be finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def refuse_without_effect(self, names: tuple[str, ...], reason: str) -> None:
        """Raises ValueError when one of `names` was set although `reason` makes it do nothing."""
        for name in names:
            if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} = {getattr(self, name)!r} has no effect: {reason}")


class OptimizerConfig(Section):
    learning_rate: PositiveFloat = 3e-4
    lr_scheduler: Scheduler = "linear"
    lr_min_share: UnitInterval = Field(0.0, description="learning rate at the planned end, as a share of learning_rate")
    warmup_steps: ZeroOrMoreInt = 0
    weight_decay: ZeroOrMore = 0.0
    max_grad_norm: PositiveFloat | None = 1.0

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.lr_scheduler == "constant":
            self.refuse_without_effect(("lr_min_share",), 'lr_scheduler = "constant" never moves')
        return self
