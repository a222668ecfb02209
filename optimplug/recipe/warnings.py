"""What a recipe says that will have no effect, or hardly the one that was meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from optimplug.errors import Problem
from optimplug.recipe.parameters.groups import Grouping
from optimplug.recipe.schedule.curves import Curve
from optimplug.recipe.text.durations import Horizon
from optimplug.recipe.text.schema import PhaseSpec

__all__ = ["rule_warnings", "schedule_warnings"]


class _Effect(NamedTuple):
    """What became of one thing that a rule said of one parameter."""

    winner: int
    frozen: bool


def rule_warnings(grouping: Grouping) -> Iterator[Problem]:
    """Find rules, and keys of rules, that set nothing, and groups that will not move.

    A key is without effect where later rules override it for every one of its parameters, or where
    all of these are frozen.
    """
    effects: dict[int, dict[str, list[_Effect]]] = {}
    for name, member in grouping.parameters.items():
        frozen = name in grouping.frozen
        for key, votes in member.votes.items():
            for vote in votes:
                said = effects.setdefault(vote.rule, {}).setdefault(vote.by, [])
                said.append(_Effect(votes[-1].rule, frozen and key != "freeze"))
    for rule, keys in sorted(effects.items()):
        overridden = [key for key in keys if all(e.winner != rule for e in keys[key])]
        idle = [key for key in keys if all(e.frozen for e in keys[key]) and key not in overridden]
        for path, found in _paths(rule, overridden, keys):
            winners = sorted({e.winner for key in found for e in keys[key]})
            by = ", ".join(f"groups[{winner}]" for winner in winners)
            yield Problem(path, f"is overridden for all its parameters by {by}; remove it")
        for path, _ in _paths(rule, idle, keys):
            yield Problem(path, "has no effect: all its parameters are frozen")
    yield from _kept_frozen(grouping)
    for group in grouping.groups:
        if group.lr == 0:
            message = f"lr of group {group.name!r} is 0, so it will not move; freeze it instead"
            yield Problem("groups", message)


def _paths(
    rule: int, found: Sequence[str], keys: dict[str, list[_Effect]]
) -> Iterator[tuple[str, Sequence[str]]]:
    """Return the path of a whole rule if all its keys are found, else of each of them."""
    if found and len(found) == len(keys):
        yield f"groups[{rule}]", found
    else:
        yield from ((f"groups[{rule}].{key}", [key]) for key in found)


def _kept_frozen(grouping: Grouping) -> Iterator[Problem]:
    """Say where a rule takes parameters to be trained that the model itself has frozen."""
    counts: dict[int, int] = {}
    for name in grouping.frozen:
        votes = grouping.parameters[name].votes.get("freeze", ())
        if votes and not votes[-1].value:
            counts[votes[-1].rule] = counts.get(votes[-1].rule, 0) + 1
    for rule, count in sorted(counts.items()):
        tensors = "1 tensor stays" if count == 1 else f"{count} tensors stay"
        message = f"{tensors} frozen: the model says requires_grad=False; set it to True there"
        yield Problem(f"groups[{rule}].freeze", message)


def schedule_warnings(
    path: str, phases: Sequence[PhaseSpec], curves: Mapping[str, Curve], horizon: Horizon
) -> Iterator[Problem]:
    """Find phases that cannot do what they are for, and steps that train nothing.

    Args:
        path: where the phases stand in the recipe.
        phases: what it says there.
        curves: the curve of each hyperparameter that they make.
        horizon: of the run.
    """
    for of, curve in curves.items():
        own = [(f"{path}[{i}]", spec) for i, spec in enumerate(phases) if (spec.of or "lr") == of]
        for (where, spec), phase in zip(own, curve.phases, strict=False):
            if phase.steps == 0:
                yield Problem(where, f"{phase.name} takes 0 steps, so it does nothing")
            elif spec.floor is not None and spec.floor >= (start := curve(phase.start)):
                message = f"{spec.floor:g} is not below where the phase starts, {start:g} x {of}"
                yield Problem(f"{where}.floor", message)
    curve, total = curves["lr"], horizon.total_steps
    if curve.phases and total is not None and curve.end < total and curve(curve.end) == 0:
        left = total - curve.end
        yield Problem(path, f"lr is 0 for the last {left} of {total} steps, after the phases")
