"""Phases -> one scheduler, a function of the number of updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from inspect import Parameter
from typing import Any

import torch

from optimplug._core.lr_scheduler.compose import phase_at
from optimplug._core.lr_scheduler.factor import FactorLR
from optimplug.errors import ArgumentError, Problem, RecipeError, StateError, did_you_mean
from optimplug.optim.lr_scheduler import LRScheduler, OneCycleLR
from optimplug.recipe.durations import Duration, Horizon
from optimplug.recipe.resolve import blame, parameters_of, scheduler_class
from optimplug.recipe.schema import PhaseSpec

__all__ = ["Curve", "Phase", "RecipeScheduler", "compile_schedule", "phase_problems"]

# Where torch wants a count, a phase gives its length unless it is told otherwise ...
_LENGTH = {
    "ConstantLR": "total_iters",
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
    "CosineAnnealingLR": "T_max",
    "CosineAnnealingWarmRestarts": "T_0",
    "OneCycleLR": "total_steps",
}
# ... and where torch wants an absolute minimum, a ratio keeps the groups apart.
_FLOOR = {
    "CosineAnnealingLR": "eta_min",
    "CosineAnnealingWarmRestarts": "eta_min",
    "CyclicLR": "base_lr",
}
# Other counts may be durations as well; one of these is a list of them.
_COUNTS = {
    "StepLR": ("step_size",),
    "MultiStepLR": ("milestones",),
    "CyclicLR": ("step_size_up", "step_size_down"),
}
# What a phase has settled: its peak is the group's own rate, and momentum is no part of a curve.
_SETTLED: dict[str, dict[str, Any]] = {
    "CyclicLR": {"max_lr": 1.0, "cycle_momentum": False},
    "OneCycleLR": {"max_lr": 1.0, "cycle_momentum": False},
}
_RATE_ALONE = "is no part of a phase, which schedules the rate alone"
_NOT_HERE = {
    "max_lr": "is absolute; the peak of a phase is each group's own lr",
    "cycle_momentum": _RATE_ALONE,
    "base_momentum": _RATE_ALONE,
    "max_momentum": _RATE_ALONE,
    "scale_fn": "is a function; use 'mode'",
    "scale_mode": "is for a function; use 'mode'",
    "epochs": "is not needed; the length of the phase is 'for'",
    "steps_per_epoch": "is not needed; the length of the phase is 'for'",
}


@dataclass(frozen=True)
class Phase:
    """A scheduler's part of the run: ``steps`` updates from ``start`` on."""

    name: str
    start: int
    steps: int
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in sorted(self.arguments.items()))
        return f"{self.name}({given}) for {self.steps}"


