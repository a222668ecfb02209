"""The lines of text that go with a plan, under a table as on a page."""

from __future__ import annotations

from collections.abc import Iterator

from optimplug.recipe.plan import Plan
from optimplug.recipe.resolve import Choice
from optimplug.recipe.schedule.curves import Curve, Phase

__all__ = ["bytes_cell", "summary", "title"]


def title(plan: Plan) -> str:
    """Return the optimizer, what the recipe gives to it, and the length of the run."""
    total = plan.horizon.total_steps
    run = f"{total:,} steps" if total is not None else "unknown number of steps"
    return ", ".join([*map(_call, plan.optimizers), run])


def _call(optimizer: Choice) -> str:
    given = ", ".join(f"{key}={value}" for key, value in optimizer.settings.items())
    return f"{optimizer.name}({given})"


def summary(plan: Plan) -> Iterator[str]:
    """Give lines on sizes, on memory, and on what happens when."""
    numel = sum(group.numel for group in plan.groups)
    tensors = sum(len(group.parameters) for group in plan.groups)
    yield (
        f"{len(plan.groups)} groups, {tensors} tensors, {numel:,} parameters to train; "
        f"rules are counted from 0; end is after the last update"
    )
    if plan.layout is not None:
        yield str(plan.layout)
    yield f"optimizer state: {_memory(plan)}"
    if plan.grouping.frozen:
        size = sum(p.numel() for p in plan.grouping.frozen.values())
        yield f"frozen: {len(plan.grouping.frozen)} tensors, {size:,} parameters"
    yield from map(str, plan.absent)
    yield from _phases(plan)
    yield from _exceptions(plan)


def _memory(plan: Plan) -> str:
    if plan.state_bytes is None:
        return f"unknown, {plan.optimizer} is not of optimplug.optim"
    return f"{plan.state_bytes:,} bytes"


def bytes_cell(size: int | None) -> str:
    """Return a number of bytes as it stands in a table."""
    return "unknown" if size is None else f"{size:,}"


def _phases(plan: Plan) -> Iterator[str]:
    for label, curve in _labelled_curves(plan):
        for phase in curve.phases:
            steps = f"steps {phase.start:,} to {phase.start + phase.steps:,}"
            start = ", from the rate before it" if phase.before else ""
            yield f"{label}{steps}: {phase.name}{_followed(phase)}{start}"


def _followed(phase: Phase) -> str:
    """Say which metrics a phase follows, if that is not as usual those of validations."""
    names = dict.fromkeys(factor.follows for factor in phase.factors if factor.of_training)
    return f" of {' and '.join(names)}" if names else ""


def _labelled_curves(plan: Plan) -> Iterator[tuple[str, Curve]]:
    """Walk every curve with a label; the one that most recipes have alone, of lr, needs none."""
    for of, curve in plan.run_schedule.shared.items():
        yield ("" if of == "lr" else f"{of}, "), curve
    for rule, curves in plan.run_schedule.own.items():
        yield from ((f"{rule}, {of}, ", curve) for of, curve in curves.items())


def _exceptions(plan: Plan) -> Iterator[str]:
    """Name the groups that follow another schedule than the rest, or are frozen for a time."""
    for group in plan.groups:
        if group.schedule is not None:
            yield f"{group.name} has the schedule of {group.schedule}"
        if group.freeze is not None:
            until = plan.run_schedule.frozen_until[group.freeze]
            yield f"{group.name} is frozen until step {until:,}, by {group.freeze}"
