"""Recipe: reads what is to be done, plans it, builds it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

from optimplug import optim
from optimplug._core.optim.memory import state_bytes
from optimplug.errors import RecipeError
from optimplug.recipe.check import check, checked_form
from optimplug.recipe.fit import fit, fit_to_horizon, fit_to_model
from optimplug.recipe.json_schema import json_schema
from optimplug.recipe.parameters.depth import Layout, find_layout
from optimplug.recipe.parameters.explain import Explanation, explain
from optimplug.recipe.parameters.groups import Grouping
from optimplug.recipe.plan import Plan
from optimplug.recipe.resolve import settable_per_group
from optimplug.recipe.schedule.scheduler import RecipeScheduler
from optimplug.recipe.text.durations import Horizon
from optimplug.recipe.text.reader import Source, read
from optimplug.recipe.text.schema import RecipeSpec
from optimplug.recipe.text.written import Written
from optimplug.recipe.warnings import plan_warnings

if TYPE_CHECKING:
    from optimplug.recipe.run import Run

__all__ = ["Recipe"]


class Recipe:
    """An optimizer, its parameter groups and its schedule, written once for every runtime.

    Build one with :meth:`load`; all that can be checked without a model is checked there.

    Args:
        spec: the recipe, valid in its form.
        source: the file that it came from, for error messages.
        content: what is in that file, so that messages name keys as they are written there.

    Raises:
        RecipeError: an optimizer, a scheduler or an argument does not exist or breaks its rule.

    Example:
        >>> recipe = Recipe.load({"optimizer": {"name": "AdamW", "lr": 3e-4}})
        >>> optimizer, scheduler = recipe.build(nn.Linear(2, 2), Horizon(total_steps=10))
        >>> scheduler.get_last_lr()
        [0.0003]
    """

    def __init__(
        self,
        spec: RecipeSpec,
        source: str | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> None:
        self.spec = spec
        self.source = source
        self._written = Written(content or {}, source)
        with self._written.located():
            self._checked = check(spec)

    @classmethod
    def load(cls, source: Source | Recipe) -> Recipe:
        """Read and check a recipe.

        Args:
            source: a path to a YAML file, YAML itself (a string with a line break or ``": "`` in
                it, or with ``{`` at its start), a mapping (a dict, an OmegaConf node), or a recipe,
                which is returned as it is.

        Raises:
            RecipeError: everything found wrong, each with its path in the recipe: in its form, or,
                where that is right, in its meaning.
        """
        if isinstance(source, Recipe):
            return source
        content, name = read(source)
        with Written(content, name).located():
            spec = checked_form(content)
        return cls(spec, name, content)

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """Return the JSON Schema of recipes, for editors: what they can check without a model."""
        return json_schema()

    def plan(self, model: nn.Module, horizon: Horizon) -> Plan:
        """Return what the recipe will do to a model; the model is not changed.

        Raises:
            RecipeError: the rules do not fit the model, or the phases the horizon.
        """
        with self._written.located():
            grouping, run_schedule = fit(self._checked, model, horizon)
        found = plan_warnings(self.spec, model, grouping, run_schedule, horizon)
        return Plan(
            optimizer=self.spec.optimizer.name,
            settings=self._checked.settings,
            defaults=self.hyperparameters,
            grouping=grouping,
            run_schedule=run_schedule,
            horizon=horizon,
            rules=self.spec.groups,
            layout=grouping.layout or _layout_if_any(model),
            state_bytes=self._state_bytes(grouping),
            warnings=tuple(self._written.problem(path, message) for path, message in found),
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
        with self._written.located():
            grouping, run_schedule = fit(self._checked, model, horizon)
        optimizer = self._optimizer(grouping)
        return optimizer, RecipeScheduler(optimizer, run_schedule)

    def start(self, model: nn.Module, horizon: Horizon) -> Run:
        """Build both as :meth:`build` does, and return them as a run: what a loop is written with.

        Raises:
            RecipeError: the rules do not fit the model, or the phases the horizon. The model is as
                it was then.

        Example:
            >>> recipe = Recipe.load({"optimizer": {"name": "AdamW", "lr": 3e-4}})
            >>> model = nn.Linear(2, 2)
            >>> run = recipe.start(model, Horizon(total_steps=10))
            >>> model(torch.ones(1, 2)).sum().backward()
            >>> run.step()
        """
        from optimplug.recipe.run import Run  # it is built on recipes

        return Run(self, model, horizon)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer alone; for trainers that ask for the two at different times."""
        return self._optimizer(self._group(model))

    def build_scheduler(
        self, optimizer: torch.optim.Optimizer, horizon: Horizon
    ) -> RecipeScheduler:
        """Build the scheduler alone, for an optimizer of :meth:`build_optimizer`."""
        with self._written.located():
            run_schedule = fit_to_horizon(self._checked, horizon)
        return RecipeScheduler(optimizer, run_schedule)

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Build the groups alone, for an optimizer of one's own.

        Parameters that the recipe freezes stop requiring gradients. A group has its ``lr``, the
        hyperparameters that the recipe sets for it, and those that it sets for all groups; not what
        the optimizer has as a whole (``max_grad_norm``).

        Raises:
            RecipeError: the rules do not fit the model, which is as it was then.

        Example:
            >>> rules = [{"match": "*bias", "weight_decay": 0}]
            >>> recipe = Recipe.load({"optimizer": {"name": "AdamW", "lr": 0.1}, "groups": rules})
            >>> optimizer = torch.optim.AdamW(recipe.param_groups(nn.Linear(2, 2)))
            >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
            [('weight', 0.01), ('bias', 0)]
        """
        grouping = self._group(model)
        grouping.freeze()
        settings = self._checked.settings
        shared = {name: settings[name] for name in settable_per_group(settings)}
        return [{**shared, **group.as_param_group()} for group in grouping.groups]

    def explain(self, model: nn.Module, name: str) -> Explanation:
        """Tell why a parameter has its settings; as :meth:`Plan.explain`, without a horizon.

        Raises:
            RecipeError: the rules do not fit the model.
            ArgumentError: the model has no parameter of that name.
        """
        return explain(name, self._group(model), self.spec.groups, self.hyperparameters)

    @property
    def max_grad_norm(self) -> float | None:
        """The clipping threshold that the recipe asks for, if any."""
        return self._checked.settings.get("max_grad_norm")

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The optimizer's hyperparameters, as they are where no rule sets them."""
        return self._checked.hyperparameters

    def _group(self, model: nn.Module) -> Grouping:
        with self._written.located():
            return fit_to_model(self._checked, model)

    def _optimizer(self, grouping: Grouping) -> torch.optim.Optimizer:
        optimizer = self._construct(grouping)
        # Only now, when nothing can fail any more: a model is not left half prepared.
        grouping.freeze()
        return optimizer

    def _construct(
        self, grouping: Grouping, without: Collection[str] = ()
    ) -> torch.optim.Optimizer:
        groups = [group.as_param_group() for group in grouping.groups]
        settings = {k: v for k, v in self._checked.settings.items() if k not in without}
        with self._written.located():
            try:
                return self._checked.optimizer_class(groups, **settings)
            except (ValueError, TypeError, RuntimeError) as error:
                raise RecipeError.at("optimizer", str(error)) from error

    def _state_bytes(self, grouping: Grouping) -> int | None:
        # It is constructed for other optimizers too: what it refuses must be an error of the plan.
        optimizer = self._construct(grouping, without=_unknown_on_meta(grouping))
        return state_bytes(optimizer) if _is_own(optimizer) else None

    def __repr__(self) -> str:
        return f"Recipe({self.spec.model_dump(exclude_unset=True, by_alias=True)})"


def _layout_if_any(model: nn.Module) -> Layout | None:
    try:
        return find_layout(model)
    except ValueError:
        # The model has no layers. A rule that needs them has failed already; the plan only draws
        # its curves in another order.
        return None


def _is_own(optimizer: torch.optim.Optimizer) -> TypeGuard[optim.Optimizer]:
    """Tell whether its state is known: a class of this package, not one derived from it."""
    return type(optimizer) in [getattr(optim, name) for name in optim.__all__]


def _unknown_on_meta(grouping: Grouping) -> tuple[str, ...]:
    """Return the settings that only the device can judge, if the model is on none yet."""
    on_meta = any(p.is_meta for group in grouping.groups for p in group.parameters.values())
    return ("fused", "capturable") if on_meta else ()
