"""Clipping: the recipe's optimizer does it, in place of the trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule

from optimplug.errors import RecipeError
from optimplug.recipe import Recipe

__all__ = ["check_clipping", "leave_clipping_to"]

_METHOD = "configure_gradient_clipping"


def check_clipping(module: LightningModule, recipe: Recipe) -> None:
    """Refuse a module that would clip as well; say so if the trainer was to.

    Raises:
        RecipeError: both the recipe and the module would clip the gradients.
    """
    if _clips_by_itself(module):
        if recipe.max_grad_norm is not None:
            raise RecipeError.at(
                "optimizer.max_grad_norm",
                f"{type(module).__name__}.{_METHOD} clips as well; keep only one of the two",
            )
        return
    value = module.trainer.gradient_clip_val
    if value:
        warnings.warn(
            f"Trainer(gradient_clip_val={value}) does not apply: the recipe decides, by "
            f"optimizer.max_grad_norm, here {recipe.max_grad_norm}",
            UserWarning,
            stacklevel=3,
        )


def leave_clipping_to(module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
    """Keep the trainer from clipping the gradients of a recipe's optimizer, and of no other."""
    if not _clips_by_itself(module):
        own = getattr(type(module), _METHOD).__get__(module)
        setattr(module, _METHOD, partial(_clip_others, optimizer, own))


def _clips_by_itself(module: LightningModule) -> bool:
    return getattr(type(module), _METHOD) is not getattr(LightningModule, _METHOD)


def _clip_others(
    recipes: torch.optim.Optimizer,
    own: Callable[..., None],
    optimizer: torch.optim.Optimizer,
    *args: Any,
    **kwargs: Any,
) -> None:
    if optimizer is not recipes:
        own(optimizer, *args, **kwargs)
