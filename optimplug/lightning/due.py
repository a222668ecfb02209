"""A validation that was due when a checkpoint was saved, which Lightning would leave out."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

__all__ = ["is_due", "make_up_for", "note_due", "was_due"]

_KEY = "optimplug_validation_due"


def note_due(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Write into a checkpoint that a validation comes next, if it does."""
    if is_due(trainer):
        checkpoint[_KEY] = True


def is_due(trainer: Trainer) -> bool:
    """Return whether a batch is about to end after which Lightning will validate."""
    loop = trainer.fit_loop.epoch_loop
    batches = loop.batch_progress.total
    fetcher = trainer.fit_loop._data_fetcher
    if not trainer.training or fetcher is None or batches.completed == batches.ready:
        return False
    return loop._should_check_val_fx(fetcher)


def was_due(trainer: Trainer) -> bool:
    """Return whether the checkpoint that is being resumed from says so."""
    return _KEY in trainer._checkpoint_connector._loaded_checkpoint


def make_up_for(trainer: Trainer) -> None:
    """Validate now, as Lightning would have done after the batch."""
    loop = trainer.fit_loop.epoch_loop
    first = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    loop.val_loop.restarting = False
    loop.val_loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first
