"""Warnings: parts of a recipe that have no effect, or probably not the one that was meant."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch.distributed as dist
from torch import nn

from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.storage.codes import SMALLEST
from optimplug.errors import Problem, listed
from optimplug.recipe.parameters.groups import Group, Grouping
from optimplug.recipe.parameters.kinds import unknown_kinds
from optimplug.recipe.parameters.match import asks_layers, asks_norm
from optimplug.recipe.resolve import Optimizers, settable_per_group
from optimplug.recipe.schedule.curves import Curve, Phase
from optimplug.recipe.schedule.phases import turning_point
from optimplug.recipe.schedule.timeline import RunSchedule, parts_of
from optimplug.recipe.schedule.vocabulary import row_of
from optimplug.recipe.text.durations import Horizon
from optimplug.recipe.text.schema.phases import PhaseSpec
from optimplug.recipe.text.schema.recipe import RecipeSpec

__all__ = ["rule_warnings", "schedule_warnings", "tell"]

_logger = logging.getLogger("optimplug")

# In the name of a metric, these tell that a plateau ought to look for a maximum.
_THE_MORE_THE_BETTER = ("acc", "f1", "auc", "bleu")


def rule_warnings(
    spec: RecipeSpec, optimizers: Optimizers, model: nn.Module, grouping: Grouping
) -> Iterator[Problem]:
    """Find what the rules of a recipe ask for in vain.

    Args:
        spec: the recipe.
        optimizers: those that it names.
        model: the model, without wrappers.
        grouping: what the rules make of the model.
    """
    yield from _vain_rules(grouping)
    yield from _vain_settings(optimizers, grouping)
    yield from _vain_storage(optimizers, grouping)
    yield from _schedules_of_averages(spec, grouping)
    yield from _layer_warnings(spec, optimizers, grouping)
    yield from _kind_warnings(spec, model)


def schedule_warnings(
    spec: RecipeSpec, run_schedule: RunSchedule, horizon: Horizon
) -> Iterator[Problem]:
    """Find what the schedules of a recipe, and of its rules, ask for in vain.

    Args:
        spec: the recipe.
        run_schedule: what the phases make of the run.
        horizon: of the run.
    """
    for rule, path, phases in spec.schedules():
        yield from _phase_warnings(path, phases, run_schedule.curves_of(rule), horizon)


def tell(found: Iterable[Problem], source: str | None) -> None:
    """Say as a run begins what its plan warns of, in the log ``optimplug``; one process does.

    Args:
        found: what to say.
        source: the file that the recipe came from.
    """
    # In the log and not by `warnings`, which many turn into errors: a recipe that has no effect in
    # part is still carried out.
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return
    for problem in found:
        _logger.warning("%s%s", f"{source}: " if source else "", problem)


def _layer_warnings(
    spec: RecipeSpec, optimizers: Optimizers, grouping: Grouping
) -> Iterator[Problem]:
    """Find layers that no rule asks for, and what may be wrong about those that were found."""
    asking = [f"groups[{i}]" for i, rule in enumerate(spec.groups) if asks_layers(rule)]
    asking += [choice.path for choice in optimizers if choice.made_for is not None]
    if spec.layers is not None and not asking:
        yield Problem("layers", "has no effect: no rule has layer_decay or a depth")
    if grouping.layout is not None and asking:
        yield from (Problem(asking[0], doubt) for doubt in grouping.layout.doubts)


def _kind_warnings(spec: RecipeSpec, model: nn.Module) -> Iterator[Problem]:
    """Find parameters that may be a norm's, where a rule asks for norms."""
    asking = [i for i, rule in enumerate(spec.groups) if asks_norm(rule)]
    unknown = list(unknown_kinds(model)) if asking else []
    if unknown:
        message = (
            f"kinds that could not be told: {listed(unknown, most=8)}; they are treated as "
            "weights, so name them if they are norms"
        )
        yield Problem(f"groups[{asking[0]}]", message)


class _Effect(NamedTuple):
    """What came of one key of a rule, for one parameter."""

    winner: int
    """The rule whose value the parameter has in the end."""
    frozen: bool
    """Whether the parameter is not trained, so that its value changes nothing."""


_Effects = Mapping[str, Sequence[_Effect]]
"""Of one rule, by its keys."""


