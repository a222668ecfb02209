"""A schedule without the rest of a recipe, for an optimizer that someone has already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from optimplug import optim
from optimplug._core.arguments import owner_of
from optimplug.recipe.schedule.scheduler import RecipeScheduler
from optimplug.recipe.schedule.timeline import (
    RunSchedule,
    compile_schedule,
    schedule_problems,
    target_problems,
)
from optimplug.recipe.text.durations import Horizon, require_horizon
from optimplug.recipe.text.form import validated
from optimplug.recipe.text.plain import plain
from optimplug.recipe.text.problems import Problems
from optimplug.recipe.text.schema.phases import ScheduleSpec
from optimplug.recipe.text.written import Written

__all__ = ["Schedule", "build_scheduler"]

Schedule: TypeAlias = "str | Mapping[str, Any] | Sequence[Mapping[str, Any]]"
"""What a recipe says under ``schedule``: a preset's name, one phase, or phases in sequence."""


def build_scheduler(
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    horizon: Horizon,
) -> RecipeScheduler:
    """Build the scheduler that a recipe would have, for any optimizer.

    For a whole recipe there is :meth:`Recipe.build_scheduler`.

    Args:
        schedule: a preset's name, one phase, or phases in sequence.
        optimizer: of any class of ``torch.optim.Optimizer``.
        horizon: how long the run is.

    Raises:
        RecipeError: everything found wrong, each with its path. The optimizer is as it was then.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = build_scheduler("linear", optimizer, Horizon(total_steps=4))
        >>> optimizer.step()
        >>> scheduler.step()
        >>> scheduler.get_last_lr()
        [0.75]
    """
    require_horizon(horizon)
    # A wrapper, as accelerate's, does not own the groups.
    owner = owner_of(optimizer)
    written = Written(plain({"schedule": schedule}))
    with written.located():
        phases = validated(ScheduleSpec, written.content).schedule
        wrong = Problems()
        wrong.extend(schedule_problems(phases))
        bases = owner.defaults
        if isinstance(owner, optim.MultiOptimizer):  # there each group has its own
            bases = owner.hyperparameters
        wrong.extend(target_problems(phases, bases, type(owner).__name__))
        wrong.raise_if_any()
        curves = compile_schedule(phases, horizon, bases)
    return RecipeScheduler(owner, RunSchedule(curves, total_steps=horizon.total_steps))
