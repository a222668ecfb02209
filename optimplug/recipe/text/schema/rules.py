"""RuleSpec: what a rule sets for the parameters that match."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    InstanceOf,
    Tag,
    field_validator,
    model_validator,
)

from optimplug.recipe.text.durations import Duration
from optimplug.recipe.text.schema.match import Match
from optimplug.recipe.text.schema.optimizers import RuleOptimizerSpec, as_optimizer
from optimplug.recipe.text.schema.phases import Phases
from optimplug.recipe.text.schema.spec import FORMS, Spec, Words, form

__all__ = ["FreezeSpec", "LayerDecay", "RuleSpec"]


class LayerDecay(Spec):
    """How the rate falls from layer to layer."""

    rate: float = Field(gt=0, le=1, description="lr x this ^ (distance from the top)")
    min: float = Field(0.0, ge=0, le=1, description="the smallest factor on lr")

    def __str__(self) -> str:
        return f"{self.rate}, at least {self.min}" if self.min else f"{self.rate}"


class FreezeSpec(Spec):
    """For how long a parameter stays as it is."""

    until: InstanceOf[Duration] = Field(description="how long, from the start of the run")

    @field_validator("until", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Duration:
        return Duration.parse(value)


class RuleSpec(Spec):
    """Settings for the parameters that match; every other key is a hyperparameter."""

    model_config = ConfigDict(extra="allow")

    match: Match | None = Field(None, description="left out: every parameter")
    layer_decay: (
        Annotated[
            Annotated[float, Field(gt=0, le=1), Tag(FORMS[0])]
            | Annotated[LayerDecay, Tag(FORMS[1])],
            Discriminator(form),
        ]
        | None
    ) = Field(None, description="lr x this ^ (distance from the top); or rate and min")
    no_decay: Words | None = Field(
        None, description="weight_decay 0 for these: norm, bias, embedding, or globs"
    )
    lr_scale: float | None = Field(None, ge=0, description="lr x this")
    freeze: (
        Annotated[
            Annotated[bool, Tag(FORMS[0])] | Annotated[FreezeSpec, Tag(FORMS[1])],
            Discriminator(form),
        ]
        | None
    ) = Field(None, description="leave the parameter as it is")
    optimizer: Annotated[RuleOptimizerSpec, BeforeValidator(as_optimizer)] | None = Field(
        None, description="another optimizer for these, in the same step"
    )
    schedule: Phases | None = Field(None, description="a schedule of its own, not the recipe's")

    @model_validator(mode="after")
    def _says_something(self) -> RuleSpec:
        # YAML reads `weight_decay:` without a value as null.
        given = {*self.model_fields_set, *(self.model_extra or {})}
        empty = sorted(name for name in given if getattr(self, name) is None)
        if empty:
            raise ValueError(f"{empty[0]} must not be empty; leave it out")
        if given <= {"match"}:
            raise ValueError(
                "must set something: a hyperparameter, lr_scale, layer_decay, no_decay, freeze, "
                "optimizer"
            )
        return self
