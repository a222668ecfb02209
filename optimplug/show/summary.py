"""The lines of text that go with a plan, under a table as on a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from optimplug.errors import listed
from optimplug.recipe.plan import Plan
from optimplug.recipe.resolve import Choice
from optimplug.recipe.schedule.curves import Curve, Phase
from optimplug.recipe.text.rule_id import RuleId
from optimplug.show.rows import Row, folded_names

__all__ = ["bytes_cell", "modules_of", "summary", "title"]

_ROOM = 40  # columns for the names of what is frozen, in a line of about 80


def title(plan: Plan) -> str:
    """Return the optimizer, what the recipe gives to it, and the length of the run."""
    total = plan.horizon.total_steps
    run = f"{total:,} steps" if total is not None else "unknown number of steps"
    return ", ".join([*map(_call, plan.optimizers), run])


def _call(optimizer: Choice) -> str:
    given = ", ".join(f"{key}={value}" for key, value in optimizer.settings.items())
    return f"{optimizer.name}({given})"


def summary(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """Give lines on sizes, on memory, and on what happens when.

    Args:
        plan: of which they tell.
        rows: its groups as they are shown beside these lines.
    """
    numel = sum(group.numel for group in plan.groups)
    tensors = sum(len(group.parameters) for group in plan.groups)
    yield f"{len(plan.groups)} groups, {tensors} tensors, {numel:,} parameters to train"
    yield "end is after the last update"
    if plan.layout is not None:
        yield str(plan.layout)
    yield f"optimizer state: {_memory(plan)}"
    if plan.grouping.frozen:
        yield _frozen(plan)
    yield from map(str, plan.absent)
    yield from _phases(plan)
    yield from _exceptions(plan, rows)
    yield from _resuming(plan)


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


def _resuming(plan: Plan) -> Iterator[str]:
    """Say how the run goes on from a checkpoint, unless that is as usual."""
    climbs = ""
    if plan.rewarm_updates is not None:
        climbs = f", where a rate that jumps climbs over {plan.rewarm_updates:,} steps"
    if plan.resume.policy != "exact":
        yield f"resumes from a checkpoint by {plan.resume.policy}{climbs}"


def _labelled_curves(plan: Plan) -> Iterator[tuple[str, Curve]]:
    """Walk every curve with a label; the one that most recipes have alone, of lr, needs none."""
    for of, curve in plan.run_schedule.shared.items():
        yield ("" if of == "lr" else f"{of}, "), curve
    for rule, curves in plan.run_schedule.own.items():
        yield from ((f"{rule}, {of}, ", curve) for of, curve in curves.items())


def _exceptions(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """Name the groups that follow another schedule than the rest, or are frozen for a time."""
    own: dict[RuleId, list[Row]] = defaultdict(list)
    frozen: dict[RuleId, list[Row]] = defaultdict(list)
    for row in rows:
        group = row.first.group  # in which those of a row are alike
        if group.schedule is not None:
            own[group.schedule].append(row)
        if group.freeze is not None:
            frozen[group.freeze].append(row)
    for rule, of in own.items():
        yield f"{_called(plan, of, 'has')} the schedule of {rule}"
    for rule, of in frozen.items():
        until = plan.frozen_until(of[0].first.group)
        yield f"{_called(plan, of, 'is')} frozen until step {until:,}, by {rule}"


def _called(plan: Plan, rows: Sequence[Row], verb: str) -> str:
    """Return what rows are called together, and the verb in its number."""
    names = {name for row in rows for member in row.members for name in member.group.parameters}
    called = rows[0].name if len(rows) == 1 else modules_of(plan, names)
    is_one = not any(sign in called for sign in (", ", " - "))
    return f"{called} {verb if is_one else {'has': 'have', 'is': 'are'}[verb]}"


def _frozen(plan: Plan) -> str:
    """Return a line on all that stays as it is for the whole run."""
    frozen = plan.grouping.frozen
    size = sum(p.numel() for p in frozen.values())
    modules = modules_of(plan, frozen.keys())
    return f"frozen: {len(frozen)} tensors, {size:,} parameters: {modules}"


def modules_of(plan: Plan, names: Collection[str]) -> str:
    """Name parameters by the modules that they fill, as many as a line has room for."""
    others = [name for name in plan.grouping.parameters if name not in names]
    ordered = (name for name in plan.grouping.parameters if name in names)
    modules = list(folded_names(dict.fromkeys(_whole_modules(ordered, others))))
    fitting = (n for n in range(len(modules), 1, -1) if len(listed(modules, n)) <= _ROOM)
    return listed(modules, next(fitting, 1))


def _whole_modules(names: Iterable[str], others: Iterable[str]) -> Iterator[str]:
    """Return for each parameter the largest module that holds none of the others, or itself."""
    shared = {".".join(parts[:n]) for parts in map(_parts, others) for n in range(len(parts))}
    for name in names:
        parts = _parts(name)
        yield next(
            path for n in range(1, len(parts) + 1) if (path := ".".join(parts[:n])) not in shared
        )


def _parts(name: str) -> list[str]:
    return name.split(".")
