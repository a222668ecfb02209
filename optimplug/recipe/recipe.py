"""Recipe: reads what is to be done, plans it, builds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from optimplug.errors import Problem, RecipeError
from optimplug.recipe.durations import Horizon
from optimplug.recipe.groups import Grouping, group_parameters
from optimplug.recipe.plan import Plan
from optimplug.recipe.reader import Source, read
from optimplug.recipe.resolve import (
    no_decay_problems,
    optimizer_class,
    optimizer_problems,
    parameters_of,
)
from optimplug.recipe.schedule import Curve, RecipeScheduler, compile_schedule, phase_problems
from optimplug.recipe.schema import RecipeSpec, RuleSpec, problems

__all__ = ["Recipe"]


class Recipe:
    """An optimizer, its parameter groups and its schedule, said once.

    Build one with :meth:`load`; all that can be checked without a model is checked there.

    Args:
        spec: the recipe, valid in its form.
        source: the file that it came from, for error messages.

    Raises:
        RecipeError: an optimizer, a scheduler or an argument does not exist or breaks its rule.

    Example:
        >>> recipe = Recipe.load({"optimizer": {"name": "AdamW", "lr": 3e-4}})
        >>> optimizer, scheduler = recipe.build(nn.Linear(2, 2), Horizon(total_steps=10))
        >>> scheduler.get_last_lr()
        [0.0003]
    """

    def __init__(self, spec: RecipeSpec, source: str | None = None) -> None:
        self.spec = spec
        self.source = source
        wrong = phase_problems(spec.schedule)
        try:
            self._optimizer_class = optimizer_class(spec.optimizer.name)
        except RecipeError as error:
            raise RecipeError([*error.problems, *wrong], source) from None
        self._settings = self._tuples(spec.optimizer.model_extra or {})
        self._rule_values = [self._tuples(rule.model_extra or {}) for rule in spec.groups]
        rule_keys = [field.alias or name for name, field in RuleSpec.model_fields.items()]
        found = optimizer_problems(
            self._optimizer_class, self._settings, list(self._rule_values), rule_keys
        )
        spared = no_decay_problems(self._optimizer_class, (r.no_decay for r in spec.groups))
        wrong = [*found, *spared, *wrong]
        if wrong:
            raise RecipeError(wrong, source)

    @classmethod
    def load(cls, source: Source | Recipe) -> Recipe:
        """Read and check a recipe.

        Args:
            source: a path to a YAML file, a mapping (a dict, an OmegaConf node), or a recipe,
                which is returned as it is.

        Raises:
            RecipeError: everything found wrong, each with its path in the recipe: in its form, or,
                where that is right, in its meaning.
        """
        if isinstance(source, Recipe):
            return source
        content, name = read(source)
        try:
            return cls(RecipeSpec.model_validate(content), name)
        except ValidationError as error:
            raise RecipeError(problems(error), name) from None

    def plan(self, model: nn.Module, horizon: Horizon) -> Plan:
        """Say what the recipe will do to a model; the model is not changed.

        Raises:
            RecipeError: the rules do not fit the model, or the phases the horizon.
        """
        grouping, curve = self._resolve(model, horizon)
        self._construct(grouping)  # what it refuses, a plan must not promise
        return Plan(
            self.spec.optimizer.name, self._settings, self._defaults, grouping, curve, horizon
        )

    def build(
        self, model: nn.Module, horizon: Horizon
    ) -> tuple[torch.optim.Optimizer, RecipeScheduler]:
        """Build the optimizer over the model's groups, and its scheduler, stepped once per update.

        Parameters that the recipe freezes stop requiring gradients.

        Raises:
            RecipeError: the rules do not fit the model, or the phases the horizon. The model is as
                it was then.
        """
        grouping, curve = self._resolve(model, horizon)
        optimizer = self._optimizer(grouping)
        return optimizer, RecipeScheduler(optimizer, curve)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer alone; for trainers that ask for the two at different times."""
        with self._located():
            grouping = self._group(model)
        return self._optimizer(grouping)

    def build_scheduler(
        self, optimizer: torch.optim.Optimizer, horizon: Horizon
    ) -> RecipeScheduler:
        """Build the scheduler alone, for an optimizer of :meth:`build_optimizer`."""
        with self._located():
            curve = compile_schedule(self.spec.schedule, horizon)
        return RecipeScheduler(optimizer, curve)

    @property
    def max_grad_norm(self) -> float | None:
        """The clipping threshold that the recipe asks for, if any."""
        return self._settings.get("max_grad_norm")

    @property
    def _defaults(self) -> dict[str, Any]:
        """The optimizer's hyperparameters where no rule says otherwise."""
        known = parameters_of(self._optimizer_class, without=("params",))
        return {**{name: p.default for name, p in known.items()}, **self._settings}

    def _resolve(self, model: nn.Module, horizon: Horizon) -> tuple[Grouping, Curve]:
        """Fit the rules to the model and the phases to the horizon; report on both together."""
        wrong: list[Problem] = []
        grouping = curve = None
        try:
            grouping = self._group(model)
        except RecipeError as error:
            wrong += error.problems
        try:
            curve = compile_schedule(self.spec.schedule, horizon)
        except RecipeError as error:
            wrong += error.problems
        if grouping is None or curve is None:
            raise RecipeError(wrong, self.source)
        return grouping, curve

    def _group(self, model: nn.Module) -> Grouping:
        return group_parameters(model, self._defaults, self.spec.groups, self._rule_values)

    def _optimizer(self, grouping: Grouping) -> torch.optim.Optimizer:
        optimizer = self._construct(grouping)
        for parameter in grouping.frozen.values():
            parameter.requires_grad_(False)
        return optimizer

    def _construct(self, grouping: Grouping) -> torch.optim.Optimizer:
        groups = [group.as_param_group() for group in grouping.groups]
        try:
            return self._optimizer_class(groups, **self._settings)
        except (ValueError, TypeError, RuntimeError) as error:
            raise RecipeError([Problem("optimizer", str(error))], self.source) from error

    def _tuples(self, given: dict[str, Any]) -> dict[str, Any]:
        """Turn a YAML list into a tuple where the optimizer's own default is one: betas."""
        known = parameters_of(self._optimizer_class, without=("params",))
        return {
            key: tuple(value)
            if isinstance(value, list) and key in known and isinstance(known[key].default, tuple)
            else value
            for key, value in given.items()
        }

    @contextmanager
    def _located(self) -> Iterator[None]:
        """Put the recipe's file before every problem."""
        try:
            yield
        except RecipeError as error:
            raise RecipeError(error.problems, self.source) from None

    def __repr__(self) -> str:
        return f"Recipe({self.spec.model_dump(exclude_unset=True, by_alias=True)})"
