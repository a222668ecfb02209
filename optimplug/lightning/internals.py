"""All that this package needs of Lightning and cannot ask for in public, each with its reason.

Nowhere else is a private attribute of Lightning touched. ``tests/lightning/test_internals.py`` says
which of these a new release has broken.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import nn

from optimplug._core.metrics import name_among
from optimplug.lightning.package import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    LightningModule,
    Trainer,
)

__all__ = [
    "add_callback",
    "add_to_running",
    "callbacks_of",
    "changes_batch_size_in_fit",
    "forget_data_setup",
    "loaded_checkpoint",
    "ready_batch",
    "remove_callback",
    "run_validation",
    "running_results",
    "sets_rates",
    "should_log",
    "trained_metrics",
    "uncompiled",
    "unscales_by_itself",
    "validated_metrics",
    "validation_is_pending",
]


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the trainer's callbacks: the attribute is public, but annotated nowhere."""
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def add_callback(trainer: Trainer, callback: Callback, last: bool = False) -> None:
    """Let a callback hear of everything first, before those that save checkpoints; or last.

    A trainer takes callbacks only when it is built, and a recipe is known when it runs.
    """
    others = callbacks_of(trainer)
    trainer.callbacks = [*others, callback] if last else [callback, *others]  # type: ignore[attr-defined]


def remove_callback(trainer: Trainer, callback: Callback) -> None:
    """Take a callback away, if it is there."""
    # A new list: Lightning may be walking through the old one.
    others = [other for other in callbacks_of(trainer) if other is not callback]
    trainer.callbacks = others  # type: ignore[attr-defined]


def sets_rates(finder: LearningRateFinder) -> bool:
    """Return whether the finder writes the rate that it finds into the optimizer.

    It keeps what it was asked to do for itself.
    """
    return finder._update_attr


def changes_batch_size_in_fit(finder: BatchSizeFinder) -> bool:
    """Return whether the finder works within a fit, and not for a Tuner, which ends that fit.

    Both are the same class, and only this flag tells them apart.
    """
    return not finder._early_exit


def forget_data_setup(trainer: Trainer) -> None:
    """Let the trainer set its training data up anew.

    It restores the place in the data of a checkpoint only as it sets the data up. Whoever asks for
    the length of the run has it do so before the checkpoint is read; the run would start over.
    """
    trainer.fit_loop._combined_loader = None


def loaded_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Return the checkpoint that is being resumed from; empty if there is none.

    A module is asked for its optimizers after callbacks were shown the checkpoint, so what is added
    then would never see it.
    """
    return trainer._checkpoint_connector._loaded_checkpoint


def validation_is_pending(trainer: Trainer) -> bool:
    """Return whether a batch is about to end after which Lightning will validate.

    There is no public way to ask. A checkpoint that is saved now comes just before a validation,
    which Lightning would leave out when it resumes.
    """
    loop = trainer.fit_loop.epoch_loop
    batches = loop.batch_progress.total
    fetcher = trainer.fit_loop._data_fetcher
    if not trainer.training or fetcher is None or batches.completed == batches.ready:
        return False
    return loop._should_check_val_fx(fetcher)


def validated_metrics(trainer: Trainer) -> dict[str, Any]:
    """Return what the validation that is about to end has logged, and nothing else.

    ``trainer.callback_metrics`` also holds what the training has logged, and what earlier
    validations have. Several data loaders have names of their own, as they have there.
    """
    results = trainer._results
    if results is None:
        return {}
    logged = [r for r in results.values() if r.meta.on_epoch and not r.has_reset]
    names = {name for r in logged for name in results._forked_name(r, on_step=False)}
    return {name: value for name, value in trainer.callback_metrics.items() if name in names}


def ready_batch(trainer: Trainer, module: LightningModule, batch: Any) -> tuple[Any, ...]:
    """Return the arguments of ``training_step`` for a batch as it comes from the data.

    A fit's own fetcher does this on the way, and offers it nowhere else.
    """
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    takes_number = "batch_idx" in inspect.signature(module.training_step).parameters
    return (batch, 0) if takes_number else (batch,)


def trained_metrics(trainer: Trainer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the training has logged of this epoch: its means, and that of the last batch.

    ``trainer.callback_metrics`` also holds what validations, and earlier epochs, have logged.
    """
    results = trainer.fit_loop.epoch_loop._results
    of_epoch, of_batch = (results.metrics(on_step=on_step)["callback"] for on_step in (False, True))
    return of_epoch, of_batch


def running_results(trainer: Trainer, names: Set[str]) -> dict[str, dict[str, Any]]:
    """Return the sums from which Lightning will take the means of an epoch of training.

    It keeps them in no checkpoint. They are means over processes here, as each goes on with them.
    What is logged for each batch alone has no sums.

    Args:
        trainer: within an epoch.
        names: of the metrics, as they may be said elsewhere.
    """
    found = {}
    for key, result in trainer.fit_loop.epoch_loop._results.items():
        logged = result.is_tensor and not result.has_reset
        if logged and any(name_among(n, [result.meta.name], of_training=True) for n in names):
            states = result._defaults if result.meta.on_epoch else ()
            found[key] = {name: _shared(trainer, getattr(result, name)) for name in states}
    return found


def _shared(trainer: Trainer, value: torch.Tensor) -> torch.Tensor:
    """Return the mean over processes, of a whole number as well."""
    own = value.detach().clone()
    if trainer.world_size > 1:
        number = own if own.is_floating_point() else own.float()
        own = trainer.strategy.reduce(number, reduce_op="mean").to(own.dtype)
    return own.cpu()


def add_to_running(
    trainer: Trainer, saved: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Let Lightning go on with such sums; return those that the training has not logged yet."""
    left = dict(saved)
    results = trainer.fit_loop.epoch_loop._results
    for key in [key for key in saved if key in results and not results[key].has_reset]:
        result, before = results[key], left.pop(key)
        adds = result.meta.is_mean_reduction or result.meta.is_sum_reduction
        combine = operator.add if adds else result.meta.reduce_fx
        for name, value in before.items():
            own = getattr(result, name)
            setattr(result, name, combine(value.to(own.device), own))
    return left


def run_validation(trainer: Trainer) -> None:
    """Validate in the midst of a fit, as Lightning does after a batch.

    ``trainer.validate`` would end the fit. What the logger's connector notes of the first batch is
    put back, as the batch that Lightning would have validated after is in another process.
    """
    loop = trainer.fit_loop.epoch_loop
    first = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    loop.val_loop.restarting = False
    loop.val_loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first


def should_log(trainer: Trainer) -> bool:
    """Return whether it is time to log; Lightning's LearningRateMonitor asks the same."""
    return trainer._logger_connector.should_update_logs


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` has wrapped, whose parameters have the plain names.

    It is torch that keeps it in a private attribute.
    """
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


def unscales_by_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the gradients still have the scale of AMP when the optimizer is stepped.

    It is by this attribute of torch that a GradScaler knows.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False)