class Curve:
    """The factor on every group's own rate, as a function of the number of updates taken.

    Each phase is the closed form of its scheduler on a rate of 1, so all groups keep their ratios.
    Past the last phase, its last value holds.

    Args:
        phases: the phases in order; none for a factor of 1 throughout.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = tuple(phases)
        self.end = phases[-1].start + phases[-1].steps if phases else 0
        acting = [phase for phase in phases if phase.steps > 0]
        unit = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        self._children = [_scheduler(phase, unit) for phase in acting]
        self._starts = [phase.start for phase in acting[1:]]

    def __call__(self, t: int) -> float:
        """Return the factor after ``t`` updates."""
        if not self._children:
            return 1.0
        i, within = phase_at(min(t, self.end), self._starts)
        child = self._children[i]
        if isinstance(child, OneCycleLR):  # it goes on past its end; a recipe does not
            within = min(within, child.total_steps - 1)
        return child.rates(within)[0]

    def __str__(self) -> str:
        return "; ".join(map(str, self.phases)) or "constant"


class RecipeScheduler(FactorLR):
    r"""The schedule of a recipe: one scheduler, stepped once per update.

    .. math:: \eta_g(t) = \eta_g \cdot c(t)

    with :math:`\eta_g` the group's own rate and :math:`c` = ``curve``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        curve: the factor over time.
    """

    _not_saved = (*FactorLR._not_saved, "_curve")

    def __init__(self, optimizer: torch.optim.Optimizer, curve: Curve) -> None:
        self._curve = curve
        self.fingerprint = str(curve)
        super().__init__(optimizer)

    def factor_at(self, t: int) -> float:
        """Return the factor after ``t`` updates."""
        return self._curve(t)

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        super()._check_state(state_dict)
        if state_dict["fingerprint"] != self.fingerprint:
            raise StateError(
                "the state was saved under another schedule: "
                f"{state_dict['fingerprint']!r}, but this one is {self.fingerprint!r}"
            )


def phase_problems(phases: Sequence[PhaseSpec]) -> list[Problem]:
    """Check names and arguments of phases as far as that needs no horizon."""
    wrong: list[Problem] = []
    open_ended = [i for i, p in enumerate(phases) if p.for_ is None or p.for_.unit == "rest"]
    for i in open_ended:
        if i != len(phases) - 1:
            wrong.append(
                Problem(
                    f"schedule[{i}].for", "only the last phase can take the rest; give a length"
                )
            )
    for i, phase in enumerate(phases):
        path = f"schedule[{i}]"
        try:
            cls = scheduler_class(phase.name, f"{path}.name")
        except RecipeError as error:
            wrong += error.problems
            continue
        unfit = _argument_problems(phase, cls, path)
        wrong += unfit or _value_problems(phase, path)
    return wrong


def compile_schedule(phases: Sequence[PhaseSpec], horizon: Horizon) -> Curve:
    """Resolve every duration and return the curve of the whole run.

    Raises:
        RecipeError: a duration needs what the horizon lacks, the phases do not fit into the run, or
            a length is none that its scheduler takes.
    """
    wrong: list[Problem] = []
    compiled: list[Phase] = []
    start, exact = 0, Fraction(0)
    for i, spec in enumerate(phases):
        path = f"schedule[{i}]"
        try:
            # Each boundary is rounded by itself, so that parts of a step do not add up.
            exact += _length(spec.for_, exact, horizon)
            steps = math.ceil(exact) - start
            phase = Phase(spec.name, start, steps, _arguments(spec, path, steps, horizon))
            start += steps
            compiled.append(phase)
            Curve([phase])
        except RecipeError as error:
            wrong += error.problems
        except ArgumentError as error:
            wrong.append(Problem(path, str(error)))
        except ValueError as error:
            wrong.append(Problem(f"{path}.for", str(error)))
    total = horizon.total_steps
    if not wrong and total is not None and start > total:
        wrong.append(
            Problem("schedule", f"the phases take {start} steps, but the run has only {total}")
        )
    if wrong:
        raise RecipeError(wrong)
    return Curve(compiled)


def _length(duration: Duration | None, start: Fraction, horizon: Horizon) -> Fraction:
    """Return a phase's length in steps and parts of steps."""
    total = horizon.total_steps
    if duration is not None and duration.unit != "rest":
        length = duration.exact(horizon)
        if total is not None and math.ceil(length) > total:
            raise ValueError(
                f"'{duration}' is {math.ceil(length)} steps, longer than the run of {total}"
            )
        return length
    if total is None:
        raise ValueError("the rest of the run needs to know Horizon.total_steps")
    return max(Fraction(0), total - start)


def _arguments(spec: PhaseSpec, path: str, steps: int, horizon: Horizon) -> dict[str, Any]:
    """Return the scheduler's own arguments: lengths in steps, the floor as its minimum."""
    given = {**_SETTLED.get(spec.name, {}), **(spec.model_extra or {})}
    if spec.name in _LENGTH:
        given.setdefault(_LENGTH[spec.name], steps)
    for name in sorted(_counts(spec.name) & given.keys()):
        try:
            given[name] = _in_steps(given[name], horizon)
        except ValueError as error:
            raise RecipeError.at(f"{path}.{name}", str(error)) from None
    if spec.floor is not None:
        given[_FLOOR[spec.name]] = spec.floor
    return given


def _in_steps(value: Any, horizon: Horizon) -> Any:
    """Return a duration, or each of a list, in steps."""
    if isinstance(value, list):
        return [_in_steps(each, horizon) for each in value]
    return Duration.parse(value).steps(horizon)


def _counts(name: str) -> set[str]:
    """Return which arguments of a scheduler are durations."""
    return {*_COUNTS.get(name, ()), *([_LENGTH[name]] if name in _LENGTH else [])}


