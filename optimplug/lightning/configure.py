"""A recipe -> what a LightningModule's ``configure_optimizers`` returns."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from optimplug.errors import RecipeError
from optimplug.lightning.due import was_due
from optimplug.lightning.horizon import horizon_of
from optimplug.lightning.metric import MetricCallback
from optimplug.recipe import Horizon, Recipe, RecipeScheduler
from optimplug.recipe.reader import Source

__all__ = ["RecipeMixin", "configure_optimizers"]


def configure_optimizers(
    module: LightningModule, recipe: Source | Recipe
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

    The recipe is the whole truth: clipping is its ``max_grad_norm``; the trainer's
    ``gradient_clip_val`` does not apply.

    Raises:
        RecipeError: the recipe does not fit the module or the run, or both it and the module's own
            ``configure_gradient_clipping`` would clip the gradients.

    Example:
        ``def configure_optimizers(self): return configure_optimizers(self, "recipe.yaml")``
    """
    recipe = Recipe.load(recipe)
    _settle_clipping(module, recipe)
    optimizer, scheduler = _build(module, recipe, horizon_of(module.trainer))
    if scheduler.counts_validations:
        _tell_of_validations(module.trainer)
    return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 1}]


class RecipeMixin:
    """Lets a recipe configure a LightningModule; put it before LightningModule in the bases.

    The module sets ``self.recipe``: a path, a mapping or a :class:`Recipe`. See
    :func:`configure_optimizers` for what that does.

    Example::

        class Classifier(RecipeMixin, LightningModule):
            def __init__(self, recipe="recipe.yaml"):
                super().__init__()
                self.recipe = recipe
    """

    recipe: Source | Recipe

    def configure_optimizers(self) -> Any:
        """Return the recipe's optimizer and scheduler."""
        if not isinstance(self, LightningModule):
            raise TypeError(f"{type(self).__name__} must derive from LightningModule as well")
        if not hasattr(self, "recipe"):
            name = type(self).__name__
            raise RecipeError.at("recipe", f"{name} must set self.recipe to a path or a mapping")
        return configure_optimizers(self, self.recipe)


def _build(
    module: LightningModule, recipe: Recipe, horizon: Horizon
) -> tuple[torch.optim.Optimizer, RecipeScheduler]:
    wrapped = _wrapped_model(module)
    try:
        return recipe.build(wrapped, horizon)
    except RecipeError as error:
        if wrapped is module:
            raise
        try:
            return recipe.build(module, horizon)
        except RecipeError:
            raise error from None


def _tell_of_validations(trainer: Trainer) -> None:
    """Add a callback that does, before those that save checkpoints; refuse where there are none."""
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    if not trainer.enable_validation:
        raise RecipeError.at(
            "schedule",
            "counts validations or follows a metric, but this run has none: give the module a "
            "validation_step, and fit validation data",
        )
    callbacks = trainer.callbacks  # type: ignore[attr-defined] # annotated nowhere
    mine = next((c for c in callbacks if isinstance(c, MetricCallback)), None)
    if mine is None:
        mine = MetricCallback()
        callbacks.insert(0, mine)
    mine.due = was_due(trainer)


def _wrapped_model(module: nn.Module) -> nn.Module:
    """Return the one child that holds all the parameters, or else the module itself."""
    holders = [child for child in module.children() if next(child.parameters(), None) is not None]
    own = next(module.parameters(recurse=False), None)
    return holders[0] if len(holders) == 1 and own is None else module


def _settle_clipping(module: LightningModule, recipe: Recipe) -> None:
    """Let the recipe alone decide on clipping, and say so if the trainer was to clip."""
    method = "configure_gradient_clipping"
    if getattr(type(module), method) is not getattr(LightningModule, method):
        if recipe.max_grad_norm is not None:
            raise RecipeError.at(
                "optimizer.max_grad_norm",
                f"{type(module).__name__}.{method} clips as well; keep only one of the two",
            )
        return
    value = module.trainer.gradient_clip_val
    if value:
        warnings.warn(
            f"Trainer(gradient_clip_val={value}) does not apply: the recipe decides, by "
            f"optimizer.max_grad_norm, here {recipe.max_grad_norm}",
            UserWarning,
            stacklevel=2,
        )
    setattr(module, method, _leave_gradients)


def _leave_gradients(
    optimizer: torch.optim.Optimizer,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
) -> None:
    """Stand in for the module's clipping: the optimizer clips, where the recipe says so."""
