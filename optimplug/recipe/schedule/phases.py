"""One phase: checks of its arguments, and its factor once the horizon is known."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import torch

from optimplug.errors import ArgumentError, Problem, RecipeError, did_you_mean
from optimplug.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau
from optimplug.recipe.keywords import keywords_of
from optimplug.recipe.schedule.curves import Factor, PlateauFactor
from optimplug.recipe.schedule.presets import PRESETS, least_of, without_least
from optimplug.recipe.schedule.vocabulary import (
    ELSEWHERE,
    arguments_of,
    row_of,
    scheduler_class,
    scheduler_of,
    vocabulary,
)
from optimplug.recipe.text.durations import Duration, Horizon
from optimplug.recipe.text.problems import Problems
from optimplug.recipe.text.schema.phases import PhaseSpec
from optimplug.recipe.text.written import within
from optimplug.recipe.values import refusals

__all__ = ["build_factor", "factor_problems", "turning_point"]

Arguments = dict[str, Any]


def factor_problems(spec: PhaseSpec, path: str) -> Iterator[Problem]:
    """Check the name and the arguments of a scheduler or a preset without a horizon."""
    try:
        known = arguments_of(spec, path)
    except RecipeError as error:
        yield from error.problems
        return
    wrong = [*_unit_problems(spec, path), *_argument_problems(spec, known, path)]
    # A scheduler's own complaint about an unknown argument would repeat these in worse words.
    yield from wrong or _value_problems(spec, path)


def build_factor(
    spec: PhaseSpec, steps: int, horizon: Horizon, base: float, moved: bool = False
) -> Factor:
    """Return the factor of a phase of so many steps.

    Args:
        spec: one in which :func:`factor_problems` finds nothing wrong.
        steps: the length of the phase in updates.
        horizon: of the run.
        base: the optimizer's own value of what is scheduled, for presets with an absolute end.
        moved: whether it will be moved to another start (``from: previous``).

    Raises:
        ArgumentError: a value does not fit the length.
        ValueError: a duration needs what the horizon lacks; ``for`` or the argument is named first.
    """
    arguments = _counted(spec, steps, horizon)
    name = scheduler_of(spec)
    if name is None:
        return _preset_factor(spec, arguments, base, moved)
    row, least = row_of(spec), 0.0
    # A floor is a ratio of the group's own rate, wherever the phase starts; but where a cycle
    # starts at its floor, all of it moves.
    if moved and not row.needs_floor:
        least = spec.floor or 0.0
    elif spec.floor is not None and row.minimum is not None:
        arguments[row.minimum] = spec.floor
    # On an optimizer whose rate is 1, the rates of a scheduler are factors for any group.
    unit = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = scheduler_class(name, "")(unit, **arguments, **row.fixed)
    label = f"{name}({_listed(arguments)})" + (f" down to {least}" if least else "")
    if isinstance(scheduler, ReduceLROnPlateau):
        return PlateauFactor(label, spec.monitor or "", scheduler, least, bool(spec.of_training))
    # OneCycleLR raises past its end, where every other keeps its last rate.
    last = scheduler.total_steps - 1 if isinstance(scheduler, OneCycleLR) else None
    return Factor(label, spec.every or "step", partial(_rate, scheduler, last), least, row.springs)


def _rate(scheduler: LRScheduler, last: int | None, t: int) -> float:
    return scheduler.rates(t if last is None else min(t, last))[0]


def _preset_factor(spec: PhaseSpec, given: Arguments, base: float, moved: bool) -> Factor:
    preset = PRESETS[spec.preset or ""]
    arguments = {**given, "lr": base} if "lr" in keywords_of(preset, ()) else given
    label, least = f"{spec.preset}({_listed(arguments)})", 0.0
    for t in (0, arguments["total"]):  # presets check their values as they are called
        preset(t, **arguments)
    if moved:
        least = least_of(preset, arguments)
        arguments = without_least(preset, arguments)
    return Factor(label, spec.every or "step", partial(preset, **arguments), least)


def _listed(arguments: Arguments) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in sorted(arguments.items()))


def _counted(spec: PhaseSpec, steps: int, horizon: Horizon) -> Arguments:
    """Return the arguments with every duration as a number of what the phase counts: steps, ..."""
    arguments = dict(spec.model_extra or {})
    count = partial(_count, every=spec.every or "step", horizon=horizon)
    length = count(Duration(Fraction(steps), "steps"))
    for name in row_of(spec).counts:
        given = arguments.get(name)
        if isinstance(given, list):
            arguments[name] = [count(Duration.parse(one)) for one in given]
        elif given is not None:
            arguments[name] = count(Duration.parse(given))
    if scheduler_of(spec) is None:
        warmup = 0 if spec.warmup is None else count(spec.warmup)
        if warmup > length:
            raise ArgumentError(f"a warmup of {warmup} is longer than the phase of {length}")
        return {**arguments, "warmup": warmup, "total": length}
    own = row_of(spec).length
    return {own: length, **arguments} if own else arguments


def _count(duration: Duration, every: str, horizon: Horizon) -> int:
    """Return a duration in steps, validations or, rounded up, in epochs.

    A bare number is one of what the phase counts already.
    """
    if every != "epoch" or duration.bare:
        return duration.steps(horizon)
    if horizon.steps_per_epoch is None:
        raise ValueError("'every: epoch' needs to know Horizon.steps_per_epoch")
    return math.ceil(duration.exact(horizon) / horizon.steps_per_epoch)


def _unit_problems(spec: PhaseSpec, path: str) -> Iterator[Problem]:
    """Check what a phase counts in, and the metric that it follows."""
    plateau = row_of(spec).follows_metric
    if plateau and spec.monitor is None:
        yield Problem(f"{path}.monitor", "is required: the name of the metric to follow")
    if not plateau and spec.monitor is not None:
        yield Problem(f"{path}.monitor", f"{spec.name or spec.preset} follows no metric")
    if not plateau and spec.of_training is not None:
        yield Problem(f"{path}.of_training", f"{spec.name or spec.preset} follows no metric")
    if plateau and spec.of_training and spec.every is not None:
        message = "is for validations, and 'of_training: true' counts what the training reports"
        yield Problem(f"{path}.every", f"{message}; leave it out (got {spec.every!r})")
    elif plateau and spec.every not in (None, "validation"):
        yield Problem(f"{path}.every", f"a plateau steps every validation (got {spec.every!r})")
    if spec.warmup is not None and (spec.preset is None or plateau):
        yield Problem(f"{path}.warmup", "is for presets; let a LinearLR phase come first")
    elif spec.warmup is not None and spec.from_ == "previous":
        yield Problem(
            f"{path}.warmup", "rises from 0, but 'from: previous' starts at the rate before"
        )
    if spec.every == "validation" and not plateau:
        yield from _validation_problems(spec, path)


def _validation_problems(spec: PhaseSpec, path: str) -> Iterator[Problem]:
    """Check that all counts are in validations: how many there will be is not known."""
    row, given = row_of(spec), spec.model_extra or {}
    message = "how many validations there will be is not known"
    if spec.preset is not None:
        yield Problem(f"{path}.every", f"{message}, and a preset needs it; count steps or epochs")
    elif row.length and row.length not in given:
        yield Problem(f"{path}.every", f"{message}: give {row.length}, or count steps or epochs")
    for key in row.counts:
        if key in given and not _is_bare(given[key]):
            yield Problem(f"{path}.{key}", f"must be a number of validations (got {given[key]!r})")


def _argument_problems(
    spec: PhaseSpec, known: Mapping[str, inspect.Parameter], path: str
) -> Iterator[Problem]:
    row, given = row_of(spec), spec.model_extra or {}
    for key, value in given.items():
        yield from _key_problems(spec, known, key, value, within(path, key))
    for key, parameter in known.items():
        needed = parameter.default is inspect.Parameter.empty
        if needed and key not in given and key not in (row.minimum, row.length):
            yield Problem(f"{path}.{key}", "is required, but missing")
    yield from _floor_problems(spec, path)


def _key_problems(
    spec: PhaseSpec, known: Mapping[str, inspect.Parameter], key: str, value: Any, path: str
) -> Iterator[Problem]:
    """Check one argument of a phase."""
    row = row_of(spec)
    if key == row.minimum:
        yield Problem(path, "is absolute; use 'floor', a ratio of each group's own lr")
    elif key in ELSEWHERE:
        yield Problem(path, ELSEWHERE[key])
    elif key not in known:
        words = vocabulary(spec)
        yield Problem(path, f"unknown key{did_you_mean(key, [*words.arguments, *words.keys])}")
    elif key in row.counts:
        yield from _duration_problems(value, path, key == "milestones")
    elif message := _unfit(value, known[key].default):
        yield Problem(path, f"{message} (got {value!r})")


def _floor_problems(spec: PhaseSpec, path: str) -> Iterator[Problem]:
    row = row_of(spec)
    if spec.floor is not None and row.minimum is None:
        name = spec.name or spec.preset
        yield Problem(f"{path}.floor", f"{name} has no minimum{row.no_floor_hint}")
    if spec.floor is None and row.needs_floor:
        yield Problem(
            f"{path}.floor", "is required, but missing: the lower end of the cycle, as a ratio"
        )


def _duration_problems(value: Any, path: str, several: bool) -> Iterator[Problem]:
    if several and not isinstance(value, list):
        yield Problem(path, f"must be a list of durations (got {value!r})")
        return
    wrong = Problems()
    for i, one in enumerate(value if several else [value]):
        with wrong.caught(f"{path}[{i}]" if several else path):
            if Duration.parse(one).unit == "rest":
                raise ValueError("must be a length of its own; for the rest leave it out")
    yield from wrong


def _unfit(value: Any, default: Any) -> str | None:
    """Return what an argument must be, if it is not of the kind of its default."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "must be true or false"
    if isinstance(default, str):
        return None if isinstance(value, str) else "must be a word"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if number else "must be a number"


