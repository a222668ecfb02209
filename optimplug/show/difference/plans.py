"""Two plans for one model: what they do otherwise, to which parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from optimplug.recipe.parameters.explain import plain
from optimplug.recipe.parameters.groups import Group
from optimplug.recipe.plan import Plan
from optimplug.recipe.resolve import settable_per_group
from optimplug.recipe.schedule.curves import Curve

__all__ = ["Change", "GroupDifference", "PlanDifference", "Side"]

_POINTS = 400  # of a run, at which curves are compared; the starts of phases are added


class Change(NamedTuple):
    """One thing that is otherwise; None on the side that has no such thing."""

    what: str
    before: Any
    after: Any


class Side(NamedTuple):
    """Parameters under one of the two recipes."""

    plan: Plan
    group: Group | None
    """None where the recipe freezes them for the whole run."""

    @property
    def name(self) -> str:
        """The group's name."""
        return self.group.name if self.group else "frozen"

    def rates(self, steps: Sequence[int]) -> list[float]:
        """Return the rates at these steps; what is frozen has none."""
        return [self.plan.lr(self.group, t) for t in steps] if self.group else []


class GroupDifference(NamedTuple):
    """The parameters that share a group in both plans, and what is otherwise for them."""

    name: str
    """That of their group; of both, where the two have other names."""
    members: tuple[str, ...]
    parameters: int
    before: Side
    after: Side
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class PlanDifference:
    """What two plans for the same model do otherwise; :meth:`to_dict` gives it to a program.

    Args:
        first: the plan of the first recipe.
        second: that of the second, for the same model and horizon.
        whole: what the recipes themselves have otherwise for the whole run, such as ``resume``.
    """

    first: Plan
    second: Plan
    whole: tuple[Change, ...] = ()

    @cached_property
    def of_all(self) -> tuple[Change, ...]:
        """What is otherwise for all groups together: clipping, and how the optimizer runs."""
        before, after = (
            {key: v for key, v in hyper.items() if key not in settable_per_group(hyper)}
            for hyper in (self.first.defaults, self.second.defaults)
        )
        return (*_differing(before, after), *self.whole)

    @cached_property
    def groups(self) -> tuple[GroupDifference, ...]:
        """The parameters for which anything is otherwise, in the order of the first plan."""
        return tuple(each for each in self._all_groups() if each.changes)

    @property
    def same(self) -> bool:
        """Whether both do the same to this model."""
        return not self.of_all and not self.groups

    @property
    def summary(self) -> str:
        """How much of the model it is that differs, in a line."""
        if self.same:
            return "for this model both mean the same"
        of = sum(len(each.members) for each in self.groups)
        tensors = len(_members(self.first))
        return f"{of} of {tensors} tensors have other rates, settings or freezing"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, such as JSON has."""
        return {
            "all": [_change_dict(change) for change in self.of_all],
            "groups": [
                {
                    "name": each.name,
                    "tensors": len(each.members),
                    "parameters": each.parameters,
                    "members": list(each.members),
                    "changes": [_change_dict(change) for change in each.changes],
                }
                for each in self.groups
            ],
        }

    def _all_groups(self) -> Iterator[GroupDifference]:
        sides = [_sides(self.first), _sides(self.second)]
        found: dict[tuple[str | None, str | None], list[str]] = {}
        for name in sides[0]:
            before, after = (side[name].group for side in sides)
            key = (before.name if before else None, after.name if after else None)
            found.setdefault(key, []).append(name)
        sizes = {n: m.parameter.numel() for n, m in _members(self.first).items()}
        for names in found.values():
            here, there = (side[names[0]] for side in sides)
            yield GroupDifference(
                name=here.name if here.name == there.name else f"{here.name} / {there.name}",
                members=tuple(names),
                parameters=sum(sizes[name] for name in names),
                before=here,
                after=there,
                changes=tuple(self._changes(here, there)),
            )

    @cached_property
    def steps(self) -> list[int]:
        """The steps at which curves are compared."""
        return sorted({*self.first.sample(_POINTS), *self.second.sample(_POINTS)})

    def _changes(self, before: Side, after: Side) -> Iterator[Change]:
        if before.group is None or after.group is None:
            if before.group is not after.group:
                yield Change("trained", before.group is not None, after.group is not None)
            return
        yield from _differing(_settings(before), _settings(after))
        yield from self._curve_changes(before, after)

    def _curve_changes(self, before: Side, after: Side) -> Iterator[Change]:
        old, new = before.rates(self.steps), after.rates(self.steps)
        own = max(*old, *new)  # what the rates are held against
        of_rate = [
            Change(f"lr {when}", pick(old), pick(new))
            for when, pick in (("start", _first), ("peak", max), ("end", _last))
            if not _close(pick(old), pick(new), own)
        ]
        yield from of_rate
        i = max(range(len(old)), key=lambda i: abs(old[i] - new[i]))
        if not of_rate and not _close(old[i], new[i], own):
            yield Change(f"lr at step {self.steps[i]:,}", old[i], new[i])
        curves = [_curves(side) for side in (before, after)]
        for of in dict.fromkeys([*curves[0], *curves[1]]):
            texts = [str(each[of]) if of in each else "constant" for each in curves]
            # The rate is told above, unless validations decide it: then only the text knows.
            unknown = any(_follows(each[of]) for each in curves if of in each)
            if texts[0] != texts[1] and (unknown or (of != "lr" and self._differ(of, *curves))):
                yield Change(f"schedule of {of}", *texts)

    def _differ(self, of: str, before: Mapping[str, Curve], after: Mapping[str, Curve]) -> bool:
        """Tell whether two curves of a hyperparameter have other factors at any step."""
        none = Curve(())
        old, new = before.get(of, none), after.get(of, none)
        return not all(_close(old(t), new(t), 1.0) for t in self.steps)


def _close(first: float, second: float, own: float) -> bool:
    """Tell whether two values are the same but for rounding, which depends on how one is written.

    Args:
        first: one of them.
        second: the other.
        own: the largest that such values are.
    """
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-9 * own)


def _first(values: Sequence[float]) -> float:
    return values[0]


def _last(values: Sequence[float]) -> float:
    return values[-1]


def _members(plan: Plan) -> Mapping[str, Any]:
    return {each.names[0]: each for each in plan.grouping.parameters.values()}


def _sides(plan: Plan) -> dict[str, Side]:
    """Return for each parameter of the model, by its first name, where a plan has it."""
    groups = {name: group for group in plan.groups for name in group.parameters}
    return {name: Side(plan, groups.get(name)) for name in _members(plan)}


def _settings(side: Side) -> dict[str, Any]:
    """Return all that holds for a group the whole run through, but for its rate."""
    group = side.group
    assert group is not None
    hyper = {**group.optimizer.hyperparameters, **group.settings}
    settings = {key: hyper[key] for key in settable_per_group(hyper) if key != "lr"}
    until = side.plan.run_schedule.frozen_until[group.freeze] if group.freeze else None
    return {"optimizer": group.optimizer.name, **plain(settings), "frozen until step": until}


def _curves(side: Side) -> Mapping[str, Curve]:
    assert side.group is not None
    return side.plan.run_schedule.curves_of(side.group.schedule)


def _follows(curve: Curve) -> bool:
    return any(phase.follows_metrics for phase in curve.phases)


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if old != new:
            yield Change(key, old, new)


def _change_dict(change: Change) -> dict[str, Any]:
    return {"what": change.what, "before": plain(change.before), "after": plain(change.after)}
