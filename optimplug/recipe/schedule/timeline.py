"""Phases, which have lengths -> curves, which have a value for every update of a run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain
from typing import Any

from optimplug.errors import ArgumentError, Problem, RecipeError, did_you_mean
from optimplug.recipe.schedule.curves import Curve, Factor, Phase, PlateauFactor
from optimplug.recipe.schedule.phases import build_factor, factor_problems
from optimplug.recipe.schedule.vocabulary import length_argument
from optimplug.recipe.text.durations import Duration, Horizon
from optimplug.recipe.text.problems import Problems
from optimplug.recipe.text.rule_id import RuleId
from optimplug.recipe.text.schema.phases import PhaseSpec

__all__ = [
    "Curves",
    "RunSchedule",
    "compile_schedule",
    "parts_of",
    "schedule_problems",
    "target_problems",
    "until",
]


Curves = Mapping[str, Curve]
"""A curve for each hyperparameter that is scheduled, ``lr`` always among them."""


@dataclass(frozen=True)
class RunSchedule:
    """Which curves groups follow, and until when weights stay as they are.

    A group of the optimizer names the rule that gives it a schedule of its own under the key
    ``schedule``, and the one that freezes it for a time under ``freeze``.
    """

    shared: Curves
    """The recipe's own."""
    own: Mapping[RuleId, Curves] = field(default_factory=dict)
    """Those of rules, for the groups that name one."""
    frozen_until: Mapping[RuleId, int] = field(default_factory=dict)
    """The number of updates for which a rule freezes the groups that name it."""
    total_steps: int | None = None
    """The number of updates in the whole run, where it is known."""

    def curves_of(self, rule: RuleId | None) -> Curves:
        """Return the curves of groups whose schedule is that of a rule, or the recipe's."""
        return self.shared if rule is None else {**self.shared, **self.own[rule]}

    def curves_in(self, group: Mapping[str, Any]) -> Curves:
        """Return the curves that a group of an optimizer follows."""
        return self.curves_of(RuleId.in_group(group, "schedule"))

    def all_curves(self) -> Iterator[Curve]:
        """Walk all curves."""
        for curves in (self.shared, *self.own.values()):
            yield from curves.values()

    def scheduled(self) -> frozenset[str]:
        """Return the hyperparameters that follow a curve in any group."""
        return frozenset(self.shared).union(*self.own.values())

    def factors(self) -> Iterator[Factor]:
        """Walk the factors of all phases of all curves."""
        for curve in self.all_curves():
            yield from curve.factors()

    def monitors(self, of_training: bool, t: int | None = None) -> frozenset[str]:
        """Return the metrics of validations, or of the training, that are followed.

        Args:
            of_training: which of the two.
            t: after how many updates; None: at any time.
        """
        curves = [*self.all_curves()]
        found = self.factors() if t is None else chain(*(c.factors_at(t) for c in curves))
        followers = (f for f in found if isinstance(f, PlateauFactor))
        return frozenset(f.monitor for f in followers if f.of_training == of_training)

    def waiting(self, of_training: bool, t: int) -> list[str]:
        """Return the labels of what has begun by ``t`` updates and waits to be told something.

        Args:
            of_training: whether of what the training reports, or of validations.
            t: how many updates there were.
        """
        begun = (p for curve in self.all_curves() for p in curve.phases if p.start < t)
        factors = (f for p in begun for f in p.factors if f.follows_metrics)
        return [factor.label for factor in factors if factor.of_training == of_training]

    def __str__(self) -> str:
        lines = [_text("", self.shared)]
        lines += [_text(f"{rule}: ", curves) for rule, curves in self.own.items()]
        lines += [f"{rule}: frozen until {n}" for rule, n in self.frozen_until.items()]
        return " | ".join(lines)


def _text(before: str, curves: Curves) -> str:
    # It is part of what a checkpoint is compared by, so that any change here refuses older ones.
    named = (f"{'' if of == 'lr' else f'{of}: '}{curve}" for of, curve in curves.items())
    return before + ", ".join(named)


def schedule_problems(phases: Sequence[PhaseSpec], path: str = "schedule") -> Iterator[Problem]:
    """Check names and arguments of phases, as far as that needs no horizon."""
    last = {phase.of: i for i, phase in enumerate(phases)}
    started: set[str] = set()
    yield from _shares_problems(phases, path)
    for i, phase in enumerate(phases):
        here = f"{path}[{i}]"
        if i != last[phase.of] and (phase.for_ is None or phase.for_.unit == "rest"):
            message = "only the last phase can take the rest; give a length"
            yield Problem(f"{here}.for", message)
        of = phase.of or "lr"
        if phase.from_ == "previous" and of not in started:
            yield Problem(f"{here}.from", f"no phase of {of} comes before it; leave it out")
        started.add(of)
        for where, part in parts_of(phase, here):
            yield from factor_problems(part, where)


def _shares_problems(phases: Sequence[PhaseSpec], path: str) -> Iterator[Problem]:
    """Check that what is given in percent is no more than the run."""
    shares: dict[str, Fraction] = defaultdict(Fraction)
    for phase in phases:
        if phase.for_ is not None and phase.for_.unit == "%":
            shares[phase.of or "lr"] += phase.for_.amount
    for share in shares.values():
        if share > 100:
            yield Problem(path, f"the phases take {float(share):g}% of the run; at most it is 100%")


