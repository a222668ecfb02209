"""The phases of a schedule, and what may stand in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    field_validator,
    model_validator,
)

from optimplug.errors import nearest
from optimplug.recipe.text.durations import Duration
from optimplug.recipe.text.schema.spec import PartError, Spec

__all__ = ["MisspeltError", "PhaseSpec", "Phases", "ScheduleSpec"]


class MisspeltError(PartError):
    """A key was taken for an argument, but is meant for another."""

    def __init__(self, key: str, meant: str) -> None:
        super().__init__(f"unknown key; did you mean {meant!r}?", key)


class PhaseSpec(Spec):
    """One scheduler or preset, or several together, and how long they act.

    Every other key is an argument of the scheduler or the preset.
    """

    model_config = ConfigDict(extra="allow")

    name: str | None = Field(None, description="a class of optimplug.optim.lr_scheduler")
    preset: str | None = Field(
        None, description="a whole schedule by its name: linear, cosine, ..."
    )
    together: list[PhaseSpec] | None = Field(
        None, min_length=2, description="phases that act at once; their factors are multiplied"
    )
    for_: InstanceOf[Duration] | None = Field(
        None, alias="for", description="left out: what the other phases leave"
    )
    from_: Literal["previous", "peak"] | None = Field(
        None, alias="from", description="where it starts: at the rate before it, or at its own"
    )
    warmup: InstanceOf[Duration] | None = Field(None, description="of a preset: rise from 0 first")
    every: Literal["step", "epoch", "validation"] | None = Field(
        None, description="what it counts: steps, unless it follows a metric"
    )
    monitor: str | None = Field(None, min_length=1, description="the metric that a plateau follows")
    of_training: bool | None = Field(
        None, description="of a plateau: true to follow what the training reports, no validations"
    )
    floor: float | None = Field(None, ge=0, le=1, description="lowest lr, as a ratio of its own")
    of: str | None = Field(None, description="the hyperparameter it acts on; left out: lr")

    @field_validator("for_", "warmup", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Duration:
        return Duration.parse(value)

    @model_validator(mode="after")
    def _one_thing(self) -> PhaseSpec:
        given = [key for key in ("name", "preset", "together") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"must give one of name, preset and together (got {given})")
        if not given:
            # Any key may be an argument, so that `nam: LinearLR` is no unknown one for pydantic.
            for key in self.model_extra or {}:
                close = nearest(key, ("name", "preset", "together"))
                if close:
                    raise MisspeltError(key, close)
            raise ValueError("must give a name, a preset or phases together")
        return self

    @model_validator(mode="after")
    def _together_alone(self) -> PhaseSpec:
        if self.together is None:
            return self
        # They act at the same time and on the same hyperparameter, or there were no product.
        shared = {"together", "for_", "from_", "of"}
        wrong = self.model_fields_set - shared | {*(self.model_extra or {})}
        if wrong:
            raise ValueError(f"{min(wrong)} belongs to one of the phases under together")
        for i, part in enumerate(self.together):
            # In the order of the fields, and not of a set, which is another in every process.
            for name in (key for key in type(part).model_fields if key in shared):
                if name in part.model_fields_set:
                    key = type(part).model_fields[name].alias or name
                    raise PartError(
                        "cannot stand in a phase under together; say it once, beside together"
                        if name != "together"
                        else "cannot stand in a phase under together; write its phases there",
                        *("together", i, key),
                    )
        return self


def _as_phases(value: Any) -> Any:
    """Take a preset's name, or a single phase, for a list of one."""
    if isinstance(value, str):
        return [{"preset": value}]
    return [value] if isinstance(value, Mapping) else value


Phases = Annotated[list[PhaseSpec], BeforeValidator(_as_phases)]
"""Phases in sequence, one phase, or a preset's name."""


class ScheduleSpec(Spec):
    """A schedule without the rest of a recipe."""

    schedule: Phases
