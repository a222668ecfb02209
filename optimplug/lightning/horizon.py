"""How long a Trainer will run."""

from __future__ import annotations

import math

from optimplug.lightning.internals import callbacks_of, forget_data_setup
from optimplug.lightning.package import GradientAccumulationScheduler, Trainer
from optimplug.recipe import Horizon

__all__ = ["accumulated", "horizon_of"]

# A rehearsal of a few batches stands for a long run: it goes through the start of the schedule.
_REHEARSED = Horizon(total_steps=1_000_000, steps_per_epoch=1_000)


def horizon_of(trainer: Trainer) -> Horizon:
    """Return how long the trainer will run, in optimizer updates; unknown where it cannot tell.

    Updates that it has made in a fit before do not count. Under ``fast_dev_run`` it is a long run
    of which there are only the first updates.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined] # annotated nowhere
        return _REHEARSED
    whole = _whole(trainer)
    # A checkpoint brings its place in the run with it; without one the schedule begins anew.
    done = 0 if trainer.ckpt_path is not None else _updates(trainer)
    if whole.total_steps is None or done >= whole.total_steps:
        return whole
    return Horizon(whole.total_steps - done, whole.steps_per_epoch)


def accumulated(trainer: Trainer) -> int:
    """Return how many batches make an update in this epoch, which is about to begin."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler):  # it tells the trainer only then
            return callback.get_accumulate_grad_batches(trainer.current_epoch)
    return trainer.accumulate_grad_batches


def _updates(trainer: Trainer) -> int:
    """Return how many updates each optimizer has made; the trainer counts those of all."""
    return trainer.global_step // max(1, len(trainer.optimizers))


def _whole(trainer: Trainer) -> Horizon:
    """Return the horizon of all that the trainer does, in however many fits."""
    total = trainer.estimated_stepping_batches
    trainer.fit_loop.setup_data()  # an endless run has not looked at its data yet
    batches = trainer.num_training_batches
    if trainer.ckpt_path is not None:
        forget_data_setup(trainer)  # which the questions above had it do too early
    known = math.isfinite(total) and total > 0  # inf: endless; -1: data without a length
    horizon = Horizon(
        total_steps=int(total) if known else None,
        steps_per_epoch=math.ceil(batches / trainer.accumulate_grad_batches)
        if math.isfinite(batches)
        else None,
    )
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler) and math.isfinite(batches):
            return _under(callback, trainer, int(batches), horizon)
    return horizon


def _under(
    callback: GradientAccumulationScheduler, trainer: Trainer, batches: int, horizon: Horizon
) -> Horizon:
    """Return the horizon under accumulation by epoch, which Lightning's own estimate ignores."""
    if horizon.total_steps is None or not trainer.max_epochs or trainer.max_epochs < 0:
        return Horizon()
    factors = [callback.get_accumulate_grad_batches(e) for e in range(trainer.max_epochs)]
    epochs = [math.ceil(batches / factor) for factor in factors]
    total = sum(epochs) if trainer.max_steps == -1 else min(sum(epochs), trainer.max_steps)
    return Horizon(total, epochs[0] if len(set(epochs)) == 1 else None)
