"""A validation that was due when a checkpoint was saved, which Lightning would leave out."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

__all__ = [
    "note_pending_validation",
    "pop_pending_validation",
    "pop_resumed_validation",
    "run_pending_validation",
    "validation_is_pending",
]

_KEY = "optimplug_validation_due"


def note_pending_validation(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Write into a checkpoint that a validation comes next, if it does."""
    if validation_is_pending(trainer):
        checkpoint[_KEY] = True


def validation_is_pending(trainer: Trainer) -> bool:
    """Return whether a batch is about to end after which Lightning will validate."""
    loop = trainer.fit_loop.epoch_loop
    batches = loop.batch_progress.total
    fetcher = trainer.fit_loop._data_fetcher
    if not trainer.training or fetcher is None or batches.completed == batches.ready:
        return False
    return loop._should_check_val_fx(fetcher)


def pop_resumed_validation(trainer: Trainer) -> bool:
    """Return whether the checkpoint that is being resumed from says so, to the first who asks."""
    return pop_pending_validation(trainer._checkpoint_connector._loaded_checkpoint)


def pop_pending_validation(checkpoint: dict[str, Any]) -> bool:
    """Return whether a loaded checkpoint says so, to the first who asks."""
    return bool(checkpoint.pop(_KEY, False))


def run_pending_validation(trainer: Trainer) -> None:
    """Validate now, as Lightning would have done after the batch."""
    loop = trainer.fit_loop.epoch_loop
    first = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    loop.val_loop.restarting = False
    loop.val_loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first
