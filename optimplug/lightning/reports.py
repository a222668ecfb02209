"""What the training has logged of an epoch, told to a schedule that follows it; also resumed.

Lightning's checkpoints do not hold it: a resumed epoch would report the mean of its last batches,
and one that had ended but for its last hooks would report nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import Any

from optimplug._core.metrics import name_among
from optimplug.lightning.internals import (
    add_to_running,
    loaded_checkpoint,
    running_results,
    trained_metrics,
)
from optimplug.lightning.package import Callback, LightningModule, Trainer
from optimplug.lightning.patches import replace
from optimplug.lightning.validations import in_fit, over_processes
from optimplug.recipe.schedule.scheduled import ScheduledOptimizer

__all__ = ["Reports", "ReportsTraining"]

_KEY = "optimplug_training_report"
_HOOK = "on_train_epoch_end"
_ENDED, _RUNNING = "ended", "running"


class Reports:
    """The reports of one schedule, or of several that are told the same.

    Args:
        followed: returns the metrics of the training that are followed, at any time of the run.
        tell: is given the metrics of an epoch.
    """

    def __init__(
        self, followed: Callable[[], Set[str]], tell: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._followed = followed
        self._tell = tell
        self._has_trained = False
        """Whether there was a batch that is not reported yet, in this process."""
        self._saved: dict[str, Any] = {}
        self._has_warned = False

    def save(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Keep what the next report is made of: the whole of it, where the epoch is over."""
        if not (self._followed() and in_fit(trainer) and self._has_trained):
            return
        if trainer.is_last_batch:
            checkpoint[_KEY] = {_ENDED: _as_numbers(self._metrics(trainer))}
        else:
            checkpoint[_KEY] = {_RUNNING: running_results(trainer, self._followed())}

    def load(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Take what an earlier process has kept; who asks first has it."""
        if self._followed() and trainer.training:
            self._saved = checkpoint.pop(_KEY, self._saved)

    def begin(self, trainer: Trainer) -> None:
        """Report the epoch that the checkpoint has ended with, if its report came after it."""
        self._has_trained = False
        if not self._saved:
            return
        held = self._saved.get(_ENDED, self._saved.get(_RUNNING, {}))
        names = [name for key in held for name in (key, key.split(".")[-1])]
        missing = [n for n in self._followed() if name_among(n, names, of_training=True) is None]
        if missing:
            warnings.warn(
                f"the checkpoint was saved within an epoch, and does not hold what that had logged "
                f"of {', '.join(sorted(missing))}: the schedule is told of the batches after it "
                "alone; log it in training_step, as a number, or save at the ends of epochs",
                UserWarning,
                stacklevel=2,
            )
        elif _ENDED in self._saved:
            self._tell(self._saved[_ENDED])
        if _ENDED in self._saved or missing:
            self._saved = {}

    def batch_ended(self, trainer: Trainer) -> None:
        """Let the mean of the epoch hold the batches that came before a resume."""
        self._has_trained = True
        if self._saved:
            left = add_to_running(trainer, self._saved[_RUNNING])
            self._saved = {_RUNNING: left} if left else {}

    def epoch_ended(self, trainer: Trainer) -> None:
        """Tell of the epoch; of none that had ended before this process began.

        Raises:
            ArgumentError: the training has not logged a metric that is followed.
        """
        if self._has_trained and self._followed():
            self._has_trained, self._saved = False, {}
            self._tell(self._metrics(trainer))

    def _metrics(self, trainer: Trainer) -> dict[str, Any]:
        of_epoch, of_batch = trained_metrics(trainer)
        found = {name_among(n, of_epoch | of_batch, of_training=True) for n in self._followed()}
        for name in sorted(filter(None, found - of_epoch.keys())):
            self._warn_of_last(name)
        metrics = {**of_batch, **of_epoch}
        return over_processes(trainer, metrics, set(filter(None, found)))

    def _warn_of_last(self, name: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"the schedule follows {name!r}, which is logged for each batch alone, so that it "
                "is told of the last batch of each epoch; log it with on_epoch=True for the mean",
                UserWarning,
                stacklevel=2,
            )


class ReportsTraining(Callback):
    """Tells a run, as each epoch of training ends, what the module has logged in it.

    Args:
        run: what is told; one whose schedule follows the training.
        module: in a trainer that fits it. What it logs in ``on_train_epoch_end`` counts as well,
            and checkpoints that are saved after that hold the report.
    """

    def __init__(self, run: ScheduledOptimizer, module: LightningModule) -> None:
        self._run, self._module = run, module
        self._reports = Reports(lambda: run.scheduler.training_monitors, self._tell)
        # Lightning calls a module's hook after those of callbacks, and before checkpoints.
        replace(run, module, _HOOK, partial(self._epoch_ended, getattr(module, _HOOK)))

    def _epoch_ended(self, hook: Callable[[], Any]) -> None:
        hook()
        self._reports.epoch_ended(self._module.trainer)

    def _tell(self, metrics: Mapping[str, Any]) -> None:
        scheduler, trainer = self._run.scheduler, self._module.trainer
        # Stochastic weight averaging puts a scheduler of its own there.
        if any(config.scheduler is scheduler for config in trainer.lr_scheduler_configs):
            self._run.trained(metrics)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what the next report is made of."""
        self._reports.save(trainer, checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take what an earlier process has kept."""
        self._reports.load(trainer, checkpoint)

    def look_back(self, trainer: Trainer) -> None:
        """Do the same where the checkpoint was loaded before this callback came."""
        self._reports.load(trainer, loaded_checkpoint(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what the checkpoint came just before, if it did."""
        self._reports.begin(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Go on with what was logged before a resume."""
        self._reports.batch_ended(trainer)


def _as_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
