"""What can be checked of a recipe without a model: its form, its names, its values."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optimplug.errors import Problem, RecipeError
from optimplug.recipe.resolve import (
    Choice,
    Optimizers,
    hyperparameters_of,
    optimizer_class,
)
from optimplug.recipe.schedule.timeline import schedule_problems, target_problems
from optimplug.recipe.text.form import validated
from optimplug.recipe.text.problems import Problems
from optimplug.recipe.text.schema.optimizers import FallbackSpec, RuleOptimizerSpec
from optimplug.recipe.text.schema.recipe import RecipeSpec
from optimplug.recipe.text.schema.rules import RuleSpec
from optimplug.recipe.values import no_decay_problems, optimizer_problems

__all__ = ["CheckedRecipe", "check", "checked_form"]

# What takes the place of a rule or a phase of wrong form, while the others are checked. The phase
# has no length, so that the others fit as they did.
_HARMLESS: dict[str, dict[str, Any]] = {
    "groups": {"lr_scale": 1.0},
    "schedule": {"name": "ConstantLR", "factor": 1.0, "for": 0},
}


@dataclass(frozen=True)
class CheckedRecipe:
    """A recipe whose names are resolved, and whose values the optimizer takes."""

    spec: RecipeSpec
    optimizers: Optimizers
    """Those under ``optimizer``, and those of rules."""
    rule_settings: Sequence[Mapping[str, Any]]
    """The hyperparameters of each rule under ``groups``."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The hyperparameters under ``optimizer``."""
        return self.optimizers.main.settings

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those of the recipe's optimizer, where no rule sets them: its defaults, and settings."""
        return self.optimizers.main.hyperparameters


def checked_form(content: Mapping[str, Any]) -> RecipeSpec:
    """Return a recipe's content as a spec.

    Raises:
        RecipeError: everything that is wrong with its form. To spare its author a second round, so
            is what is wrong with names and values, in those parts whose form is right.
    """
    try:
        return validated(RecipeSpec, content)
    except RecipeError as error:
        others = _problems_elsewhere(content, {_part_of(p.path) for p in error.problems})
        raise RecipeError([*error.problems, *others]) from None


def check(spec: RecipeSpec) -> CheckedRecipe:
    """Resolve the names in a recipe and check its values.

    Raises:
        RecipeError: everything that is wrong with them.
    """
    wrong = Problems()
    of_phases = [p for _, path, phases in spec.schedules() for p in schedule_problems(phases, path)]
    with wrong.caught():
        # Without its class nothing more can be said of the optimizer, but of the phases it can.
        recipe = _resolved(spec)
        wrong.extend(_optimizer_problems(recipe))
        of_phases += _target_problems(recipe)
    wrong.extend(of_phases)
    wrong.raise_if_any()
    return recipe


def _resolved(spec: RecipeSpec) -> CheckedRecipe:
    wrong = Problems()
    chosen: dict[int, Choice] = {}
    with wrong.caught():
        main = _choice("optimizer", spec.optimizer)
    for i, rule in enumerate(spec.groups):
        with wrong.caught():
            if rule.optimizer is not None:
                chosen[i] = _choice(f"groups[{i}].optimizer", rule.optimizer)
    wrong.raise_if_any()
    optimizers = Optimizers(main, chosen)
    classes = [choice.optimizer_class for choice in optimizers]
    settings = [_with_tuples(rule.model_extra or {}, classes) for rule in spec.groups]
    return CheckedRecipe(spec, optimizers, settings)


def _choice(path: str, named: FallbackSpec) -> Choice:
    """Return an optimizer that a recipe names, with what it falls back to."""
    cls = optimizer_class(named.name, path)
    fallback = named.fallback if isinstance(named, RuleOptimizerSpec) else None
    return Choice(
        path,
        named.name,
        cls,
        _with_tuples(named.model_extra or {}, [cls]),
        None if fallback is None else _choice(f"{path}.fallback", fallback),
    )


def _with_tuples(
    given: Mapping[str, Any], classes: Sequence[type[torch.optim.Optimizer]]
) -> dict[str, Any]:
    """Turn lists into tuples where an optimizer's own default is one: YAML has only lists."""
    # A rule that sets the default's value makes no new group, and a list never equals a tuple.
    known = [item for cls in classes for item in hyperparameters_of(cls).items()]
    tuples = {key for key, p in known if isinstance(p.default, tuple)}
    return {
        key: tuple(value) if key in tuples and isinstance(value, list) else value
        for key, value in given.items()
    }


def _optimizer_problems(recipe: CheckedRecipe) -> Iterator[Problem]:
    rule_keys = [field.alias or name for name, field in RuleSpec.model_fields.items()]
    yield from optimizer_problems(recipe.optimizers, recipe.rule_settings, rule_keys)
    yield from no_decay_problems(recipe.optimizers, (rule.no_decay for rule in recipe.spec.groups))


def _target_problems(recipe: CheckedRecipe) -> Iterator[Problem]:
    names = dict.fromkeys(choice.name for choice in recipe.optimizers)
    owner = ", ".join(names) if len(names) == 1 else f"each of {', '.join(names)}"
    bases = recipe.optimizers.hyperparameters
    for _, path, phases in recipe.spec.schedules():
        yield from target_problems(phases, bases, owner, path)


def _problems_elsewhere(content: Mapping[str, Any], bad: Collection[str]) -> list[Problem]:
    """Check a recipe without its bad parts, which are keys, rules (groups[2]) or phases."""
    rest = {key: value for key, value in content.items() if key in RecipeSpec.model_fields}
    if "optimizer" in bad or "optimizer" not in rest:
        return []  # what is left to check depends on the optimizer
    for key, harmless in _HARMLESS.items():
        if key in bad or not isinstance(rest.get(key), list):
            rest.pop(key, None)
        else:
            # Without it, a bad item would leave its number to the next one.
            items = enumerate(rest[key])
            rest[key] = [harmless if f"{key}[{i}]" in bad else item for i, item in items]
    wrong = Problems()
    with wrong.caught():
        check(validated(RecipeSpec, rest))
    return [problem for problem in wrong if _part_of(problem.path) not in bad]


def _part_of(path: str) -> str:
    """Return the rule or the phase that a path leads into, or else the recipe's key."""
    return re.match(r"[^.\[]*(\[\d+\])?", path)[0]  # type: ignore[index] # it always matches
