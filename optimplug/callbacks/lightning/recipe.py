"""Recipes for a module as it is."""

from __future__ import annotations

from collections.abc import Callable

from optimplug.lightning.configure import take_over
from optimplug.lightning.events import RunEvents
from optimplug.lightning.internals import callbacks_of
from optimplug.lightning.leaving import LeavesAfterFit
from optimplug.lightning.package import LightningModule, Trainer
from optimplug.lightning.validations import CompletesValidations, agreed, in_fit
from optimplug.recipe import Recipe, RecipeScheduler
from optimplug.recipe.checkpoint.adopt import check_policy
from optimplug.recipe.checkpoint.resumption import Policy
from optimplug.recipe.text.reader import Source

__all__ = ["MetricCallback", "RecipeCallback"]


class RecipeCallback(LeavesAfterFit):
    """Lets a recipe take over a module as it is, whatever its ``configure_optimizers`` says.

    Lightning asks that a module has that method before any callback is heard; for a module without
    it there are :class:`optimplug.lightning.RecipeMixin` and
    :class:`optimplug.lightning.RecipeCLI`. See :func:`optimplug.lightning.configure_optimizers`
    for what a recipe does.

    Args:
        recipe: a path, a mapping or a :class:`Recipe`.
        resume: ``exact``, ``adapt`` or ``weights``: what may be otherwise where a fit goes on from
            a checkpoint; None: as the recipe says.

    Raises:
        RecipeError: the recipe is wrong in itself.

    Example::

        trainer:
          callbacks:
            - class_path: optimplug.callbacks.lightning.RecipeCallback
              init_args: {recipe: recipe.yaml}
    """

    def __init__(self, recipe: Source | Recipe, resume: Policy | None = None) -> None:
        self.recipe = Recipe.load(recipe)
        self.resume = None if resume is None else check_policy(resume)
        self._give_back: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over, before the module is asked for its optimizers."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._give_back = take_over(pl_module, self.recipe, self.resume)

    def leave(self) -> None:
        """Leave the module as it was, for other trainers."""
        if self._give_back is not None:
            self._give_back()
            self._give_back = None


class MetricCallback(CompletesValidations):
    """Tells the scheduler of a recipe of every validation that is completed in ``fit``.

    :func:`optimplug.lightning.configure_optimizers` and ``scheduler_config`` see to that by
    themselves; this is for a module that builds a recipe's scheduler by hand. It keeps nothing:
    what has been told is in the scheduler's state. Checkpoints that follow a validation hold it
    already; where one was saved between an update and its validation, the resumed run validates
    first.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on the metrics that this validation has logged, the same on every process.

        Raises:
            ArgumentError: a plateau is active and the validation has not logged its metric.
        """
        if not in_fit(trainer):
            return
        told = [c.run.scheduler for c in callbacks_of(trainer) if isinstance(c, RunEvents)]
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if isinstance(scheduler, RecipeScheduler) and scheduler not in told:
                scheduler.step_metric(agreed(trainer, scheduler.monitors, scheduler.awaited))
