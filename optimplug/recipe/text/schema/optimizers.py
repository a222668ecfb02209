"""The optimizer of a recipe, that of a rule, and the fallback of either."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from optimplug.recipe.text.schema.spec import Spec

__all__ = ["FallbackSpec", "OptimizerSpec", "RuleOptimizerSpec", "as_optimizer"]


class FallbackSpec(Spec):
    """An optimizer and its hyperparameters; those not given keep the class's defaults."""

    # Which others there may be depends on the class: values.py checks them.
    model_config = ConfigDict(extra="allow")

    name: str = Field(description="a class of optimplug.optim, or 'package.module.Class'")


def as_optimizer(value: Any) -> Any:
    """Take a text for the name of an optimizer that has its defaults."""
    return {"name": value} if isinstance(value, str) else value


Fallback = Annotated[FallbackSpec, BeforeValidator(as_optimizer)]
"""An optimizer, or its name alone."""


class RuleOptimizerSpec(FallbackSpec):
    """An optimizer for the parameters of a rule, and one for those that it is not made for."""

    fallback: Fallback | None = Field(
        None, description="the optimizer of all parameters that this one is not made for"
    )

    @model_validator(mode="after")
    def _no_empty_fallback(self) -> RuleOptimizerSpec:
        if "fallback" in self.model_fields_set and self.fallback is None:
            raise ValueError("fallback must not be empty; leave it out")
        return self


class OptimizerSpec(RuleOptimizerSpec):
    """The optimizer and its hyperparameters; those not given keep the class's defaults."""
