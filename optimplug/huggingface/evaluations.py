"""Whether a run has the evaluations that a schedule waits for, and keeps them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from transformers import Trainer, TrainingArguments

__all__ = ["check_evaluations", "has_teller", "of_main_process"]


def has_teller(trainer: Trainer) -> bool:
    """Tell whether a MetricCallback tells the scheduler of metrics already."""
    callbacks = trainer.callback_handler.callbacks
    return any(getattr(callback, "tells_recipes", False) for callback in callbacks)


def of_main_process(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the main process's metrics, so that all processes come to the same decision."""
    shared: dict[str, Any] = broadcast_object_list([metrics])[0]
    return shared


def check_evaluations(args: TrainingArguments, error: Callable[[str], Exception]) -> None:
    """Refuse a run without evaluations; warn where a resumed run would lose one.

    Args:
        args: those of the Trainer.
        error: makes the error from what is wrong.
    """
    if args.eval_strategy == "no":
        raise error(
            "counts validations or follows a metric, but eval_strategy is 'no'; set "
            "eval_strategy='epoch' or 'steps'"
        )
    # After an update the Trainer evaluates, then saves; but at an epoch's end only after both.
    if args.save_strategy == "steps" and args.eval_strategy == "epoch":
        warnings.warn(
            "the schedule counts validations, and there is one after each epoch, but checkpoints "
            "are saved after steps: one saved after an epoch's last step is without the validation "
            "that follows, which is lost to a run that resumes from it; set save_strategy='epoch' "
            "or eval_strategy='steps'",
            UserWarning,
            stacklevel=3,
        )
