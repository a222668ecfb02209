"""Recipe: reads what is to be done, plans it, builds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from optimplug._core.arguments import owner_of
from optimplug.errors import Problem
from optimplug.recipe.check import CheckedRecipe, check, checked_form
from optimplug.recipe.clipped import CLIPPING
from optimplug.recipe.construct import construct_optimizer, memory_of_groups
from optimplug.recipe.fit import fit, fit_to_horizon, fit_to_model
from optimplug.recipe.json_schema import json_schema
from optimplug.recipe.lengths import settle_lengths
from optimplug.recipe.lost_updates import lost_update_warnings
from optimplug.recipe.parameters.depth.depth import Layout, find_layout
from optimplug.recipe.parameters.explain import Explanation, explain, explain_all
from optimplug.recipe.parameters.frozen import freeze
from optimplug.recipe.parameters.groups import Grouping
from optimplug.recipe.parameters.wrappers import without_wrappers
from optimplug.recipe.plan import Plan
from optimplug.recipe.provenance import provenance
from optimplug.recipe.rates import lr_schedule_warnings, rate_warnings, written_rates
from optimplug.recipe.resolve import settable_per_group
from optimplug.recipe.schedule.scheduler import RecipeScheduler
from optimplug.recipe.schedule.timeline import RunSchedule
from optimplug.recipe.text.durations import Horizon, require_horizon
from optimplug.recipe.text.reader import Source, written
from optimplug.recipe.text.schema.recipe import RecipeSpec
from optimplug.recipe.text.writer import as_yaml
from optimplug.recipe.text.written import Written
from optimplug.recipe.warnings import rule_warnings, schedule_warnings, tell

if TYPE_CHECKING:
    from optimplug.recipe.run import Run

__all__ = ["Recipe"]


class Recipe:
    """An optimizer, its parameter groups and its schedule, written once for every runtime.

    All that can be checked without a model is checked here. A recipe is pickled as what is written
    in it, so that a checkpoint that holds one (``save_hyperparameters``) loads under torch's
    ``weights_only=True``; it is checked again when it is first used.

    Args:
        source: a path to a YAML file, YAML itself (a string with a line break or ``": "`` in it, or
            with ``{`` at its start), a mapping (a dict, an OmegaConf node), or a recipe.

    Raises:
        RecipeError: everything found wrong, each with its path: in the recipe's form, or, where
            that is right, in its meaning.

    Example:
        >>> recipe = Recipe({"optimizer": {"name": "AdamW", "lr": 3e-4}})
        >>> optimizer, scheduler = recipe.build(nn.Linear(2, 2), Horizon(total_steps=10))
        >>> scheduler.get_last_lr()
        [0.0003]
    """

    def __init__(self, source: Source | Recipe) -> None:
        self._told: set[Problem] = set()
        self._written: Written
        if isinstance(source, Recipe):
            self._written = source._written
        else:
            self._written = written(source)
        _ = self._checked

    @classmethod
    def load(cls, source: Source | Recipe) -> Recipe:
        """Read and check a recipe; as the class itself, but a recipe is returned as it is.

        Args:
            source: as for the class.

        Raises:
            RecipeError: everything found wrong.
        """
        return source if isinstance(source, Recipe) else cls(source)

    @property
    def spec(self) -> RecipeSpec:
        """What the recipe says, in its form."""
        return self._checked.spec

    @property
    def source(self) -> str | None:
        """The file that it came from, if it came from one."""
        return self._written.source

    @cached_property
    def _checked(self) -> CheckedRecipe:
        with self._written.located():
            return check(checked_form(self._written.content))

    # A recipe from a checkpoint names classes, and to check it imports them. So nothing is done
    # with it before somebody uses it.

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self._written.content, "source": self.source}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._told = set()
        self._written = Written(state["content"], state["source"])

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """Return the JSON Schema of recipes, for editors: what they can check without a model."""
        return json_schema()

    def to_yaml(self) -> str:
        """Return what is written in it as YAML text, by which :meth:`load` gives the same recipe.

        Example:
            >>> print(Recipe({"optimizer": {"name": "AdamW", "lr": 3e-4}}).to_yaml(), end="")
            optimizer: {name: AdamW, lr: 0.0003}
        """
        return as_yaml(self._written.content)

    def plan(self, model: nn.Module, horizon: Horizon) -> Plan:
        """Return what the recipe will do to a model; the model is not changed.

        Raises:
            RecipeError: the rules do not fit the model, or the phases the horizon.
        """
        require_horizon(horizon)
        with self._written.located():
            grouping, run_schedule = fit(self._checked, model, horizon)
            memory = memory_of_groups(self._checked, grouping)
        found = [
            *self._rule_warnings(model, grouping),
            *self._schedule_warnings(run_schedule, horizon),
        ]
        return Plan(
            optimizer=self.spec.optimizer.name,
            settings=self._checked.settings,
            optimizers=self._checked.optimizers,
            grouping=grouping,
            run_schedule=run_schedule,
            horizon=horizon,
            rules=self.spec.groups,
            layout=grouping.layout or _layout_if_any(model),
            memory=memory,
            absent=tuple(self._written.problem(path, text) for path, text in grouping.absent),
            warnings=tuple(found),
            resume=self.spec.resuming,
        )

    def build(
        self, model: nn.Module, horizon: Horizon
    ) -> tuple[torch.optim.Optimizer, RecipeScheduler]:
        """Build the optimizer over the model's groups, and its scheduler, stepped once per update.

        Parameters that the recipe freezes stop requiring gradients. Those that an earlier recipe
        has frozen in this model require them again; what was frozen by hand stays so. What a plan
        would warn of is said in the log ``optimplug``.

        Raises:
            RecipeError: the rules do not fit the model, or the phases the horizon. The model is as
                it was then.
        """
        require_horizon(horizon)
        with self._written.located():
            grouping, run_schedule = fit(self._checked, model, horizon)
        found = self._schedule_warnings(run_schedule, horizon)
        optimizer = self._optimizer(grouping, model)
        settle_lengths(optimizer, horizon)
        scheduler = RecipeScheduler(optimizer, run_schedule, self._provenance(optimizer, horizon))
        self._tell(found)
        return optimizer, scheduler

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
        return self._optimizer(self._group(model), model)

    def build_scheduler(
        self, optimizer: torch.optim.Optimizer, horizon: Horizon
    ) -> RecipeScheduler:
        """Build the scheduler alone, for an optimizer of :meth:`build_optimizer`."""
        require_horizon(horizon)
        with self._written.located():
            run_schedule = fit_to_horizon(self._checked, horizon)
        found = self._schedule_warnings(run_schedule, horizon)
        settle_lengths(optimizer, horizon)
        scheduler = RecipeScheduler(optimizer, run_schedule, self._provenance(optimizer, horizon))
        self._tell(found)
        return scheduler

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
        found = self._rule_warnings(model, grouping)
        freeze(model, grouping.frozen.values())
        self._tell(found)
        # Of several optimizers, each group has its own settings already.
        settings = {} if self._checked.optimizers.are_several else self._checked.settings
        shared = {name: settings[name] for name in settable_per_group(settings)}
        return [{**shared, **group.as_param_group()} for group in grouping.groups]

    def explain(self, model: nn.Module, name: str) -> Explanation:
        """Tell why a parameter has its settings; as :meth:`Plan.explain`, without a horizon.

        Raises:
            RecipeError: the rules do not fit the model.
            ArgumentError: the model has no parameter of that name.
        """
        return explain(name, self._group(model), self.spec.groups)

    def explain_all(self, model: nn.Module, patterns: Iterable[str]) -> list[Explanation]:
        """Explain several parameters, by names or by globs on them as in ``match``.

        Raises:
            RecipeError: the rules do not fit the model.
            ArgumentError: a pattern is for no parameter of the model.
        """
        return explain_all(patterns, self._group(model), self.spec.groups)

    @property
    def max_grad_norm(self) -> float | None:
        """The norm that gradients are clipped to in every step, if any."""
        return self.hyperparameters.get("max_grad_norm") or None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The optimizer's hyperparameters, as they are where no rule sets them.

        Where there are several, those of the one under ``optimizer``.
        """
        return self._checked.hyperparameters

    @property
    def rates(self) -> dict[str, float]:
        """Every ``lr`` in it, defaults of optimizers among them, by path: ``optimizer.lr``.

        The rate of each group is one of them, times what rules have it multiplied by.
        """
        return written_rates(self.spec, self._checked.optimizers)

    def _provenance(self, optimizer: torch.optim.Optimizer, horizon: Horizon) -> dict[str, Any]:
        whole = {name: self.hyperparameters.get(name) for name in CLIPPING}
        return provenance(self.to_yaml(), owner_of(optimizer), horizon, whole)

    def _group(self, model: nn.Module) -> Grouping:
        with self._written.located():
            return fit_to_model(self._checked, model)

    def _optimizer(self, grouping: Grouping, model: nn.Module) -> torch.optim.Optimizer:
        with self._written.located():
            optimizer = construct_optimizer(self._checked, grouping)
        found = self._rule_warnings(model, grouping)
        # Only now, when nothing can fail any more: a model is not left half prepared.
        freeze(model, grouping.frozen.values())
        self._tell(found)
        return optimizer

    def _rule_warnings(self, model: nn.Module, grouping: Grouping) -> list[Problem]:
        optimizers = self._checked.optimizers
        found = [
            *rate_warnings(optimizers),
            *lr_schedule_warnings(self.spec, optimizers),
            *lost_update_warnings(grouping),
            *rule_warnings(self.spec, optimizers, without_wrappers(model), grouping),
        ]
        return [self._written.problem(path, text) for path, text in found]

    def _schedule_warnings(self, schedule: RunSchedule, horizon: Horizon) -> list[Problem]:
        found = schedule_warnings(self.spec, schedule, horizon)
        return [self._written.problem(path, text) for path, text in found]

    def _tell(self, found: Iterable[Problem]) -> None:
        """Say what is new of it: each of a recipe's warnings is said once, in however many runs."""
        new = [problem for problem in dict.fromkeys(found) if problem not in self._told]
        self._told.update(new)
        tell(new, self.source)

    def __repr__(self) -> str:
        return f"Recipe({self._written.content})"


def _layout_if_any(model: nn.Module) -> Layout | None:
    try:
        return find_layout(without_wrappers(model))
    except ValueError:
        # The model has no layers. A rule that needs them has failed already; the plan only draws
        # its curves in another order.
        return None


def _represented(dumper: yaml.representer.BaseRepresenter, recipe: Recipe) -> yaml.Node:
    found: yaml.Node = dumper.represent_data(recipe._written.content)
    return found


# What a checkpoint holds of a recipe is text and numbers: see Recipe.__setstate__. Trainers write
# hyperparameters into YAML too, where it is what was written.
torch.serialization.add_safe_globals([Recipe])
for _dumper in (yaml.Dumper, yaml.SafeDumper):
    yaml.add_representer(Recipe, _represented, _dumper)
