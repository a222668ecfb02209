"""By which policy a run goes on from a checkpoint: as it is called, or else as its recipe says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from optimplug.errors import ArgumentError
from optimplug.recipe.text.durations import Duration, Horizon
from optimplug.recipe.text.schema.recipe import Policy, RecipeSpec, rewarm_duration

__all__ = ["Policy", "Resume"]


@dataclass(frozen=True)
class Resume:
    """How a run goes on; what is None is as the recipe says."""

    policy: Policy | None = None
    rewarm: Duration | None = None
    """Over how much of the run a rate climbs from what it was; under ``adapt`` alone."""

    @classmethod
    def read(cls, policy: object, rewarm: object) -> Resume:
        """Read it as arguments give it.

        Raises:
            ArgumentError: there is no such policy, or it is no duration.
        """
        known = next((each for each in get_args(Policy) if each == policy), None)
        if policy is not None and known is None:
            names = ", ".join(get_args(Policy))
            raise ArgumentError(f"resume must be one of {names} (got {policy!r})")
        try:
            found = None if rewarm is None else rewarm_duration(rewarm)
        except ValueError as error:
            raise ArgumentError(f"rewarm: {error}") from None
        return cls(known, found)

    def within(self, spec: RecipeSpec) -> Resume:
        """Return the same, where nothing is left to the recipe.

        Raises:
            ArgumentError: rates are to climb under another policy than ``adapt``.
        """
        own = spec.resuming
        policy = self.policy or own.policy
        if self.rewarm is not None and policy != "adapt":
            raise ArgumentError(
                f"rewarm={str(self.rewarm)!r} is for resume='adapt', under which rates may be "
                f"other ones than in the checkpoint (got resume={policy!r})"
            )
        rewarm = own.rewarm if self.rewarm is None and policy == "adapt" else self.rewarm
        return Resume(policy, rewarm)

    def climbs_for(self, horizon: Horizon | None) -> int:
        """Return over how many updates rates climb; 0 where they do not.

        Raises:
            ArgumentError: the horizon lacks what the duration needs.
        """
        if self.rewarm is None:
            return 0
        try:
            return self.rewarm.steps(horizon or Horizon())
        except ValueError as error:
            raise ArgumentError(f"rewarm: {error}; give it in steps, 'rewarm: 100'") from None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"policy": self.policy, "rewarm": None if self.rewarm is None else str(self.rewarm)}