def _argument_problems(phase: PhaseSpec, cls: type[LRScheduler], path: str) -> list[Problem]:
    known = parameters_of(cls, without=("optimizer", "last_epoch", "verbose"))
    unsaid = {*_NOT_HERE, _FLOOR.get(phase.name)}
    floor = ["floor"] if phase.name in _FLOOR else []
    valid = [*(name for name in known if name not in unsaid), "for", *floor]
    given = phase.model_extra or {}
    wrong = []
    for key, value in given.items():
        message = _argument_problem(phase.name, key, value, known, valid)
        if message:
            wrong.append(Problem(f"{path}.{key}", message))
    if phase.floor is not None and not floor:
        wrong.append(Problem(f"{path}.floor", f"{phase.name} has no minimum{_instead(phase.name)}"))
    missing = [key for key in valid if key in known and known[key].default is Parameter.empty]
    if floor and phase.floor is None and known[_FLOOR[phase.name]].default is Parameter.empty:
        missing.append("floor")
    absent = [key for key in missing if key not in given and key != _LENGTH.get(phase.name)]
    return wrong + [Problem(f"{path}.{key}", "is required, but missing") for key in absent]


def _argument_problem(
    name: str, key: str, value: Any, known: Mapping[str, Parameter], valid: Sequence[str]
) -> str | None:
    """Say what is wrong with an argument of a scheduler, before any is built."""
    if key == _FLOOR.get(name):
        return "is absolute; use 'floor', a ratio of each group's own lr"
    if key in known and key in _NOT_HERE:
        return _NOT_HERE[key]
    if key not in known:
        return f"unknown key{did_you_mean(key, valid)}"
    if key in _counts(name):
        return _count_problem(key, value)
    if isinstance(known[key].default, bool | str):
        kind = type(known[key].default)
        what = "true or false" if kind is bool else "a word"
        return None if isinstance(value, kind) else f"must be {what} (got {value!r})"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if number else f"must be a number (got {value!r})"


def _count_problem(key: str, value: Any) -> str | None:
    """Say what is wrong with a duration among the arguments, or with a list of them."""
    if key == "milestones" and not isinstance(value, list):
        return f"must be a list of durations (got {value!r})"
    try:
        for each in value if key == "milestones" else [value]:
            if Duration.parse(each).unit == "rest":
                return "must be a length of its own; for the rest leave it out"
    except ValueError as error:
        return str(error)
    return None


def _value_problems(phase: PhaseSpec, path: str) -> list[Problem]:
    """Let the scheduler itself judge the values, over a phase of one step."""
    given = dict(phase.model_extra or {})
    for name in _counts(phase.name) & given.keys():
        # A percentage or epochs are counts only when the run is known.
        counts = given[name] if isinstance(given[name], list) else [given[name]]
        parsed = [Duration.parse(count) for count in counts]
        if any(duration.unit != "steps" for duration in parsed):
            del given[name]
        else:
            steps = [int(duration.amount) for duration in parsed]
            given[name] = steps if isinstance(given[name], list) else steps[0]
    if phase.floor is not None:
        given[_FLOOR[phase.name]] = phase.floor
    needed = {**_SETTLED.get(phase.name, {}), **_stand_ins(phase.name)}

    def attempt(**arguments: Any) -> None:
        Curve([Phase(phase.name, 0, 1, {**needed, **arguments})])

    return list(blame(path, attempt, given))


def _stand_ins(name: str) -> dict[str, Any]:
    """Return a value for each argument without a default, and 1 for the length."""
    known = parameters_of(scheduler_class(name, ""), without=("optimizer", *_NOT_HERE))
    required = [key for key, p in known.items() if p.default is Parameter.empty]
    values = {key: [1] if key == "milestones" else 1 for key in required}
    return {**values, **({_LENGTH[name]: 1} if name in _LENGTH else {})}


def _instead(name: str) -> str:
    return "; use 'end_factor'" if name == "LinearLR" else ""


def _scheduler(phase: Phase, unit: torch.optim.Optimizer) -> LRScheduler:
    return scheduler_class(phase.name, "")(unit, **phase.arguments)
