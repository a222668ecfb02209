"""Callbacks for PyTorch Lightning."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from optimplug._core.optim.gradients import global_norm
from optimplug.callbacks.step_interval import Interval, StepInterval
from optimplug.callbacks.trace import LearningRateTrace as _Trace
from optimplug.errors import ArgumentError, MissingExtraError, StateError
from optimplug.recipe import Recipe, RecipeScheduler
from optimplug.recipe.text.reader import Source

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.types import LRSchedulerConfig
except ImportError:
    raise MissingExtraError("optimplug.callbacks.lightning", "lightning") from None

from optimplug.lightning.configure import take_over
from optimplug.lightning.metric import MetricCallback, agreed, in_fit, require_validations
from optimplug.lightning.pending_validation import (
    note_pending_validation,
    pop_pending_validation,
    run_pending_validation,
)
from optimplug.recipe.updates import Updates

__all__ = [
    "LearningRateTrace",
    "MetricCallback",
    "OptimizerMonitor",
    "RecipeCallback",
    "SchedulerCallback",
]


class LearningRateTrace(_Trace, Callback):
    """:class:`optimplug.callbacks.trace.LearningRateTrace` over a whole ``fit``.

    Example:
        ``Trainer(callbacks=[LearningRateTrace()])``
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to every optimizer of the module."""
        for optimizer in trainer.optimizers:
            self.attach(optimizer)


class RecipeCallback(Callback):
    """Lets a recipe take over a module as it is, whatever its ``configure_optimizers`` says.

    Lightning asks that a module has that method before any callback is heard; for a module without
    it there are :class:`optimplug.lightning.RecipeMixin` and
    :class:`optimplug.lightning.RecipeCLI`. See :func:`optimplug.lightning.configure_optimizers`
    for what a recipe does.

    Args:
        recipe: a path, a mapping or a :class:`Recipe`.

    Raises:
        RecipeError: the recipe is wrong in itself.

    Example::

        trainer:
          callbacks:
            - class_path: optimplug.callbacks.lightning.RecipeCallback
              init_args: {recipe: recipe.yaml}
    """

    def __init__(self, recipe: Source | Recipe) -> None:
        self.recipe = Recipe.load(recipe)
        self._give_back: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over, before the module is asked for its optimizers."""
        if stage == "fit":
            self._give_back = take_over(pl_module, self.recipe)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was, for other trainers."""
        self._leave()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self._leave()

    def _leave(self) -> None:
        if self._give_back is not None:
            self._give_back()
            self._give_back = None


class SchedulerCallback(Callback):
    """Steps any scheduler of torch after updates, epochs or validations.

    The module's ``configure_optimizers`` returns its optimizer without it. The scheduler is saved
    in checkpoints and shown to other callbacks as Lightning's own are, and a resumed run goes on
    where it was. After an update that AMP skipped it is not stepped.

    Args:
        scheduler_or_factory: a scheduler of torch or optimplug for one of the module's optimizers;
            or a function from the optimizer to one, for a module that has one optimizer.
        interval: what is counted: "step" (updates of the optimizer), "epoch" or "validation".
            An epoch that was broken off is none, nor is a validation outside of ``fit``.
        frequency: after every how many of them it is stepped.
        monitor: the metric that a plateau follows, as the module logs it; its mean over all
            processes.

    Raises:
        ArgumentError: an argument breaks its rule; or, when the run starts, the scheduler does not
            fit the module or the other arguments; or the module has not logged the metric.

    Example:
        ``SchedulerCallback(lambda optimizer: StepLR(optimizer, 30), interval="epoch")``
    """

    def __init__(
        self,
        scheduler_or_factory: LRScheduler | Callable[[torch.optim.Optimizer], LRScheduler],
        interval: Interval = "step",
        frequency: int = 1,
        monitor: str | None = None,
    ) -> None:
        self.step_interval = StepInterval(interval, frequency, monitor)
        self._given = scheduler_or_factory
        self._count = 0
        self._due = False
        if isinstance(scheduler_or_factory, LRScheduler):
            self.step_interval.check(scheduler_or_factory)
        elif not callable(scheduler_or_factory):
            given = type(scheduler_or_factory).__name__
            raise ArgumentError(
                f"scheduler_or_factory must be a scheduler, or a function to one (got {given})"
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to count."""
        self._count = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the scheduler, and give it to the trainer, who saves and restores it."""
        if self.step_interval.interval == "validation":
            require_validations(trainer, lambda problem: ArgumentError(f"the callback {problem}"))
        self.scheduler = self._scheduler(trainer)
        self._updates = Updates(self.scheduler.optimizer)
        # Lightning steps every frequency-th time that it would, so never.
        config = LRSchedulerConfig(self.scheduler, interval="step", frequency=sys.maxsize)
        trainer.strategy.lr_scheduler_configs.append(config)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up for the validation that the checkpoint came just before, if it did."""
        if self._due:
            self._due = False
            run_pending_validation(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Step after an update, or after the last one of an epoch: before checkpoints are saved."""
        if self.step_interval.interval == "step":
            self._counted(self._updates.take())
        elif self.step_interval.interval == "epoch":
            self._counted(int(trainer.is_last_batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step after a validation in ``fit``; the sanity check is none."""
        if self.step_interval.interval == "validation" and in_fit(trainer):
            monitor = self.step_interval.monitor
            self._counted(1, agreed(trainer, {monitor} if monitor else set()))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save how much was counted; the scheduler's state is with the trainer's."""
        checkpoint.setdefault(_SAVED, {})[self._place(trainer)] = {
            **self._kind(),
            "count": self._count,
        }
        if self.step_interval.interval == "validation":
            note_pending_validation(trainer, checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on counting where the run was; one that had no such callback begins to count.

        Raises:
            StateError: the run had other callbacks of this class, or in another order.
        """
        saved = checkpoint.get(_SAVED)
        if saved is None or not trainer.training:
            return
        here = saved.get(self._place(trainer), {})
        kind = {key: value for key, value in here.items() if key != "count"}
        if kind != self._kind() or len(saved) != len(_all_in(trainer)):
            raise StateError(
                f"the checkpoint's SchedulerCallbacks are {[*saved.values()]}, but number "
                f"{self._place(trainer)} here is {self._kind()}; give the same, in the same order"
            )
        self._count = here["count"]
        self._due = self.step_interval.interval == "validation" and pop_pending_validation(
            checkpoint
        )

    def _scheduler(self, trainer: Trainer) -> LRScheduler:
        optimizers = trainer.optimizers
        scheduler = self._given
        if not isinstance(scheduler, LRScheduler):
            if len(optimizers) != 1:
                raise ArgumentError(
                    "scheduler_or_factory must be a scheduler, not a function to one, where the "
                    f"module has {len(optimizers)} optimizers"
                )
            scheduler = scheduler(optimizers[0])
            self.step_interval.check(scheduler)
        if not any(scheduler.optimizer is optimizer for optimizer in optimizers):
            raise ArgumentError(
                "scheduler_or_factory must be a scheduler of an optimizer that the module's "
                "configure_optimizers returns"
            )
        for other in (config.scheduler for config in trainer.lr_scheduler_configs):
            if other is scheduler:
                raise ArgumentError(
                    "scheduler_or_factory is stepped by Lightning already; let "
                    "configure_optimizers return the optimizer alone"
                )
            recipes = isinstance(other, RecipeScheduler) and other.changes
            if recipes and other.optimizer is scheduler.optimizer:
                raise ArgumentError(
                    "the optimizer of scheduler_or_factory already follows a recipe's schedule; "
                    "leave out one of the two"
                )
        return scheduler

    def _counted(self, new: int, metrics: Mapping[str, Any] | None = None) -> None:
        for _ in range(new):
            if self.step_interval.due(self._count + 1):
                self.step_interval.step(self.scheduler, metrics)
            self._count += 1

    def _place(self, trainer: Trainer) -> int:
        """Return which of the trainer's callbacks of this class it is."""
        return _all_in(trainer).index(self)

    def _kind(self) -> dict[str, Any]:
        return asdict(self.step_interval)


def _all_in(trainer: Trainer) -> list[SchedulerCallback]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined] # annotated nowhere
    return [c for c in callbacks if isinstance(c, SchedulerCallback)]


