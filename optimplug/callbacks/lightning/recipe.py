"""Recipes for a module as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optimplug.lightning.configure import take_over
from optimplug.lightning.events import RunEvents
from optimplug.lightning.internals import callbacks_of, loaded_checkpoint
from optimplug.lightning.leaving import LeavesAfterFit
from optimplug.lightning.package import LightningModule, Trainer
from optimplug.lightning.reports import Reports
from optimplug.lightning.validations import CompletesValidations, agreed, in_fit
from optimplug.recipe import Recipe, RecipeScheduler
from optimplug.recipe.checkpoint.policy import Policy, Resume
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
        rewarm: under ``adapt``, for how long rates that would jump climb; None: as the recipe says.

    Raises:
        RecipeError: the recipe is wrong in itself.
        ArgumentError: ``resume`` is no policy, or ``rewarm`` no duration.

    Example::

        trainer:
          callbacks:
            - class_path: optimplug.callbacks.lightning.RecipeCallback
              init_args: {recipe: recipe.yaml}
    """

    def __init__(
        self,
        recipe: Source | Recipe,
        resume: Policy | None = None,
        rewarm: int | str | None = None,
    ) -> None:
        self.recipe = Recipe.load(recipe)
        self.how = Resume.read(resume, rewarm)
        self.how.within(self.recipe.spec)
        self._give_back: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over, before the module is asked for its optimizers."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._give_back = take_over(pl_module, self.recipe, self.how)

    def leave(self) -> None:
        """Leave the module as it was, for other trainers."""
        if self._give_back is not None:
            self._give_back()
            self._give_back = None


class MetricCallback(CompletesValidations):
    """Tells the scheduler of a recipe of every validation that is completed in ``fit``.

    :func:`optimplug.lightning.configure_optimizers` and ``scheduler_config`` see to that by
    themselves; this is for a module that builds a recipe's scheduler by hand. What has been told is
    in the scheduler's state. Checkpoints that follow a validation hold it already; where one was
    saved between an update and its validation, the resumed run validates first.

    A plateau with ``of_training: true`` is told as each epoch of training ends, of what the module
    has logged by then; for what it logs in its own ``on_train_epoch_end`` that is too early.
    """

    def __init__(self) -> None:
        self._told: list[RecipeScheduler] = []
        self._reports = Reports(self._followed_in_training, self._tell)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell nobody, until it is known whom."""
        super().setup(trainer, pl_module, stage)
        self._told = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the schedulers that nobody else tells."""
        self._told = _untold(trainer)
        self._reports.load(trainer, loaded_checkpoint(trainer))

    def _followed_in_training(self) -> frozenset[str]:
        return frozenset().union(*(scheduler.training_monitors for scheduler in self._told))

    def _tell(self, metrics: Mapping[str, Any]) -> None:
        for scheduler in self._told:
            scheduler.step_metric(metrics, of_training=True)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what comes next: a validation, and what the next report is made of."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        self._reports.save(trainer, checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up for what the checkpoint came just before."""
        super().on_train_start(trainer, pl_module)
        self._reports.begin(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Go on with what was logged before a resume."""
        self._reports.batch_ended(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell of what the training has logged.

        Raises:
            ArgumentError: it has not logged a metric that is followed.
        """
        self._reports.epoch_ended(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so, if a schedule has waited in vain."""
        for scheduler in self._told:
            scheduler.tell_if_never_told()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on the metrics that this validation has logged, the same on every process.

        Raises:
            ArgumentError: a plateau is active and the validation has not logged its metric.
        """
        if not in_fit(trainer):
            return
        for scheduler in _untold(trainer):
            scheduler.step_metric(agreed(trainer, scheduler.monitors, scheduler.awaited))


def _untold(trainer: Trainer) -> list[RecipeScheduler]:
    """Return the recipes' schedulers that no run tells of anything."""
    told = [c.run.scheduler for c in callbacks_of(trainer) if isinstance(c, RunEvents)]
    held = [config.scheduler for config in trainer.lr_scheduler_configs]
    return [s for s in held if isinstance(s, RecipeScheduler) and s not in told]
