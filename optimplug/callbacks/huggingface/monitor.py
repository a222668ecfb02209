"""What shows the rates of a run of the Trainer, and what its updates have lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args
from transformers.trainer_utils import IntervalStrategy, has_length

from optimplug.callbacks.lost_updates import LostUpdates
from optimplug.callbacks.monitored import lost_values
from optimplug.callbacks.trace import LearningRateTrace as _Trace
from optimplug.huggingface.console import NextLine
from optimplug.recipe.logged import LoggedGroups, group_values

__all__ = ["LearningRateTrace", "OptimizerMonitor"]


class LearningRateTrace(_Trace, TrainerCallback):
    """:class:`optimplug.callbacks.trace.LearningRateTrace` over a whole ``train``.

    Example:
        ``Trainer(..., callbacks=[LearningRateTrace()])``
    """

    _handle: RemovableHandle | None = None

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Listen to the trainer's optimizer."""
        self._stop()  # auto_find_batch_size begins anew without an end
        self._handle = self.attach(kwargs["optimizer"])

    def on_train_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Stop listening: another ``train`` may go on with the same optimizer."""
        self._stop()

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()


class OptimizerMonitor(TrainerCallback):
    """Logs the rate of every group by its name, and what an update has lost to rounding.

    They are logged beside the loss, as ``lr/<group>``: the rates are those that the last update
    used. (The Trainer logs the norm of the gradients by itself, and a RecipeTrainer the rates.) A
    RecipeTrainer's reporters have all of it. Another Trainer's ``log_history`` and console have it,
    and those reporters that come after it among the callbacks: with ``report_to``, put it before
    them, ``trainer.callback_handler.callbacks.insert(0, OptimizerMonitor(...))``.

    Args:
        momentum: log ``momentum/<group>`` too: its momentum, or the first of its betas.
        weight_decay: log ``weight_decay/<group>`` too.
        lost_updates: log ``lost_updates/<group>`` too, and ``lost_updates`` for all groups: the
            share of bfloat16 and float16 weights that the update has left as they were, as it was
            too small. See :mod:`optimplug.callbacks.lost_updates` for what counts, and what it
            costs: at the updates alone after which the arguments have the Trainer log. An update
            that is skipped has none.
        log_groups: globs on the names of the groups that are logged; None for all. A
            RecipeTrainer's own ``log_groups`` holds too.

    A line of the console that would have 200 characters or more has no groups: it has, of each
    quantity, from where to where it goes.

    Raises:
        ArgumentError: ``log_groups`` holds what is no text; or, as training begins, what matches no
            group.

    Example:
        ``RecipeTrainer(..., callbacks=[OptimizerMonitor(lost_updates=True)])``
    """

    logs_updates = True
    """What a ``RecipeTrainer`` goes by."""

    def __init__(
        self,
        momentum: bool = False,
        weight_decay: bool = False,
        lost_updates: bool = False,
        log_groups: str | Sequence[str] | None = None,
    ) -> None:
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.lost_updates = lost_updates
        self.values: dict[str, float] = {}
        """What is logged next: that of the last update."""
        self._logged = LoggedGroups(log_groups)
        self._lost = LostUpdates()
        self._line = NextLine()

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Refuse to log groups that there are not."""
        self._logged.check([kwargs["optimizer"]])

    def on_pre_optimizer_step(
        self, args: Args, state: State, control: Control, **kwargs: Any
    ) -> None:
        """Note the rates, and see what the update does, if it will be logged."""
        optimizer = kwargs["optimizer"]
        self.values = group_values(optimizer, self.momentum, self.weight_decay, logged=self._logged)
        if self.lost_updates and _is_logged(args, state, kwargs["train_dataloader"]):
            self._lost.watch(optimizer)

    def on_optimizer_step(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Note what the update has lost."""
        shares = self._lost.take()
        if shares is not None:
            self.values |= lost_values(shares, self._logged)

    def on_log(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Add it to what is logged of the training, where it is not there yet."""
        logs: dict[str, Any] = kwargs["logs"]
        if "loss" in logs and "learning_rate" in logs:
            logs.update(self.values)
            state.log_history[-1].update(self.values)
            self._line.shorten(logs)

    def on_step_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Leave the console as it was, if nobody has written to it since."""
        self._line.leave()

    def on_train_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Measure no more, and leave the console as it was."""
        self._lost.take()
        self._line.leave()


def _is_logged(args: Args, state: State, batches: Any) -> bool:
    """Tell whether the Trainer will log after the update that comes next.

    By epochs it is the last of one; where the data has no length, that might be any.
    """
    update = state.global_step + 1
    if args.logging_strategy == IntervalStrategy.STEPS:
        return update % state.logging_steps == 0 or (update == 1 and args.logging_first_step)
    if args.logging_strategy == IntervalStrategy.EPOCH and has_length(batches):
        return update % math.ceil(len(batches) / args.gradient_accumulation_steps) == 0
    return args.logging_strategy == IntervalStrategy.EPOCH