def _vain_rules(grouping: Grouping) -> Iterator[Problem]:
    for rule, effects in sorted(_effects(grouping).items()):
        yield from _vain_keys(rule, effects)
    yield from _kept_frozen(grouping)
    for group in grouping.groups:
        if group.lr == 0:
            message = f"lr of group {group.name!r} is 0, so it will not move; freeze it instead"
            yield Problem("groups", message)


def _effects(grouping: Grouping) -> dict[int, dict[str, list[_Effect]]]:
    found: dict[int, dict[str, list[_Effect]]] = {}
    for name, parameter in grouping.parameters.items():
        frozen = name in grouping.frozen
        for key, votes in parameter.votes.items():
            for vote in votes:
                # Of frozen parameters, freezing alone is no vain setting.
                effect = _Effect(votes[-1].rule, frozen and key != "freeze")
                found.setdefault(vote.rule, {}).setdefault(vote.by, []).append(effect)
    return found


def _vain_keys(rule: int, effects: _Effects) -> Iterator[Problem]:
    """Find keys that later rules override for all parameters, or whose parameters are frozen."""
    overridden = [key for key in effects if all(e.winner != rule for e in effects[key])]
    frozen = [
        key for key in effects if key not in overridden and all(e.frozen for e in effects[key])
    ]
    for path, keys in _paths(rule, overridden, effects):
        winners = sorted({effect.winner for key in keys for effect in effects[key]})
        by = ", ".join(f"groups[{winner}]" for winner in winners)
        yield Problem(path, f"is overridden for all its parameters by {by}; remove it")
    for path, _ in _paths(rule, frozen, effects):
        yield Problem(path, "has no effect: all its parameters are frozen")


def _paths(
    rule: int, keys: Sequence[str], effects: _Effects
) -> Iterator[tuple[str, Sequence[str]]]:
    """Return the path of each key; if these are all that the rule has, that of the rule alone."""
    if keys and len(keys) == len(effects):
        yield f"groups[{rule}]", keys
    else:
        yield from ((f"groups[{rule}].{key}", [key]) for key in keys)


def _vain_settings(optimizers: Optimizers, grouping: Grouping) -> Iterator[Problem]:
    """Find which of several optimizers move nothing, and what rules override of them."""
    for choice in optimizers if optimizers.are_several else ():
        own = [group for group in grouping.groups if group.optimizer is choice]
        if not own:
            whole = choice.settings.keys() - settable_per_group(choice.settings)
            beside = f" beside {' and '.join(sorted(whole))}" if whole else ""
            message = f"has no effect{beside}: it has no parameters to train"
            yield Problem(choice.path, message)
            continue
        votes = [grouping.parameters[name].votes for group in own for name in group.parameters]
        for key in choice.settings:
            if all(key in each for each in votes):
                winners = sorted({each[key][-1].rule for each in votes})
                by = ", ".join(f"groups[{winner}]" for winner in winners)
                message = f"is overridden for all its parameters by {by}; remove one of them"
                yield Problem(f"{choice.path}.{key}", message)


def _vain_storage(optimizers: Optimizers, grouping: Grouping) -> Iterator[Problem]:
    """Find what is said of a storage that no parameter has."""
    kept = [
        (group, {**group.optimizer.hyperparameters, **group.settings})
        for group in grouping.groups
        if issubclass(group.optimizer.optimizer_class, Optimizer)
    ]
    in_codes = [group for group, settings in kept if settings.get("state_dtype") == "8bit"]
    draws = any(settings.get("rounding") == "stochastic" for _, settings in kept)
    for choice in optimizers if kept else ():
        if choice.settings.get("compact_state") and not in_codes:
            yield Problem(f"{choice.path}.compact_state", "has no effect without state_dtype: 8bit")
        if "rounding_seed" in choice.settings and not draws:
            message = "has no effect without rounding: stochastic"
            yield Problem(f"{choice.path}.rounding_seed", message)
    if in_codes and not any(map(_has_large, in_codes)):
        message = f"is float32 for all, as no parameter has {SMALLEST:,} elements, which 8bit needs"
        yield Problem(f"{in_codes[0].optimizer.path}.state_dtype", message)


def _has_large(group: Group) -> bool:
    return any(p.numel() >= SMALLEST for p in group.parameters.values())


