"""Phases -> one scheduler, a function of the number of updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from optimplug.errors import ArgumentError, Problem, RecipeError, StateError, did_you_mean
from optimplug.optim.lr_scheduler import LRScheduler, SequentialLR
from optimplug.recipe.durations import Duration, Horizon
from optimplug.recipe.resolve import blame, parameters_of, scheduler_class
from optimplug.recipe.schema import PhaseSpec

__all__ = ["Curve", "Phase", "RecipeScheduler", "compile_schedule", "phase_problems"]

# Where torch wants a count, a phase gives its length unless it is told otherwise ...
_LENGTH = {"LinearLR": "total_iters", "CosineAnnealingLR": "T_max"}
# ... and where torch wants an absolute minimum, a ratio keeps the groups apart.
_FLOOR = {"CosineAnnealingLR": "eta_min"}


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
        children = [_scheduler(phase, unit) for phase in acting]
        starts = [phase.start for phase in acting[1:]]
        self._sequence = SequentialLR(unit, children, starts) if children else None

    def __call__(self, t: int) -> float:
        """Return the factor after ``t`` updates."""
        return self._sequence.closed_form(1.0, min(t, self.end)) if self._sequence else 1.0

    def __str__(self) -> str:
        return "; ".join(map(str, self.phases)) or "constant"


class RecipeScheduler(LRScheduler):
    r"""The schedule of a recipe: one scheduler, stepped once per update.

    .. math:: \eta_g(t) = \eta_g \cdot c(t)

    with :math:`\eta_g` the group's own rate and :math:`c` = ``curve``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        curve: the factor over time.
    """

    _not_saved = (*LRScheduler._not_saved, "_curve")

    def __init__(self, optimizer: torch.optim.Optimizer, curve: Curve) -> None:
        self._curve = curve
        self.fingerprint = str(curve)
        super().__init__(optimizer)

    def closed_form(self, base_lr: float, t: int) -> float:
        """Return the rate after ``t`` updates of a group whose own rate is ``base_lr``."""
        return base_lr * self._curve(t)

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
        key = "for"
        try:
            # Each boundary is rounded by itself, so that parts of a step do not add up.
            exact += _length(spec.for_, exact, horizon)
            steps = math.ceil(exact) - start
            key = _LENGTH[spec.name]
            phase = Phase(spec.name, start, steps, _arguments(spec, steps, horizon))
            start += steps
            compiled.append(phase)
            Curve([phase])
        except ArgumentError as error:
            wrong.append(Problem(path, str(error)))
        except ValueError as error:
            wrong.append(Problem(f"{path}.{key}", str(error)))
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


def _arguments(spec: PhaseSpec, steps: int, horizon: Horizon) -> dict[str, Any]:
    """Return the scheduler's own arguments: lengths in steps, the floor as its minimum."""
    given = dict(spec.model_extra or {})
    length = _LENGTH[spec.name]
    given[length] = Duration.parse(given[length]).steps(horizon) if length in given else steps
    if spec.floor is not None:
        given[_FLOOR[spec.name]] = spec.floor
    return given


def _argument_problems(phase: PhaseSpec, cls: type[LRScheduler], path: str) -> list[Problem]:
    known = list(parameters_of(cls, without=("optimizer", "last_epoch")))
    minimum = _FLOOR.get(phase.name)
    valid = [*(name for name in known if name != minimum), "for", *(["floor"] if minimum else [])]
    wrong = []
    for key, value in (phase.model_extra or {}).items():
        if key == minimum:
            message = "is absolute; use 'floor', a ratio of each group's own lr"
            wrong.append(Problem(f"{path}.{key}", message))
        elif key not in known:
            wrong.append(Problem(f"{path}.{key}", f"unknown key{did_you_mean(key, valid)}"))
        elif key == _LENGTH[phase.name]:
            try:
                if Duration.parse(value).unit == "rest":
                    raise ValueError("must be a length of its own; for the rest leave it out")
            except ValueError as error:
                wrong.append(Problem(f"{path}.{key}", str(error)))
        elif not isinstance(value, int | float) or isinstance(value, bool):
            wrong.append(Problem(f"{path}.{key}", f"must be a number (got {value!r})"))
    if phase.floor is not None and minimum is None:
        wrong.append(Problem(f"{path}.floor", f"{phase.name} has no minimum{_instead(phase.name)}"))
    return wrong


def _value_problems(phase: PhaseSpec, path: str) -> list[Problem]:
    """Let the scheduler itself judge the values, over a phase of one step."""
    length = _LENGTH[phase.name]
    given = {k: v for k, v in (phase.model_extra or {}).items() if k != length}
    own = Duration.parse((phase.model_extra or {}).get(length, 1))
    if own.unit == "steps":
        given[length] = int(own.amount)
    if phase.floor is not None:
        given[_FLOOR[phase.name]] = phase.floor

    def attempt(**arguments: Any) -> None:
        Curve([Phase(phase.name, 0, 1, {length: 1, **arguments})])

    return list(blame(path, attempt, given))


def _instead(name: str) -> str:
    return "; use 'end_factor'" if name == "LinearLR" else ""


def _scheduler(phase: Phase, unit: torch.optim.Optimizer) -> LRScheduler:
    return scheduler_class(phase.name, "")(unit, **phase.arguments)
