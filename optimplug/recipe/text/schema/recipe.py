"""RecipeSpec: a whole recipe, with how it is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, InstanceOf, Tag, field_validator, model_validator

from optimplug.recipe.text.durations import Duration
from optimplug.recipe.text.rule_id import RuleId
from optimplug.recipe.text.schema.optimizers import OptimizerSpec
from optimplug.recipe.text.schema.phases import Phases, PhaseSpec
from optimplug.recipe.text.schema.rules import FreezeSpec, RuleSpec
from optimplug.recipe.text.schema.spec import FORMS, Spec, Words, form

__all__ = ["Policy", "RecipeSpec", "ResumeSpec", "rewarm_duration"]


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


class ResumeSpec(Spec):
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


class RecipeSpec(Spec):
    """A whole recipe."""

    optimizer: OptimizerSpec
    groups: list[RuleSpec] = []  # noqa: RUF012 (pydantic copies it)
    layers: Words | None = Field(
        None, description="globs on the modules that are the layers, bottom to top"
    )
    schedule: Phases = []  # noqa: RUF012 (the same)
    resume: Annotated[
        Annotated[Policy, Tag(FORMS[0])] | Annotated[ResumeSpec, Tag(FORMS[1])],
        Discriminator(form),
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
