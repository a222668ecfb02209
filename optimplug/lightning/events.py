"""What happens in a trainer, told to a run."""

from __future__ import annotations

from functools import partial
from typing import Any

from optimplug.errors import RecipeError
from optimplug.lightning.conflicts import check_stepping
from optimplug.lightning.internals import add_callback, remove_callback
from optimplug.lightning.leaving import LeavesAfterFit
from optimplug.lightning.manual import ManualCheck
from optimplug.lightning.package import Callback, LightningModule, Trainer
from optimplug.lightning.patches import save_in_eval_mode, step_after_updates
from optimplug.lightning.reports import ReportsTraining
from optimplug.lightning.resuming import Resumes
from optimplug.lightning.validations import TellsValidations, require_validations
from optimplug.recipe import Run
from optimplug.recipe.checkpoint.policy import Resume
from optimplug.recipe.schedule.scheduled import ScheduledOptimizer

__all__ = ["RunEvents", "wire"]


class RunEvents(TellsValidations, LeavesAfterFit):
    """Tells a run of a fit's beginning, its validations and its end."""

    in_batch = False
    """Whether a batch is under way, so that the weights to train with must stay in place."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the module has made of the scheduler's config; others may change it later.

        Raises:
            RecipeError: Lightning would step the schedule at other times than after each update.
        """
        if pl_module.automatic_optimization and self.run.scheduler.changes:
            check_stepping(trainer, self.run.scheduler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to train, maybe with what a checkpoint has brought."""
        self.run.updates.take()  # those of a learning rate finder, say, are none of the run's
        super().on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Put the weights in place that are trained with.

        Not before: to go to those that are validated and back rounds, and so a run that goes on
        from a checkpoint must not do it at other times than the one that wrote it.
        """
        self.in_batch = True
        self.run.train()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """From here on, the next who needs other weights may have them."""
        self.in_batch = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module with the weights that are validated."""
        self.run.eval()
        self.run.scheduler.tell_if_never_told()

    def leave(self) -> None:
        """Leave the module as it was, but for its weights."""
        try:
            self.run.eval()
        finally:  # a device that has failed must not keep the rest from being undone
            self.run.close(interrupted=True)  # a good end has been told of by now


def wire(run: ScheduledOptimizer, module: LightningModule, how: Resume) -> None:
    """Let a run hear of all that it counts in the fit of a module, until it is closed.

    Args:
        run: what hears of it.
        module: in a trainer that fits it.
        how: by which policy a run goes on from a checkpoint.

    Raises:
        RecipeError: the schedule counts validations, and this fit has none.
        ArgumentError: the policy does not go with what the run's recipe says.
    """
    trainer = module.trainer
    if run.scheduler.counts_validations:
        require_validations(trainer, partial(RecipeError.at, "schedule"))
    step_after_updates(module, run)
    if run.scheduler.training_monitors:  # a validation that is made up for comes before a report
        reports = ReportsTraining(run, module)
        _add(reports, trainer, run)
        reports.look_back(trainer)
    events = RunEvents(run)
    save_in_eval_mode(trainer, run, lambda: events.in_batch)
    _add(events, trainer, run)
    events.look_back(trainer)
    if isinstance(run, Run):
        _add(Resumes(run, how), trainer, run, last=True)
    if not module.automatic_optimization:
        _add(ManualCheck(run), trainer, run)


def _add(callback: Callback, trainer: Trainer, run: ScheduledOptimizer, last: bool = False) -> None:
    add_callback(trainer, callback, last)
    run.on_close(partial(remove_callback, trainer, callback))