def target_problems(
    phases: Sequence[PhaseSpec], bases: Mapping[str, Any], owner: str, path: str = "schedule"
) -> Iterator[Problem]:
    """Check that what is scheduled is a number of the optimizer's groups, or a tuple of numbers.

    Args:
        phases: which name hyperparameters under ``of``.
        bases: the optimizer's hyperparameters.
        owner: the optimizer's name.
        path: where the phases stand in the recipe.
    """
    numbers = {name for name, value in bases.items() if _is_numeric(value)}
    # The norm is that of all gradients together, so that no group has one of its own.
    valid = ["lr", *sorted(numbers - {"max_grad_norm", "lr"})]
    for i, phase in enumerate(phases):
        if phase.of is not None and phase.of not in valid:
            message = f"{owner} has no number {phase.of!r}{did_you_mean(phase.of, valid)}"
            yield Problem(f"{path}[{i}].of", message)


def compile_schedule(
    phases: Sequence[PhaseSpec],
    horizon: Horizon,
    bases: Mapping[str, Any],
    path: str = "schedule",
) -> dict[str, Curve]:
    """Resolve every duration and return the curve of each hyperparameter, of ``lr`` always.

    Args:
        phases: such that :func:`schedule_problems` finds nothing wrong.
        horizon: of the run.
        bases: the optimizer's own values of what is scheduled.
        path: where the phases stand in the recipe.

    Raises:
        RecipeError: a duration needs what the horizon lacks, the phases do not fit into the run, or
            a scheduler does not take the length of its phase.
    """
    wrong = Problems()
    curves = {}
    for of in dict.fromkeys(["lr", *(phase.of or "lr" for phase in phases)]):
        own = {f"{path}[{i}]": p for i, p in enumerate(phases) if (p.of or "lr") == of}
        # Presets with an absolute end need one number; a tuple of betas has none.
        base = bases.get(of)
        curves[of] = _sequence(own, horizon, base if isinstance(base, int | float) else 1.0, wrong)
        total = horizon.total_steps
        if not wrong and total is not None and curves[of].end > total:
            message = f"the phases take {curves[of].end} steps, but the run has only {total}"
            wrong.add(path, message)
    wrong.raise_if_any()
    return curves


def until(duration: Duration, horizon: Horizon, path: str) -> int:
    """Return how many updates a duration takes from the start of the run.

    Raises:
        RecipeError: it needs what the horizon lacks, or is longer than the run.
    """
    try:
        return math.ceil(_length(duration, Fraction(0), horizon))
    except ValueError as error:
        raise RecipeError.at(path, str(error)) from None


def _sequence(
    specs: Mapping[str, PhaseSpec], horizon: Horizon, base: float, wrong: Problems
) -> Curve:
    """Return a curve of phases one after the other; those that do not fit are left out of it."""
    phases: list[Phase] = []
    start, exact = 0, Fraction(0)
    for path, spec in specs.items():
        with wrong.caught(f"{path}.for"):
            # Each boundary is rounded by itself: rounded lengths would add up to another total.
            exact += _length(spec.for_, exact, horizon)
            steps = math.ceil(exact) - start
            acting = [phase for phase in phases if phase.steps > 0]
            before = acting[-1] if acting and spec.from_ == "previous" else None
            phases.append(_phase(spec, path, start, steps, horizon, base, before))
            start += steps
    return Curve(phases)


def _phase(
    spec: PhaseSpec,
    path: str,
    start: int,
    steps: int,
    horizon: Horizon,
    base: float,
    before: Phase | None,
) -> Phase:
    """Return a phase of so many updates, from one on; and from where ``before`` ended, if given."""
    factors, at = [], f"{path}.for"
    moved = before is not None and spec.together is None
    try:
        # A phase without steps is never asked, and many schedulers refuse such a length.
        for where, part in parts_of(spec, path) if steps > 0 else ():
            at = f"{where}.{length_argument(part)}"
            factors.append(build_factor(part, steps, horizon, base, moved))
        name = " x ".join(part.name or part.preset or "" for _, part in parts_of(spec, path))
        phase = Phase(name, start, steps, tuple(factors), horizon.steps_per_epoch)
        if before is not None and steps > 0 and _can_follow(phase, before):
            phase = replace(phase, before=before)
        _check_finite(phase)
    except ArgumentError as error:  # several values do not fit together
        raise RecipeError.at(path, str(error)) from None
    except ValueError as error:  # a duration has no length over this horizon
        raise RecipeError.at(at, str(error)) from None
    if before is not None and steps > 0 and phase.before is None:
        zero = f"{before.name} before it ends" if before.end == 0 else f"{name} starts"
        raise RecipeError.at(f"{path}.from", f"{zero} at 0, from which no rate can go on")
    return phase


def _can_follow(phase: Phase, before: Phase) -> bool:
    """Tell whether a phase can start where another ends: 0 has no multiples."""
    return phase(phase.start) != 0 and (before.follows_metrics or before.end > 0)


def _check_finite(phase: Phase) -> None:
    """Refuse a factor that grows beyond all numbers."""
    try:
        # What grows at all is largest at the end, so that the steps between need no look.
        ends = [phase(phase.start), phase(phase.start + phase.steps)]
    except OverflowError:
        ends = [math.inf]
    if not all(map(math.isfinite, ends)):
        raise ArgumentError(f"grows beyond all numbers within its {phase.steps} steps")


def parts_of(phase: PhaseSpec, path: str) -> list[tuple[str, PhaseSpec]]:
    """Return what acts in a phase: itself, or the parts under ``together``; each with its path."""
    if phase.together is None:
        return [(path, phase)]
    return [(f"{path}.together[{i}]", part) for i, part in enumerate(phase.together)]


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


def _is_numeric(value: object) -> bool:
    values = value if isinstance(value, tuple) and value else (value,)
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
