"""What a Trainer logs of its training, told to a schedule that follows it, and kept to resume."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainingArguments

from optimplug._core.metrics import name_among
from optimplug.huggingface.evaluations import has_teller, of_main_process
from optimplug.huggingface.internals import give_back_unlogged, logged_mean, unlogged_loss
from optimplug.recipe import RecipeScheduler, Run

__all__ = ["check_logs", "go_on_reporting", "is_report", "keeping_unreported", "report"]

_LOSS = "loss"


def is_report(logs: Mapping[str, Any]) -> bool:
    """Tell whether this is what the Trainer logs of its training, and no evaluation's.

    Its ``loss`` is the mean over the updates since the last such log, and over all processes.
    """
    return _LOSS in logs and "learning_rate" in logs


def check_logs(
    args: TrainingArguments,
    updates: int | None,
    monitors: Collection[str],
    error: Callable[[str], Exception],
    keeps_loss: bool = True,
) -> None:
    """Refuse a run that never logs its loss; warn where a resumed run would report otherwise.

    Args:
        args: those of the Trainer.
        updates: how many the run has, where that is known.
        monitors: what of the training is followed.
        error: makes the error from what is wrong.
        keeps_loss: whether checkpoints hold the losses that were not logged yet.
    """
    never = "follows the training's loss ('of_training: true'), but"
    if args.logging_strategy == "no":
        raise error(f"{never} logging_strategy is 'no'; set logging_strategy='steps' or 'epoch'")
    every = args.logging_steps
    late = args.logging_strategy == "steps" and updates is not None and every > updates
    if late and not args.logging_first_step:
        raise error(
            f"{never} it is logged every {every:g} updates, and the run has {updates}; set a "
            "smaller logging_steps"
        )
    kept = {name for name in monitors if keeps_loss and name_among(name, [_LOSS], of_training=True)}
    if set(monitors) - kept and not _saves_after_logs(args):
        warnings.warn(
            f"the schedule follows {', '.join(sorted(set(monitors) - kept))} as it is logged in "
            "training, and checkpoints are saved between two logs: what was gathered for the next "
            "log is lost to a run that resumes from one; set save_steps to a multiple of "
            "logging_steps, or both strategies to 'epoch'",
            UserWarning,
            stacklevel=3,
        )


def _saves_after_logs(args: TrainingArguments) -> bool:
    """Tell whether there is a log at each update after which a checkpoint is saved."""
    by_evaluation = args.save_strategy == "best"
    strategy = args.eval_strategy if by_evaluation else args.save_strategy
    if strategy == "no" or (args.logging_strategy == "steps" and args.logging_steps == 1):
        return True
    if strategy != args.logging_strategy:
        return False
    every = args.eval_steps if by_evaluation else args.save_steps
    return strategy == "epoch" or every is None or (every / args.logging_steps).is_integer()


def report(trainer: Trainer, run: Run) -> None:
    """Tell a run what the Trainer has logged last, if the schedule follows that.

    A MetricCallback tells the schedule itself, where there is one.
    """
    if _follower(trainer) is not None and not has_teller(trainer):
        run.trained(of_main_process(trainer.state.log_history[-1]))


@contextmanager
def keeping_unreported(trainer: Trainer) -> Iterator[None]:
    """Let the checkpoint that is saved within hold the losses that were not logged yet.

    The Trainer would forget them, and log the mean of those that come after it resumes.
    """
    scheduler = _follower(trainer)
    if scheduler is not None:
        scheduler.unreported = [*unlogged_loss(trainer)]
    try:
        yield
    finally:
        if scheduler is not None:
            scheduler.unreported = [0.0, 0]


def go_on_reporting(trainer: Trainer, run: Run) -> None:
    """Go on with the losses that the checkpoint holds, as the first update is about to come."""
    scheduler = _follower(trainer)
    if scheduler is None or not scheduler.unreported[1]:
        return
    (total, updates), scheduler.unreported = scheduler.unreported, [0.0, 0]
    if trainer.args.logging_strategy == "epoch" and float(trainer.state.epoch or 0.5).is_integer():
        # The log of the epoch came after the checkpoint, and the Trainer makes up for none.
        losses = {_LOSS: logged_mean(total, updates)}
        if all(name_among(name, losses, of_training=True) for name in scheduler.training_monitors):
            run.trained(losses)
    else:
        give_back_unlogged(trainer, total, updates)


def _follower(trainer: Trainer) -> RecipeScheduler | None:
    """Return the schedule, if it is a recipe's that follows the training."""
    scheduler: Any = trainer.lr_scheduler
    follows = isinstance(scheduler, RecipeScheduler) and scheduler.training_monitors
    return scheduler if follows else None
