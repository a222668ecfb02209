"""Warnings of a learning rate that is probably not meant: what is usual differs by optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from optimplug._core.optim.facts import Facts
from optimplug.errors import Problem
from optimplug.recipe.text.schema import RecipeSpec

__all__ = ["lr_schedule_warnings", "rate_warnings"]


def rate_warnings(
    path: str, cls: type[Optimizer], hyperparameters: Mapping[str, Any]
) -> Iterator[Problem]:
    """Find a rate that the optimizer is not commonly run with, such as AdamW's for Lion.

    Args:
        path: where the optimizer stands in the recipe.
        cls: its class; nothing is known of those of others.
        hyperparameters: all of them, defaults too.
    """
    facts = _facts_of(cls)
    if facts is None:
        return
    lr, common = hyperparameters.get("lr"), facts.common_rates(hyperparameters)
    # A rate of 0 is told by the groups that have it.
    if common is None or not isinstance(lr, int | float) or lr == 0:
        return
    if not common.least <= lr <= common.most:
        side = "above" if lr > common.most else "below"
        bound = common.most if lr > common.most else common.least
        message = f"{lr:g} is {side} what {cls.__name__} is commonly run with ({bound:g})"
        yield Problem(f"{path}.lr", f"{message}: {common.why}")


def lr_schedule_warnings(spec: RecipeSpec, classes: Sequence[type[Optimizer]]) -> Iterator[Problem]:
    """Find schedules of lr where no optimizer looks at it after its first step.

    Args:
        spec: the recipe.
        classes: of all its optimizers.
    """
    found = list(map(_facts_of, classes))
    if not all(facts is not None and facts.lr_only_begins for facts in found):
        return
    names = " and ".join(cls.__name__ for cls in classes)
    for _, path, phases in spec.schedules():
        if any((phase.of or "lr") == "lr" for phase in phases):
            message = f"{names} takes lr at a parameter's first step alone; remove the schedule"
            yield Problem(path, f"has no effect on lr after that: {message}")


def _facts_of(cls: type[Optimizer]) -> Facts | None:
    """Return what is known of an optimizer: nothing of other people's."""
    found = getattr(cls, "facts", None)
    return found if isinstance(found, Facts) else None
