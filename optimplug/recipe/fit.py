"""Fits a checked recipe to a model and to a horizon: groups of parameters, and curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from optimplug.errors import ArgumentError
from optimplug.recipe.check import CheckedRecipe
from optimplug.recipe.lengths import length_problems
from optimplug.recipe.parameters.groups import Grouping, group_parameters
from optimplug.recipe.schedule.curves import Curve
from optimplug.recipe.schedule.timeline import Curves, RunSchedule, compile_schedule, until
from optimplug.recipe.text.durations import Horizon
from optimplug.recipe.text.problems import Problems
from optimplug.recipe.text.rule_id import RuleId
from optimplug.recipe.text.schema.phases import PhaseSpec

__all__ = ["fit", "fit_to_horizon", "fit_to_model"]


def fit(recipe: CheckedRecipe, model: nn.Module, horizon: Horizon) -> tuple[Grouping, RunSchedule]:
    """Fit the rules to the model and the phases to the horizon.

    Raises:
        RecipeError: what does not fit, of both together. The model is as it was.
    """
    # Both are always tried, so that the recipe's author learns at once what is wrong with either.
    wrong = Problems()
    with wrong.caught():
        grouping = fit_to_model(recipe, model)
    with wrong.caught():
        run_schedule = fit_to_horizon(recipe, horizon)
    wrong.raise_if_any()
    return grouping, run_schedule


def fit_to_model(recipe: CheckedRecipe, model: nn.Module) -> Grouping:
    """Put the model's parameters into groups; the model is not changed.

    Raises:
        RecipeError: the rules do not fit the model.
        ArgumentError: it is no model.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module (got {model!r})")
    spec = recipe.spec
    return group_parameters(
        model, recipe.optimizers, spec.groups, recipe.rule_settings, spec.layers
    )


def fit_to_horizon(recipe: CheckedRecipe, horizon: Horizon) -> RunSchedule:
    """Lay out every schedule over the run, and for how long rules freeze.

    Raises:
        RecipeError: the horizon lacks what a duration needs, or phases do not fit into it.
    """
    wrong = Problems()
    shared: Curves = {}
    own: dict[RuleId, Curves] = {}
    for rule, path, phases in recipe.spec.schedules():
        with wrong.caught():
            curves = compile_schedule(phases, horizon, recipe.optimizers.hyperparameters, path)
            if rule is None:
                shared = curves
            else:
                own[rule] = _own_curves(curves, phases)
    frozen_until: dict[RuleId, int] = {}
    for rule, duration in recipe.spec.freezes():
        with wrong.caught():
            frozen_until[rule] = until(duration, horizon, f"{rule.path}.freeze.until")
    rewarm = recipe.spec.resuming.rewarm
    if rewarm is not None:
        with wrong.caught():
            until(rewarm, horizon, "resume.rewarm")
    for path, settings in _written_settings(recipe):
        wrong.extend(length_problems(path, settings, horizon))
    wrong.raise_if_any()
    return RunSchedule(shared, own, frozen_until, horizon.total_steps)


def _written_settings(recipe: CheckedRecipe) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Walk the hyperparameters that a recipe gives, each time with where they stand."""
    for choice in recipe.optimizers:
        yield choice.path, choice.settings
    for i, settings in enumerate(recipe.rule_settings):
        yield f"groups[{i}]", settings


def _own_curves(curves: Mapping[str, Curve], phases: Sequence[PhaseSpec]) -> Curves:
    """Return the curves that a rule puts in place of the recipe's: those that it speaks of.

    One with a schedule for ``weight_decay`` leaves the recipe's for ``lr`` in force. One with no
    phases at all keeps ``lr`` as it is.
    """
    named = {phase.of or "lr" for phase in phases} or {"lr"}
    return {of: curve for of, curve in curves.items() if of in named}
