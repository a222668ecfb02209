"""What a recipe cannot stand beside: certain callbacks, and clipping."""

from __future__ import annotations

import warnings

from optimplug._core.lr_scheduler.forgotten import forget_watch
from optimplug.errors import RecipeError
from optimplug.lightning.internals import callbacks_of, changes_batch_size_in_fit, sets_rates
from optimplug.lightning.package import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    LightningModule,
    StochasticWeightAveraging,
    Trainer,
)
from optimplug.lightning.patches import clips_by_itself
from optimplug.recipe import Recipe, RecipeScheduler

__all__ = ["check_clipping", "check_stepping", "refuse_conflicts"]


def refuse_conflicts(trainer: Trainer, scheduler: RecipeScheduler) -> None:
    """Refuse callbacks that would change rates or the length of the run behind the recipe.

    Raises:
        RecipeError: one is among the trainer's, or a Tuner has put it there.
    """
    for callback in callbacks_of(trainer):
        problem = _problem(callback, scheduler)
        if problem is not None:
            raise RecipeError.at(*problem)


def _problem(callback: Callback, scheduler: RecipeScheduler) -> tuple[str, str] | None:
    if isinstance(callback, LearningRateFinder) and sets_rates(callback):
        return (
            "optimizer.lr",
            "is the recipe's, but the learning rate finder would set one rate in all groups; "
            "give it update_attr=False and write what it suggests into the recipe",
        )
    # A Tuner's leaves before the run begins; one of the trainer's own goes on with this recipe.
    if isinstance(callback, BatchSizeFinder) and changes_batch_size_in_fit(callback):
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


def check_clipping(module: LightningModule, recipe: Recipe) -> None:
    """Refuse a module that would clip as well; say so if the trainer was to.

    Raises:
        RecipeError: both the recipe and the module would clip the gradients.
    """
    if clips_by_itself(module):
        if recipe.max_grad_norm is not None:
            raise RecipeError.at(
                "optimizer.max_grad_norm",
                f"{type(module).__name__}.configure_gradient_clipping clips as well; keep only "
                "one of the two",
            )
        return
    trainer = module.trainer
    value = trainer.gradient_clip_val
    same = value == recipe.max_grad_norm and trainer.gradient_clip_algorithm != "value"
    if value and not same:
        warnings.warn(
            f"Trainer(gradient_clip_val={value}) does not apply: the recipe decides, by "
            f"optimizer.max_grad_norm, here {recipe.max_grad_norm}",
            UserWarning,
            stacklevel=3,
        )


def check_stepping(trainer: Trainer, scheduler: RecipeScheduler) -> None:
    """Refuse a config by which Lightning would seldom step the schedule; warn if there is none.

    Raises:
        RecipeError: the interval is not "step", or the frequency not 1.
    """
    for config in trainer.lr_scheduler_configs:
        if config.scheduler is scheduler:
            if (config.interval, config.frequency) != ("step", 1):
                raise RecipeError.at(
                    "schedule",
                    "counts updates, so its scheduler is stepped after each of them, whatever a "
                    "phase counts; return its config as it is, with interval 'step' and frequency "
                    f"1 (got {config.interval!r} and {config.frequency})",
                )
            return
    forget_watch(scheduler.optimizer)  # this says it sooner, and once
    warnings.warn(
        f"the recipe has a schedule, but {type(trainer.lightning_module).__name__}'s "
        "configure_optimizers does not return its scheduler, so Lightning never steps it; return "
        "what optimplug.lightning.configure_optimizers returns, or step it after each update",
        UserWarning,
        stacklevel=2,
    )