def _schedules_of_averages(spec: RecipeSpec, grouping: Grouping) -> Iterator[Problem]:
    """Find schedules of rates for optimizers that average weights in their stead."""
    of_rates = {
        rule: path
        for rule, path, phases in spec.schedules()
        if any((phase.of or "lr") == "lr" for phase in phases)
    }
    without = {rule for rule, _, phases in spec.schedules() if not phases}
    found: dict[tuple[str, str], None] = {}
    for group in grouping.groups:
        # What the schedule-free optimizers of every package have, and no others.
        if "weight_lr_power" in group.optimizer.known and group.schedule not in without:
            path = of_rates.get(group.schedule, of_rates.get(None))
            if path is not None:
                found[path, group.optimizer.name.rpartition(".")[2]] = None
    for path, name in found:
        message = (
            f"{name} is schedule-free: its average does what a falling rate is for; leave the "
            "schedule out, or say 'schedule: []' in a rule for its parameters; 'warmup_steps' of "
            "the optimizer is its warm-up"
        )
        yield Problem(path, message)


def _kept_frozen(grouping: Grouping) -> Iterator[Problem]:
    """Find rules with ``freeze: false`` for parameters that the model itself has frozen."""
    counts: dict[int, int] = {}
    for name in grouping.frozen:
        votes = grouping.parameters[name].votes.get("freeze", ())
        if votes and not votes[-1].value:
            counts[votes[-1].rule] = counts.get(votes[-1].rule, 0) + 1
    for rule, count in sorted(counts.items()):
        tensors = "1 tensor stays" if count == 1 else f"{count} tensors stay"
        message = f"{tensors} frozen: the model says requires_grad=False; set it to True there"
        yield Problem(f"groups[{rule}].freeze", message)


def _phase_warnings(
    path: str, phases: Sequence[PhaseSpec], curves: Mapping[str, Curve], horizon: Horizon
) -> Iterator[Problem]:
    """Find phases without effect, and a rate that is 0 before the run is over."""
    for of, curve in curves.items():
        own = [(f"{path}[{i}]", spec) for i, spec in enumerate(phases) if (spec.of or "lr") == of]
        before: Phase | None = None
        # A rule that schedules weight_decay alone keeps the recipe's curve of lr, without phases.
        for (where, spec), phase in zip(own, curve.phases, strict=False):
            yield from _part_warnings(where, spec, phase.steps, horizon)
            if phase.steps == 0:
                yield Problem(where, f"{phase.name} takes 0 steps, so it does nothing")
                continue
            if before is not None and spec.from_ is None:
                yield from _jump_warnings(where, before, phase, of)
            before = phase
            start = curve(phase.start)
            # A cycle starts at its floor.
            if spec.floor is not None and spec.floor >= start and not row_of(spec).needs_floor:
                message = f"{spec.floor:g} is not below where the phase starts, {start:g} x {of}"
                yield Problem(f"{where}.floor", message)
    curve, total = curves["lr"], horizon.total_steps
    if curve.phases and total is not None and curve.end < total and curve(curve.end) == 0:
        left = total - curve.end
        yield Problem(path, f"lr is 0 for the last {left} of {total} steps, after the phases")


def _jump_warnings(where: str, before: Phase, phase: Phase, of: str) -> Iterator[Problem]:
    """Find a phase that does not start where the one before it ends, without saying so."""
    how = "say 'from: previous' to go on from there, or 'from: peak' if this is meant"
    if before.follows_metrics:
        yield Problem(
            where, f"starts at its own {of}, whatever {before.name} has made of it; {how}"
        )
        return
    end, start = before.end, phase(phase.start)
    if not math.isclose(end, start, rel_tol=0.01, abs_tol=1e-9):
        yield Problem(where, f"{of} jumps from {end:.3g} x its own to {start:.3g} x; {how}")


def _part_warnings(where: str, spec: PhaseSpec, steps: int, horizon: Horizon) -> Iterator[Problem]:
    """Find what is probably not meant in the arguments of a phase, or of its parts."""
    for path, part in parts_of(spec, where):
        turning = turning_point(part, steps, horizon) if steps > 0 else None
        if turning is not None:
            key, given, length = turning
            message = (
                f"is {given} of the phase's {length} {part.every or 'step'}s, so that it falls"
            )
            yield Problem(
                f"{path}.{key}", f"{message}, rises again, and so on; leave it out to fall once"
            )
        words = [word for word in _THE_MORE_THE_BETTER if word in (part.monitor or "").lower()]
        if words and "mode" not in (part.model_extra or {}):
            message = f"{part.monitor!r} is better the higher it is, it seems, but mode is 'min'"
            yield Problem(f"{path}.monitor", f"{message}; say 'mode: max', or 'mode: min'")