_SAVED = "optimplug_scheduler_callbacks"


class OptimizerMonitor(Callback):
    """Logs the rate of every group by its name, and the norm of the gradients before clipping.

    Logged by the module, as ``lr/<group>`` and ``grad_norm``, at the trainer's own logging steps,
    just before an update: the rates are those that the update uses. (Lightning's
    LearningRateMonitor, which logs rates alone, knows the groups' names as well.) Of several
    optimizers, the keys have the number of each: ``lr/0/<group>``.

    Args:
        momentum: log ``momentum/<group>`` too: its momentum, or the first of its betas.
        weight_decay: log ``weight_decay/<group>`` too.
        grad_norm: log the norm.

    Example:
        ``Trainer(callbacks=[OptimizerMonitor(weight_decay=True)], logger=CSVLogger("logs"))``
    """

    def __init__(
        self, momentum: bool = False, weight_decay: bool = False, grad_norm: bool = True
    ) -> None:
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.grad_norm = grad_norm

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log, where it is time."""
        if not trainer._logger_connector.should_update_logs:  # as LearningRateMonitor asks
            return
        of = f"/{trainer.optimizers.index(optimizer)}" if len(trainer.optimizers) > 1 else ""
        values: dict[str, float | torch.Tensor] = {}
        for i, group in enumerate(optimizer.param_groups):
            for what, value in self._values(group).items():
                values[f"{what}{of}/{group.get('name', i)}"] = value
        if self.grad_norm:
            values[f"grad_norm{of}"] = _norm(trainer, optimizer)
        pl_module.log_dict(values)

    def _values(self, group: dict[str, Any]) -> dict[str, float]:
        values = {"lr": group["lr"]}
        if self.momentum and ("momentum" in group or "betas" in group):
            values["momentum"] = group["betas"][0] if "betas" in group else group["momentum"]
        if self.weight_decay and "weight_decay" in group:
            values["weight_decay"] = group["weight_decay"]
        return {what: float(value) for what, value in values.items()}


def _norm(trainer: Trainer, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    found = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    grads = [g.coalesce().values() if g.is_sparse else g for g in found]
    norm = global_norm(grads) if grads else torch.zeros(())
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        norm = norm / float(scaler.get_scale())  # such an optimizer unscales in its step
    return norm
