"""What a recipe may say, as pydantic models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    InstanceOf,
    Tag,
    field_validator,
    model_validator,
)

from optimplug.errors import nearest
from optimplug.recipe.text.depth_range import Depths
from optimplug.recipe.text.durations import Duration
from optimplug.recipe.text.rule_id import RuleId

__all__ = [
    "FORMS",
    "HAVE_FORMS",
    "FallbackSpec",
    "FreezeSpec",
    "LayerDecay",
    "Match",
    "MisspeltError",
    "OptimizerSpec",
    "PartError",
    "PhaseSpec",
    "Policy",
    "RecipeSpec",
    "ResumeSpec",
    "RuleOptimizerSpec",
    "RuleSpec",
    "ScheduleSpec",
    "rewarm_duration",
]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Words = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
"""One string, or a list of which any may apply."""


class _Spec(BaseModel):
    # strict: "1e-3" in quotes is a text, and so a mistake. frozen: what was checked stays so.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Match(_Spec):
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


class FallbackSpec(_Spec):
    """An optimizer and its hyperparameters; those not given keep the class's defaults."""

    # Which others there may be depends on the class: values.py checks them.
    model_config = ConfigDict(extra="allow")

    name: str = Field(description="a class of optimplug.optim, or 'package.module.Class'")


def _as_optimizer(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Fallback = Annotated[FallbackSpec, BeforeValidator(_as_optimizer)]
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


class LayerDecay(_Spec):
    """How the rate falls from layer to layer."""

    rate: float = Field(gt=0, le=1, description="lr x this ^ (distance from the top)")
    min: float = Field(0.0, ge=0, le=1, description="the smallest factor on lr")

    def __str__(self) -> str:
        return f"{self.rate}, at least {self.min}" if self.min else f"{self.rate}"


FORMS = ("<value>", "<mapping>")
HAVE_FORMS = ("layer_decay", "freeze", "resume")
"""The keys whose value may be of either form; the errors told are of the one that was meant."""


# Without it, pydantic would try both forms and report what is wrong with each.
def _form(value: Any) -> str:
    return FORMS[isinstance(value, dict | BaseModel)]


class FreezeSpec(_Spec):
    """For how long a parameter stays as it is."""

    until: InstanceOf[Duration] = Field(description="how long, from the start of the run")

    @field_validator("until", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Duration:
        return Duration.parse(value)


class RuleSpec(_Spec):
    """Settings for the parameters that match; every other key is a hyperparameter."""

    model_config = ConfigDict(extra="allow")

    match: Match | None = Field(None, description="left out: every parameter")
    layer_decay: (
        Annotated[
            Annotated[float, Field(gt=0, le=1), Tag(FORMS[0])]
            | Annotated[LayerDecay, Tag(FORMS[1])],
            Discriminator(_form),
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
            Discriminator(_form),
        ]
        | None
    ) = Field(None, description="leave the parameter as it is")
    optimizer: Annotated[RuleOptimizerSpec, BeforeValidator(_as_optimizer)] | None = Field(
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


class PartError(ValueError):
    """Something is wrong with a part of what was looked at."""

    def __init__(self, message: str, *part: int | str) -> None:
        super().__init__(message)
        self.part = part


class MisspeltError(PartError):
    """A key was taken for an argument, but is meant for another."""

    def __init__(self, key: str, meant: str) -> None:
        super().__init__(f"unknown key; did you mean {meant!r}?", key)


class PhaseSpec(_Spec):
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


Policy = Literal["exact", "adapt", "weights"]
"""What a run that goes on from a checkpoint may have otherwise."""


def rewarm_duration(value: object) -> Duration:
    """Read for how long rates climb.

    Raises:
        ValueError: it is no duration, or has no length of its own.
    """
    found = Duration.parse(value)
    if found.unit == "rest":
        raise ValueError("must be a length of its own, '2%' or '100 steps' say (got 'rest')")
    return found


class ResumeSpec(_Spec):
    """How a run goes on from a checkpoint."""

    policy: Policy = Field(description="what may be otherwise than in the checkpoint")
    rewarm: InstanceOf[Duration] | None = Field(
        None, description="under adapt: how long a rate climbs from what it was to what it is now"
    )

    @field_validator("rewarm", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Duration:
        return rewarm_duration(value)

    @model_validator(mode="after")
    def _climbs_under_adapt(self) -> ResumeSpec:
        if self.rewarm is not None and self.policy != "adapt":
            raise ValueError(
                "rewarm is for 'policy: adapt', under which rates may be other ones than in the "
                f"checkpoint (got 'policy: {self.policy}')"
            )
        return self


class RecipeSpec(_Spec):
    """A whole recipe."""

    optimizer: OptimizerSpec
    groups: list[RuleSpec] = []
    layers: Words | None = Field(
        None, description="globs on the modules that are the layers, bottom to top"
    )
    schedule: Phases = []
    resume: Annotated[
        Annotated[Policy, Tag(FORMS[0])] | Annotated[ResumeSpec, Tag(FORMS[1])],
        Discriminator(_form),
    ] = Field(
        "exact",
        description="what a run that goes on from a checkpoint may have otherwise; or that as "
        "policy, and rewarm",
    )

    @property
    def resuming(self) -> ResumeSpec:
        """How a run goes on, in its long form."""
        given = self.resume
        if isinstance(given, ResumeSpec):
            return given
        return ResumeSpec.model_validate({"policy": given})

    def schedules(self) -> Iterator[tuple[RuleId | None, str, list[PhaseSpec]]]:
        """Walk the recipe's schedule and those of its rules, each with its rule and its path."""
        yield None, "schedule", self.schedule
        for i, rule in enumerate(self.groups):
            if rule.schedule is not None:
                yield RuleId(i), f"{RuleId(i).path}.schedule", rule.schedule

    def freezes(self) -> Iterator[tuple[RuleId, Duration]]:
        """Walk the rules that freeze parameters for a time."""
        for i, rule in enumerate(self.groups):
            if isinstance(rule.freeze, FreezeSpec):
                yield RuleId(i), rule.freeze.until


class ScheduleSpec(_Spec):
    """A schedule without the rest of a recipe."""

    schedule: Phases
