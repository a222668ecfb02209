"""A recipe for a Trainer that nobody wants to derive a class from."""

from __future__ import annotations

import warnings
from collections.abc import Sized
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

from optimplug.errors import ArgumentError, Problem, RecipeError
from optimplug.huggingface.arguments import report_replaced, resolve_recipe
from optimplug.huggingface.conflicts import refuse_arguments
from optimplug.huggingface.evaluations import check_evaluations
from optimplug.huggingface.horizon import horizon_of
from optimplug.huggingface.internals import TAKES_FACTORIES
from optimplug.huggingface.reports import check_logs
from optimplug.recipe import Recipe, RecipeScheduler
from optimplug.recipe.text.reader import Source
from optimplug.recipe.text.schema.rules import FreezeSpec

__all__ = ["FromRecipe", "build", "optimizer_cls_and_kwargs"]


def build(
    model: nn.Module,
    recipe: Source | Recipe | None,
    args: TrainingArguments,
    train_dataset: Dataset[Any] | Sized,
) -> tuple[torch.optim.Optimizer, RecipeScheduler]:
    """Build what a plain Trainer takes as ``optimizers=``.

    The Trainer steps the scheduler once per update. It still clips by its own ``max_grad_norm``,
    which is 1.0 by default, before the optimizer clips by the recipe's: give
    ``TrainingArguments(max_grad_norm=0)`` to leave clipping to the recipe. It tells the scheduler
    of no evaluation, and of nothing that is logged: for a schedule that follows a metric, give it
    :class:`~optimplug.callbacks.huggingface.MetricCallback` too. A second ``train`` goes on with
    both as they are.

    The Trainer takes no ``optimizers=`` together with ``model_init`` or FSDP: see
    :func:`optimizer_cls_and_kwargs`.

    Args:
        model: what will be trained.
        recipe: a recipe, or what :meth:`Recipe.load` takes; None to take it from ``args.recipe``.
        args: those of the Trainer.
        train_dataset: that of the Trainer.

    Raises:
        ArgumentError: the arguments have ``log_groups``, which a plain Trainer does not know.
        RecipeError: the recipe does not fit the model or the run, or ``auto_find_batch_size`` would
            change how long that is.

    Example:
        ``Trainer(model, args, train_dataset=data, optimizers=build(model, recipe, args, data))``
    """
    recipe = resolve_recipe(recipe, args)
    refuse_arguments(args)
    if getattr(args, "log_groups", None) is not None:
        raise ArgumentError(
            "log_groups among the arguments is for a trainer that runs the recipe; a plain one "
            "logs groups by a callback: OptimizerMonitor(log_groups=...)"
        )
    if args.auto_find_batch_size:
        raise RecipeError.at(
            "schedule",
            "auto_find_batch_size changes how many updates there are after the schedule is made; "
            "leave it out, or use RecipeTrainer",
        )
    horizon = horizon_of(args, train_dataset)
    optimizer, scheduler = recipe.build(model, horizon)
    report_replaced(args, recipe, but=("max_grad_norm",))
    _report_clipping(args, recipe)
    error = partial(RecipeError.at, "schedule")
    if scheduler.counts_validations:
        check_evaluations(args, error)
    if monitors := scheduler.training_monitors:
        check_logs(args, horizon.total_steps, monitors, error, keeps_loss=False)
    if scheduler.counts_validations or monitors:
        _report_metrics()
    return optimizer, scheduler


def optimizer_cls_and_kwargs(recipe: Source | Recipe) -> tuple[type, dict[str, Any]]:
    """Return what a plain Trainer takes as ``optimizer_cls_and_kwargs=``; for the optimizer alone.

    The Trainer builds the optimizer when it needs it, so this works with ``model_init`` and FSDP.
    The schedule is the Trainer's own (``lr_scheduler_type``), and it scales each group's own rate.
    It also still clips by its own ``max_grad_norm``, which is 1.0 by default, before the optimizer
    clips by the recipe's: give ``TrainingArguments(max_grad_norm=0)`` to leave that to the recipe.

    Raises:
        ImportError: transformers is older than 5.3, whose Trainer gives it no model.
        RecipeError: something is wrong with the recipe, or it has a schedule, or freezes for a
            time, which nobody would do.

    Example:
        ``Trainer(model, args, optimizer_cls_and_kwargs=optimizer_cls_and_kwargs("recipe.yaml"))``
    """
    if not TAKES_FACTORIES:
        raise ImportError(
            "optimizer_cls_and_kwargs needs a Trainer that builds an optimizer from its model; "
            'pip install "transformers>=5.3", or use RecipeTrainer or optimizers=build(...)'
        )
    recipe = Recipe.load(recipe)
    scheduled = ["schedule"] if recipe.spec.schedule else []
    for i, rule in enumerate(recipe.spec.groups):
        scheduled += [f"groups[{i}].schedule"] if rule.schedule else []
        scheduled += [f"groups[{i}].freeze.until"] if isinstance(rule.freeze, FreezeSpec) else []
    if scheduled:
        message = (
            "would not be followed: the Trainer builds a schedule of its own for this optimizer "
            "(lr_scheduler_type); leave it out, or use RecipeTrainer or optimizers=build(...)"
        )
        raise RecipeError([Problem(path, message) for path in scheduled], recipe.source)
    return FromRecipe, {"recipe": recipe}


class FromRecipe:
    """Builds a recipe's optimizer; a class of no arguments, as the Trainer calls it."""

    # An Optimizer class in its place would be given the Trainer's own two groups, whose
    # weight_decay is that of its arguments.

    def __call__(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """Return the optimizer of a model."""
        return recipe.build_optimizer(model)


def _report_metrics() -> None:
    warnings.warn(
        "the schedule counts validations or follows a metric, of which a plain Trainer tells it "
        "only by optimplug.callbacks.huggingface.MetricCallback: give it one, or use RecipeTrainer",
        UserWarning,
        stacklevel=3,
    )


def _report_clipping(args: TrainingArguments, recipe: Recipe) -> None:
    if args.max_grad_norm == (recipe.max_grad_norm or 0):
        return
    own = "does not clip" if recipe.max_grad_norm is None else f"clips to {recipe.max_grad_norm}"
    if args.max_grad_norm > 0:
        warnings.warn(
            f"the Trainer clips gradients to max_grad_norm={args.max_grad_norm}, but the recipe "
            f"{own}; give TrainingArguments(max_grad_norm=0) to leave it to the recipe",
            UserWarning,
            stacklevel=3,
        )
