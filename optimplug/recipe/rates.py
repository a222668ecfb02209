"""Warnings of a learning rate that is probably not meant: what is usual differs by optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from optimplug._core.optim.facts import Facts, Rates
from optimplug.errors import Problem
from optimplug.recipe.resolve import Choice
from optimplug.recipe.text.rule_id import RuleId
from optimplug.recipe.text.schema.recipe import RecipeSpec

__all__ = ["lr_schedule_warnings", "rate_warnings", "written_rates"]


def rate_warnings(optimizers: Iterable[Choice]) -> Iterator[Problem]:
    """Find rates that an optimizer is not commonly run with, such as AdamW's for Lion.

    Args:
        optimizers: all that the recipe names; nothing is known of those of others.
    """
    for choice in optimizers:
        facts, hyper = _facts_of(choice), choice.hyperparameters
        if facts is not None:
            yield from _rate_warnings(choice, hyper.get("lr"), facts.common_rates(hyper))


def _rate_warnings(choice: Choice, lr: Any, common: Rates | None) -> Iterator[Problem]:
    # A rate of 0 is told by the groups that have it.
    if common is None or not isinstance(lr, int | float) or lr == 0:
        return
    if not common.least <= lr <= common.most:
        side = "above" if lr > common.most else "below"
        bound = common.most if lr > common.most else common.least
        message = f"{lr:g} is {side} what {choice.name} is commonly run with ({bound:g})"
        yield Problem(f"{choice.path}.lr", f"{message}: {common.why}")


def written_rates(spec: RecipeSpec, optimizers: Iterable[Choice]) -> dict[str, float]:
    """Return the rates that the groups' own are made from, by the paths where a recipe has them.

    Args:
        spec: the recipe.
        optimizers: all that it names, with the defaults of their classes.
    """
    rates = {f"{choice.path}.lr": choice.hyperparameters.get("lr") for choice in optimizers}
    rules = {RuleId(i).path: rule.model_extra or {} for i, rule in enumerate(spec.groups)}
    rates |= {f"{path}.lr": given["lr"] for path, given in rules.items() if "lr" in given}
    return {path: float(lr) for path, lr in rates.items() if isinstance(lr, int | float)}


def lr_schedule_warnings(spec: RecipeSpec, optimizers: Iterable[Choice]) -> Iterator[Problem]:
    """Find schedules of lr where no optimizer looks at it after its first step.

    Args:
        spec: the recipe.
        optimizers: all that it names.
    """
    choices = list(optimizers)
    found = list(map(_facts_of, choices))
    if not all(facts is not None and facts.lr_only_begins for facts in found):
        return
    names = " and ".join(choice.name for choice in choices)
    for _, path, phases in spec.schedules():
        if any((phase.of or "lr") == "lr" for phase in phases):
            message = f"{names} takes lr at a parameter's first step alone; remove the schedule"
            yield Problem(path, f"has no effect on lr after that: {message}")


def _facts_of(choice: Choice) -> Facts | None:
    """Return what is known of an optimizer: nothing of other people's."""
    found = getattr(choice.optimizer_class, "facts", None)
    return found if isinstance(found, Facts) else None
