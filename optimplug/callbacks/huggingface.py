"""Callbacks for the Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

from optimplug.callbacks.trace import LearningRateTrace as _Trace
from optimplug.errors import MissingExtraError

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError:
    raise MissingExtraError("optimplug.callbacks.huggingface", "huggingface") from None

__all__ = ["LearningRateTrace"]


class LearningRateTrace(_Trace, TrainerCallback):
    """:class:`optimplug.callbacks.trace.LearningRateTrace` over a whole ``train``.

    Example:
        ``Trainer(..., callbacks=[LearningRateTrace()])``
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Listen to the trainer's optimizer."""
        self._handle = self.attach(kwargs["optimizer"])

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Stop listening: another ``train`` may go on with the same optimizer."""
        self._handle.remove()
