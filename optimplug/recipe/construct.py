"""The optimizer of a recipe, constructed over its groups, and what these weigh with its state."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeGuard

import torch

from optimplug import optim
from optimplug._core.optim.memory import Memory, memory_of, state_bytes_of_groups
from optimplug.errors import RecipeError
from optimplug.recipe.check import CheckedRecipe
from optimplug.recipe.clipped import construct
from optimplug.recipe.parameters.groups import Grouping
from optimplug.recipe.resolve import settable_per_group

__all__ = ["construct_optimizer", "memory_of_groups"]


def construct_optimizer(
    recipe: CheckedRecipe, grouping: Grouping, without: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Construct the optimizer over the groups of a model; the model is not changed.

    Args:
        recipe: which optimizer, and its settings.
        grouping: the groups.
        without: settings that are left out.

    Raises:
        RecipeError: the class refuses the groups or the settings.
    """
    groups = [group.as_param_group() for group in grouping.groups]
    settings = {k: v for k, v in recipe.settings.items() if k not in without}
    cls = recipe.optimizers.main.optimizer_class
    if recipe.optimizers.are_several:
        cls = optim.MultiOptimizer
        for name in settable_per_group(settings):
            del settings[name]  # those of one of them alone
    try:
        return construct(cls, groups, settings)
    except (ValueError, TypeError, RuntimeError) as error:
        raise RecipeError.at("optimizer", str(error)) from error


def memory_of_groups(recipe: CheckedRecipe, grouping: Grouping) -> tuple[Memory, ...]:
    """Return what each group weighs, with its state where that is known.

    Raises:
        RecipeError: as :func:`construct_optimizer`.
    """
    # It is constructed for other optimizers too: what it refuses must be an error of the plan.
    optimizer = construct_optimizer(recipe, grouping, without=_unknown_on_meta(grouping))
    states: Sequence[int | None] = [None] * len(grouping.groups)
    if _is_own(optimizer):
        states = state_bytes_of_groups(optimizer)
    params = [group.parameters.values() for group in grouping.groups]
    return tuple(map(memory_of, params, states))


def _is_own(optimizer: torch.optim.Optimizer) -> TypeGuard[optim.Optimizer]:
    """Tell whether its state is known: a class of this package, not one derived from it."""
    return type(optimizer) in [getattr(optim, name) for name in optim.__all__]


def _unknown_on_meta(grouping: Grouping) -> tuple[str, ...]:
    """Return the settings that only the device can judge, if the model is on none yet."""
    on_meta = any(p.is_meta for group in grouping.groups for p in group.parameters.values())
    return ("fused", "capturable") if on_meta else ()