def _value_problems(spec: PhaseSpec, path: str) -> Iterator[Problem]:
    """Construct the scheduler for a run of a hundred steps or more, and return what it refuses.

    Durations whose length is not known yet are replaced by 1, and so are not judged.
    """
    given, counts = dict(spec.model_extra or {}), row_of(spec).counts
    unknown = {key for key in counts if not _is_bare(given.get(key, 0))}
    rest = {key: value for key, value in given.items() if key not in unknown}
    needed: Arguments = {key: [1] if key == "milestones" else 1 for key in unknown}

    def attempt(**arguments: Any) -> None:
        long = max([100, *(v for k, v in arguments.items() if k in counts and _is_int(v))])
        tried = {**_required(spec, given), **needed, **arguments}
        same = {"name": spec.name, "preset": spec.preset, "monitor": spec.monitor}
        # Without validation, which has passed already and would refuse part of the arguments.
        bare = PhaseSpec.model_construct(None, **same, floor=spec.floor, **tried)
        build_factor(bare, long, Horizon(long, long), base=math.inf)

    yield from refusals(path, attempt, rest)


def _required(spec: PhaseSpec, given: Arguments) -> Arguments:
    """Return the arguments that are needed whenever another one is tried by itself."""
    known = arguments_of(spec, "")
    empty = inspect.Parameter.empty
    return {k: v for k, v in given.items() if k in known and known[k].default is empty}


def turning_point(spec: PhaseSpec, steps: int, horizon: Horizon) -> tuple[str, int, int] | None:
    """Return which argument ends before the phase does, so that its rate goes back up again.

    Args:
        spec: a phase that fits its horizon, or a part of one.
        steps: the length of the phase in updates.
        horizon: of the run.

    Returns:
        The argument, what it is, and the length of the phase in the same unit; None where the
        phase goes one way, and where its length in its own unit, validations, is not known.
    """
    name, every = row_of(spec).length, spec.every or "step"
    if not row_of(spec).turns or name is None or every == "validation":
        return None
    given = _counted(spec, steps, horizon)[name]
    length = _count(Duration(Fraction(steps), "steps"), every, horizon)
    # Boundaries of phases are rounded, so that a step more is nothing that was meant.
    return (name, given, length) if length > 1.05 * given else None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bare(value: object) -> bool:
    """Tell whether a count is a number, or several, without a unit."""
    return all(map(_is_int, value)) if isinstance(value, list) else _is_int(value)
