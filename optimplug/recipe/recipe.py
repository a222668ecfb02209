"""Recipe: reads what is to be done, plans it, builds it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from pydantic import ValidationError
from torch import nn

from optimplug import optim
from optimplug._core.optim.memory import state_bytes
from optimplug.errors import Problem, RecipeError
from optimplug.recipe.json_schema import json_schema
from optimplug.recipe.parameters.depth import depths
from optimplug.recipe.parameters.explain import Explanation, explain
from optimplug.recipe.parameters.groups import Grouping, group_parameters
from optimplug.recipe.plan import Plan
from optimplug.recipe.resolve import (
    no_decay_problems,
    of_group,
    optimizer_class,
    optimizer_problems,
    parameters_of,
)
from optimplug.recipe.schedule.scheduler import RecipeScheduler
from optimplug.recipe.schedule.timeline import (
    RunSchedule,
    compile_schedule,
    schedule_problems,
    target_problems,
    until,
)
from optimplug.recipe.text.durations import Horizon
from optimplug.recipe.text.problems import as_in, as_written, problems
from optimplug.recipe.text.reader import Source, read
from optimplug.recipe.text.rule_id import RuleId
from optimplug.recipe.text.schema import FreezeSpec, PhaseSpec, RecipeSpec, RuleSpec
from optimplug.recipe.warnings import rule_warnings, schedule_warnings

if TYPE_CHECKING:
    from optimplug.recipe.run import Run

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
        self._content: Mapping[str, Any] = {}
        wrong = [
            p for _, path, phases in self._schedules() for p in schedule_problems(phases, path)
        ]
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
        wrong = [*found, *spared, *wrong, *self._target_problems()]
        if wrong:
            raise RecipeError(wrong, source)

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
        with as_in(content):
            try:
                recipe = cls(RecipeSpec.model_validate(content), name)
            except ValidationError as error:
                found = list(problems(error))
                raise RecipeError([*found, *cls._beside(content, found)], name) from None
        recipe._content = content
        return recipe

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """Return the JSON Schema of recipes, for editors: what they can check without a model."""
        return json_schema()

    @classmethod
    def _beside(cls, content: Mapping[str, Any], found: Sequence[Problem]) -> list[Problem]:
        """Return what is wrong in meaning in those parts that are right in form."""
        whole = {key: value for key, value in content.items() if key in RecipeSpec.model_fields}
        bad = {_item(problem.path) for problem in found}
        if "optimizer" in bad or "optimizer" not in whole:
            return []
        for key, stand_in in _STAND_INS.items():
            if key in bad or not isinstance(whole.get(key, []), list):
                whole.pop(key)
            elif key in whole:
                whole[key] = [
                    stand_in if f"{key}[{i}]" in bad else item for i, item in enumerate(whole[key])
                ]
        try:
            cls(RecipeSpec.model_validate(whole))
        except ValidationError:
            return []
        except RecipeError as error:
            return [problem for problem in error.problems if _item(problem.path) not in bad]
        return []

    def plan(self, model: nn.Module, horizon: Horizon) -> Plan:
        """Say what the recipe will do to a model; the model is not changed.

        Raises:
            RecipeError: the rules do not fit the model, or the phases the horizon.
        """
        grouping, run_schedule = self._resolve(model, horizon)
        optimizer = self._construct(grouping, without=_unknown_on(grouping))
        try:
            depth = depths(model)
        except ValueError:  # then no rule asks for it, and the plan does without
            depth = {}
        return Plan(
            optimizer=self.spec.optimizer.name,
            settings=self._settings,
            defaults=self.hyperparameters,
            grouping=grouping,
            run_schedule=run_schedule,
            horizon=horizon,
            rules=self.spec.groups,
            depth=depth,
            state_bytes=state_bytes(optimizer) if _is_own(optimizer) else None,
            warnings=tuple(self._warnings(grouping, run_schedule, horizon)),
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
        grouping, run_schedule = self._resolve(model, horizon)
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
        with self._located():
            grouping = self._group(model)
        return self._optimizer(grouping)

    def build_scheduler(
        self, optimizer: torch.optim.Optimizer, horizon: Horizon
    ) -> RecipeScheduler:
        """Build the scheduler alone, for an optimizer of :meth:`build_optimizer`."""
        with self._located():
            run_schedule = self._run_schedule(horizon)
        return RecipeScheduler(optimizer, run_schedule)

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Build the groups alone, for an optimizer of one's own.

        Parameters that the recipe freezes stop requiring gradients. A group has its ``lr`` and what
        the recipe says of it, or of all; not what concerns the optimizer as a whole
        (``max_grad_norm``).

        Raises:
            RecipeError: the rules do not fit the model, which is as it was then.

        Example:
            >>> rules = [{"match": "*bias", "weight_decay": 0}]
            >>> recipe = Recipe.load({"optimizer": {"name": "AdamW", "lr": 0.1}, "groups": rules})
            >>> optimizer = torch.optim.AdamW(recipe.param_groups(nn.Linear(2, 2)))
            >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
            [('weight', 0.01), ('bias', 0)]
        """
        with self._located():
            grouping = self._group(model)
        grouping.freeze()
        shared = {name: self._settings[name] for name in of_group(self._settings)}
        return [{**shared, **group.as_param_group()} for group in grouping.groups]

    def explain(self, model: nn.Module, name: str) -> Explanation:
        """Tell why a parameter has its settings; as :meth:`Plan.explain`, without a horizon.

        Raises:
            RecipeError: the rules do not fit the model.
            ArgumentError: the model has no parameter of that name.
        """
        with self._located():
            grouping = self._group(model)
        return explain(name, grouping, self.spec.groups, self.hyperparameters)

    @property
    def max_grad_norm(self) -> float | None:
        """The clipping threshold that the recipe asks for, if any."""
        return self._settings.get("max_grad_norm")

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The optimizer's hyperparameters where no rule says otherwise."""
        known = parameters_of(self._optimizer_class, without=("params",))
        return {**{name: p.default for name, p in known.items()}, **self._settings}

    def _resolve(self, model: nn.Module, horizon: Horizon) -> tuple[Grouping, RunSchedule]:
        """Fit the rules to the model and the phases to the horizon; report on both together."""
        wrong: list[Problem] = []
        grouping = run_schedule = None
        try:
            grouping = self._group(model)
        except RecipeError as error:
            wrong += error.problems
        try:
            run_schedule = self._run_schedule(horizon)
        except RecipeError as error:
            wrong += error.problems
        if wrong or grouping is None or run_schedule is None:
            with self._located():
                raise RecipeError(wrong)
        return grouping, run_schedule

    def _run_schedule(self, horizon: Horizon) -> RunSchedule:
        """Lay out every schedule over the run, and for how long rules freeze."""
        wrong: list[Problem] = []
        shared, own_curves, frozen = {}, {}, {}
        for rule_id, path, phases in self._schedules():
            try:
                curves = compile_schedule(phases, horizon, self.hyperparameters, path)
                if rule_id is None:
                    shared = curves
                    continue
                if phases:  # what a rule says nothing of, it leaves alone
                    said = {phase.of or "lr" for phase in phases}
                    curves = {of: curve for of, curve in curves.items() if of in said}
                own_curves[rule_id] = curves
            except RecipeError as error:
                wrong += error.problems
        for i, rule in enumerate(self.spec.groups):
            if isinstance(rule.freeze, FreezeSpec):
                try:
                    here = f"{RuleId(i).path}.freeze.until"
                    frozen[RuleId(i)] = until(rule.freeze.until, horizon, here)
                except RecipeError as error:
                    wrong += error.problems
        if wrong:
            raise RecipeError(wrong)
        return RunSchedule(shared, own_curves, frozen)

    def _warnings(
        self, grouping: Grouping, run_schedule: RunSchedule, horizon: Horizon
    ) -> Iterator[Problem]:
        found = list(rule_warnings(grouping))
        for rule, path, phases in self._schedules():
            found += schedule_warnings(path, phases, run_schedule.curves_of(rule), horizon)
        for path, message in found:
            yield Problem(as_written(path, self._content), message)

    def _schedules(self) -> Iterator[tuple[RuleId | None, str, list[PhaseSpec]]]:
        """Walk the recipe's schedule and those of its rules, each with its rule and its path."""
        yield None, "schedule", self.spec.schedule
        for i, rule in enumerate(self.spec.groups):
            if rule.schedule is not None:
                yield RuleId(i), f"{RuleId(i).path}.schedule", rule.schedule

    def _target_problems(self) -> Iterator[Problem]:
        for _, path, phases in self._schedules():
            yield from target_problems(phases, self.hyperparameters, self.spec.optimizer.name, path)

    def _group(self, model: nn.Module) -> Grouping:
        return group_parameters(model, self.hyperparameters, self.spec.groups, self._rule_values)

    def _optimizer(self, grouping: Grouping) -> torch.optim.Optimizer:
        optimizer = self._construct(grouping)
        grouping.freeze()
        return optimizer

    def _construct(
        self, grouping: Grouping, without: Collection[str] = ()
    ) -> torch.optim.Optimizer:
        groups = [group.as_param_group() for group in grouping.groups]
        settings = {key: v for key, v in self._settings.items() if key not in without}
        try:
            return self._optimizer_class(groups, **settings)
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
        """Put the recipe's file before every problem, and write its path as the file does."""
        try:
            with as_in(self._content):
                yield
        except RecipeError as error:
            raise RecipeError(error.problems, self.source) from None

    def __repr__(self) -> str:
        return f"Recipe({self.spec.model_dump(exclude_unset=True, by_alias=True)})"


def _is_own(optimizer: torch.optim.Optimizer) -> TypeGuard[optim.Optimizer]:
    """Tell whether its state is known: a class of this package, not one derived from it."""
    return type(optimizer) in [getattr(optim, name) for name in optim.__all__]


def _unknown_on(grouping: Grouping) -> tuple[str, ...]:
    """Return the settings that cannot be judged: on the meta device, where it will run."""
    on_meta = any(p.is_meta for group in grouping.groups for p in group.parameters.values())
    return ("fused", "capturable") if on_meta else ()


# What takes the place of a part that is wrong in form, while the others are judged.
_STAND_INS: dict[str, dict[str, Any]] = {
    "groups": {"lr_scale": 1.0},
    "schedule": {"name": "ConstantLR", "factor": 1.0, "for": 0},
}


def _item(path: str) -> str:
    """Return which rule or phase, or else which key of the recipe, a path leads into."""
    return re.match(r"[^.\[]*(\[\d+\])?", path)[0]  # type: ignore[index] # it always matches
