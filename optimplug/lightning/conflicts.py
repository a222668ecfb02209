"""Lightning's own callbacks that would change rates or the length of the run behind a recipe."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    LearningRateFinder,
    StochasticWeightAveraging,
)

from optimplug.errors import RecipeError
from optimplug.recipe import RecipeScheduler

__all__ = ["refuse_conflicts"]


def refuse_conflicts(trainer: Trainer, scheduler: RecipeScheduler) -> None:
    """Refuse callbacks that the recipe cannot be right beside.

    Raises:
        RecipeError: one is among the trainer's, or a Tuner has put it there.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined] # annotated nowhere
        problem = _problem(callback, scheduler)
        if problem is not None:
            raise RecipeError.at(*problem)


def _problem(callback: Callback, scheduler: RecipeScheduler) -> tuple[str, str] | None:
    if isinstance(callback, LearningRateFinder) and callback._update_attr:
        return (
            "optimizer.lr",
            "is the recipe's, but the learning rate finder would set one rate in all groups; "
            "give it update_attr=False and write what it suggests into the recipe",
        )
    # A Tuner's leaves before the run begins; one of the trainer's own goes on with this recipe.
    if isinstance(callback, BatchSizeFinder) and not callback._early_exit:
        return (
            "schedule",
            "is laid out before BatchSizeFinder changes how many updates there are; call "
            "Tuner(trainer).scale_batch_size(module) before fit instead",
        )
    if isinstance(callback, StochasticWeightAveraging) and scheduler.freezes_for_a_time:
        return (
            "groups",
            "freeze until a time, but StochasticWeightAveraging takes the recipe's scheduler away, "
            "which alone ends it; use only one of the two",
        )
    return None
