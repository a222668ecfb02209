"""Match: which parameters a rule is for."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from optimplug.recipe.text.depth_range import Depths
from optimplug.recipe.text.schema.spec import Spec, Words

__all__ = ["Match"]


class Match(Spec):
    """Which parameters a rule is for: those for which every given condition holds.

    A string or a list of strings stands for ``name``. A depth is 0 for what comes before the
    layers, 1 to n for the layers, n + 1 for what comes after them; below 0 it counts from the top:
    -1 is the head, -2 the last layer (in a model without a head, -1 is the last layer). It is given
    alone, as a range ("0-3", ">=6", "<=-2"; both ends are included), or as a list of these.
    """

    name: Words | None = Field(None, description="glob on the parameter's full name")
    regex: str | None = Field(None, description="regular expression found in the full name")
    type: Words | None = Field(None, description="module class, or a family: norm, linear, ...")
    ndim: int | None = Field(None, ge=0, description="number of dimensions of the parameter")
    depth: Depths | None = Field(None, description="3, -1 (the top), '0-3', '>=6', or a list")
    any_: list[Match] | None = Field(None, alias="any", min_length=1)
    all_: list[Match] | None = Field(None, alias="all", min_length=1)
    not_: Match | None = Field(None, alias="not")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str | list) else value

    @model_validator(mode="after")
    def _some_condition(self) -> Match:
        # What was written, not what it came to: `type:` without a value is no missing condition,
        # but a mistake, and would match everything.
        if not self.model_fields_set:
            raise ValueError("must give at least one condition; for all parameters leave it out")
        for name, field in type(self).model_fields.items():
            if name in self.model_fields_set and getattr(self, name) in (None, ""):
                raise ValueError(f"{field.alias or name} must not be empty")
        return self

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:  # here, where the key is known, and not when it is used on a model
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return value

    def __str__(self) -> str:
        given = self.model_dump(exclude_unset=True, by_alias=True)
        listed = ("name", "type", "depth")
        words = {k: ", ".join(map(repr, getattr(self, k))) for k in given if k in listed}
        if list(given) == ["name"]:
            return words["name"]
        return ", ".join(f"{key}: {words.get(key, value)}" for key, value in given.items())
