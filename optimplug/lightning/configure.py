"""A recipe -> what a LightningModule's ``configure_optimizers`` returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from optimplug.errors import RecipeError
from optimplug.lightning.conflicts import check_clipping, refuse_conflicts
from optimplug.lightning.events import wire
from optimplug.lightning.horizon import horizon_of
from optimplug.lightning.internals import uncompiled
from optimplug.lightning.package import LightningModule, require_own
from optimplug.lightning.patches import (
    follow_added_groups,
    is_replaced,
    leave_clipping_to,
    replaced,
)
from optimplug.recipe import Recipe, build_scheduler
from optimplug.recipe.checkpoint.policy import Policy, Resume
from optimplug.recipe.schedule.scheduled import ScheduledOptimizer
from optimplug.recipe.schedule.standalone import Schedule
from optimplug.recipe.text.reader import Source

__all__ = [
    "RecipeMixin",
    "configure_optimizers",
    "param_groups",
    "scheduler_config",
    "take_over",
]

_Built = TypeVar("_Built")
_CONFIGURE = "configure_optimizers"


def configure_optimizers(
    module: LightningModule,
    recipe: Source | Recipe,
    resume: Policy | None = None,
    rewarm: int | str | None = None,
) -> tuple[list[torch.optim.Optimizer], list[dict[str, Any]]]:
    """Build what a LightningModule's own ``configure_optimizers`` returns.

    The scheduler steps once per optimizer update, gradient accumulation included. Where it counts
    validations or follows a metric, it is told of every one that is completed.

    Where the module only wraps a model (all its parameters are in one child, ``self.model`` say),
    the recipe's names are those of that model, so the recipe of a plain loop runs unchanged. A
    recipe written in the module's own names (``model.classifier.*``) works as well.

    Args:
        module: attached to a trainer, from which the length of the run is taken.
        recipe: a recipe, or what :meth:`Recipe.load` takes.
        resume: what may be otherwise in a fit that goes on from a checkpoint (``ckpt_path``), of a
            recipe's run or of a module's without one: ``exact``, ``adapt`` or ``weights``, as for
            :meth:`optimplug.Run.load_state_dict`. None: as the recipe says. Under ``weights`` the
            schedule is laid over the updates that are left.
        rewarm: under ``adapt``, for how long rates that would jump climb from what they were:
            ``"2%"``, say; None: as the recipe says.

    The recipe is the whole truth: clipping is its ``max_grad_norm``; the trainer's
    ``gradient_clip_val`` does not apply.

    It starts a :class:`optimplug.Run`, which hears of what the trainer does. The end of the fit,
    also by an error, closes it: the module and the trainer are then as they were before.

    Raises:
        StateError: as the fit begins, the checkpoint has something otherwise, and ``resume`` does
            not allow it.
        RecipeError: the recipe does not fit the module or the run, both it and the module's own
            ``configure_gradient_clipping`` would clip the gradients, or a callback would change
            rates or the length of the run behind it.
        ArgumentError: there is no such policy, ``rewarm`` is no duration, or the policy is not
            ``adapt``.
        PackageError: the module is one of that package of Lightning (``lightning`` or
            ``pytorch_lightning``) that is not the program's; it is the one that was imported first.

    Example:
        ``def configure_optimizers(self): return configure_optimizers(self, "recipe.yaml")``
    """
    return _configured(module, recipe, Resume.read(resume, rewarm))


def _configured(
    module: LightningModule, recipe: Source | Recipe, how: Resume
) -> tuple[list[torch.optim.Optimizer], list[dict[str, Any]]]:
    require_own(type(module), LightningModule)
    recipe = Recipe.load(recipe)
    check_clipping(module, recipe)
    horizon = horizon_of(module.trainer)
    run = _by_either_name(module, partial(recipe.start, horizon=horizon))
    with _closed_on_error(run):
        follow_added_groups(run.model, run)
        leave_clipping_to(module, run)
        config = _wired(module, run, how)
    return [run.optimizer], [config]


def param_groups(module: LightningModule, recipe: Source | Recipe) -> list[dict[str, Any]]:
    """Build a recipe's groups alone, for an optimizer of one's own; as :meth:`Recipe.param_groups`.

    Raises:
        RecipeError: the recipe does not fit the module.

    Example:
        ``optimizer = torch.optim.Adagrad(param_groups(self, "recipe.yaml"))``
    """
    return _by_either_name(module, Recipe.load(recipe).param_groups)


def scheduler_config(
    module: LightningModule, optimizer: torch.optim.Optimizer, schedule: Schedule | Recipe
) -> dict[str, Any]:
    """Build a schedule alone, as the config of a scheduler that ``configure_optimizers`` returns.

    Args:
        module: attached to a trainer, from which the length of the run is taken.
        optimizer: of any class of ``torch.optim.Optimizer``.
        schedule: what a recipe says under ``schedule``, or a whole :class:`Recipe`, for an
            optimizer of its groups.

    Raises:
        RecipeError: the schedule does not fit the run, or a callback would change rates or the
            length of the run behind it.

    Example::

        def configure_optimizers(self):
            optimizer = torch.optim.Adagrad(self.parameters(), lr=0.1)
            schedule = {"preset": "cosine", "warmup": "6%"}
            return [optimizer], [scheduler_config(self, optimizer, schedule)]
    """
    require_own(type(module), LightningModule)
    horizon = horizon_of(module.trainer)
    if isinstance(schedule, Recipe):
        scheduler = schedule.build_scheduler(optimizer, horizon)
    else:
        scheduler = build_scheduler(schedule, optimizer, horizon)
    scheduled = ScheduledOptimizer(optimizer, scheduler)
    with _closed_on_error(scheduled):
        follow_added_groups(module, scheduled)
        return _wired(module, scheduled, Resume())


def take_over(module: LightningModule, recipe: Source | Recipe, how: Resume) -> Callable[[], None]:
    """Let a recipe configure a module in place of its own ``configure_optimizers``.

    Returns:
        What gives the module back to itself.

    Raises:
        RecipeError: the module has a recipe already.
    """
    name = type(module).__name__
    if is_replaced(module, _CONFIGURE):
        raise RecipeError.at(
            "recipe",
            f"there are two for {name}, each of which would configure it alone; keep one "
            "RecipeCallback, or the recipe of RecipeCLI",
        )
    if isinstance(module, RecipeMixin) and hasattr(module, "recipe"):
        raise RecipeError.at(
            "recipe",
            f"there are two: {name} has one by RecipeMixin, in self.recipe; leave out that one, or "
            "the RecipeCallback or the recipe of RecipeCLI",
        )
    configure = partial(_configured, module, Recipe.load(recipe), how)
    return replaced(module, _CONFIGURE, configure)


class RecipeMixin:
    """Lets a recipe configure a LightningModule; put it before LightningModule in the bases.

    The module sets ``self.recipe``: a path, a mapping or a :class:`Recipe`; and ``self.resume`` and
    ``self.rewarm``, if they are to be otherwise than the recipe says. See
    :func:`configure_optimizers` for what that does.

    Raises:
        RecipeError: as a class is derived from it, if it or another base configures optimizers,
            which one of the two would do in vain, or LightningModule stands before it.

    Example::

        class Classifier(RecipeMixin, LightningModule):
            def __init__(self, recipe="recipe.yaml"):
                super().__init__()
                self.recipe = recipe
    """

    recipe: Source | Recipe
    resume: Policy | None = None
    rewarm: int | str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        require_own(cls, LightningModule)
        _refuse_other_configuration(cls)

    def configure_optimizers(self) -> Any:
        """Return the recipe's optimizer and scheduler."""
        if not isinstance(self, LightningModule):
            raise TypeError(f"{type(self).__name__} must derive from LightningModule as well")
        if not hasattr(self, "recipe"):
            name = type(self).__name__
            raise RecipeError.at("recipe", f"{name} must set self.recipe to a path or a mapping")
        return configure_optimizers(self, self.recipe, self.resume, self.rewarm)


# One of these names stands in a method that does something with the recipe.
_GOES_ON = frozenset({"super", "RecipeMixin", "recipe", _CONFIGURE})


def _refuse_own_configuration(cls: type[RecipeMixin]) -> None:
    """Refuse a ``configure_optimizers`` on the class that takes the mixin, unless it goes on to it.

    One that a class derived from that puts in its place is meant.
    """
    if RecipeMixin not in cls.__bases__:
        return
    method = inspect.unwrap(vars(cls)[_CONFIGURE])
    code = getattr(method, "__code__", None)
    if code is not None and not _GOES_ON.intersection(code.co_names):
        raise RecipeError.at(
            "recipe",
            f"{cls.__name__} configures its optimizers itself, so its recipe would not be run; "
            "take its configure_optimizers out, or call super().configure_optimizers() in it",
        )


def _refuse_other_configuration(cls: type[RecipeMixin]) -> None:
    """Refuse bases whose ``configure_optimizers`` comes before the mixin's, or in vain after it."""
    for base in cls.__mro__:
        if base is RecipeMixin or _CONFIGURE not in vars(base):
            continue
        if issubclass(base, RecipeMixin):
            _refuse_own_configuration(base)
            continue
        if base not in LightningModule.__mro__:
            raise RecipeError.at(
                "recipe",
                f"{cls.__name__} has two bases that configure its optimizers, RecipeMixin and "
                f"{base.__name__}; derive from a {base.__name__} without configure_optimizers, or "
                "leave out RecipeMixin and give the Trainer a RecipeCallback, which takes over "
                "whatever that says",
            )
        if cls.__mro__.index(base) < cls.__mro__.index(RecipeMixin):
            raise RecipeError.at(
                "recipe",
                f"{cls.__name__} must have RecipeMixin before {base.__name__} in its bases, or its "
                "recipe would never be asked for",
            )


def _by_either_name(module: LightningModule, build: Callable[[nn.Module], _Built]) -> _Built:
    """Build by the names of the wrapped model, or else by those of the module."""
    wrapped = _wrapped_model(module)
    try:
        return build(wrapped)
    except RecipeError as error:
        if wrapped is module:
            raise
        try:
            return build(module)
        except RecipeError:
            raise error from None


def _wired(module: LightningModule, run: ScheduledOptimizer, how: Resume) -> dict[str, Any]:
    """Return the config of a run's scheduler, and see to it that it hears of all that it counts."""
    refuse_conflicts(module.trainer, run.scheduler)
    wire(run, module, how)
    return {"scheduler": run.scheduler, "interval": "step", "frequency": 1}


@contextmanager
def _closed_on_error(run: ScheduledOptimizer) -> Iterator[None]:
    try:
        yield
    except BaseException:
        run.close()
        raise


def _wrapped_model(module: nn.Module) -> nn.Module:
    """Return the one child that holds all the parameters, or else the module itself."""
    holders = [child for child in module.children() if next(child.parameters(), None) is not None]
    own = next(module.parameters(recurse=False), None)
    if len(holders) != 1 or own is not None:
        return module
    return uncompiled(holders[0])
