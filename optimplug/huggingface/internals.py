"""What the adapter takes from the inside of transformers and accelerate, each with its reason.

The steps of a Trainer are in events/internals.py. A new release may change any of it without a
word: tests/huggingface/test_internals.py tries each and names the one that broke. The rest of the
package touches public names alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sized
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

import torch
import transformers
from accelerate.scheduler import AcceleratedScheduler  # type: ignore[import-untyped]
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments, default_data_collator
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import has_length

from optimplug.recipe import Horizon

__all__ = [
    "HAS_STEPS",
    "TAKES_FACTORIES",
    "UnbuiltTrainer",
    "beginning_to_train",
    "give_back_unlogged",
    "horizon_in",
    "logged_mean",
    "loss_of",
    "model_without_weights",
    "planned_by",
    "unlogged_loss",
    "unwrapped",
    "updates_before",
]

_Model = TypeVar("_Model", bound=PreTrainedModel)

HAS_STEPS = hasattr(Trainer, "_finalize_training")
"""Whether the steps of the training loop are methods, as they are since transformers 5.3."""

TAKES_FACTORIES = HAS_STEPS
"""Whether ``optimizer_cls_and_kwargs`` may hold what is called with the model: from 5.3 on too."""


def planned_by(trainer: Trainer) -> Horizon:
    """Return the horizon that a trainer counts, of what it will load."""
    loader = trainer.get_train_dataloader()
    count: Any = trainer.set_initial_training_values
    told: tuple[int, ...] = ()
    if (
        "total_train_batch_size"
        in inspect.signature(Trainer.set_initial_training_values).parameters
    ):
        told = (cast("Any", trainer).get_total_train_batch_size(trainer.args),)
    return horizon_in(count(trainer.args, loader, *told), loader)


def updates_before(trainer: Trainer, checkpoint: Path) -> int:
    """Return how many updates there were before a checkpoint.

    Before transformers 5.3 a Trainer reads that from the checkpoint after it has loaded the rest.
    """
    file = checkpoint / TRAINER_STATE_NAME
    state = TrainerState.load_from_json(str(file)) if file.is_file() else trainer.state
    return state.global_step


def horizon_in(values: tuple[Any, ...], loader: DataLoader[Any]) -> Horizon:
    """Return the horizon that is in ``Trainer.set_initial_training_values``'s answer.

    That is a tuple of seven without names: the second are the updates of an epoch, the last those
    of the run.
    """
    # For data without a length the Trainer puts the whole run in the epoch's place.
    return Horizon(values[6], values[1] if has_length(loader) else None)


class UnbuiltTrainer(Trainer):
    """As much of a Trainer as can tell how long it will run: no model, no seed, no folder.

    Its constructor is not called, which wants a model: it sets what the counting alone reads.
    """

    def __init__(self, args: TrainingArguments, train_dataset: Dataset[Any] | Sized | None) -> None:
        self.args = copy.copy(args)
        # The Trainer writes into this one as it reads it, and a second reading then fails.
        self.args.accelerator_config = copy.deepcopy(args.accelerator_config)
        self.args.remove_unused_columns = False
        # In another order there are as many rows, and none is looked at.
        if hasattr(self.args, "group_by_length"):  # before 5.3
            self.args.group_by_length = False
        elif self.args.train_sampling_strategy == "group_by_length":
            self.args.train_sampling_strategy = "random"
        self.train_dataset = cast("Any", train_dataset)
        self.model = self.deepspeed = self.processing_class = None
        self.data_collator = default_data_collator
        self._train_batch_size = args.train_batch_size
        self.create_accelerator_and_postprocess()


def loss_of(trainer: Trainer, batch: Any) -> torch.Tensor:
    """Return the loss of a batch as a training step computes it, before any gradient.

    ``training_step`` would scale it, and call backward by itself.
    """
    model = trainer.model_wrapped
    model.train()
    inputs = trainer._prepare_inputs(batch)
    with trainer.compute_loss_context_manager():
        loss = cast(torch.Tensor, trainer.compute_loss(model, inputs))
    return loss.mean()  # of several devices in one process


def unlogged_loss(trainer: Trainer) -> tuple[float, int]:
    """Return the sum of the losses since the last log, and of how many updates it is.

    It is the mean over all processes, as the Trainer logs it. It keeps both for itself, and only
    as it trains.
    """
    running: Any = trainer
    total = trainer.accelerator.gather(running._tr_loss).mean().item()
    return total, trainer.state.global_step - running._globalstep_last_logged


def logged_mean(total: float, updates: int) -> float:
    """Return the mean loss that a Trainer would log: before transformers 5, rounded."""
    mean = total / updates
    return round(mean, 4) if int(transformers.__version__.partition(".")[0]) < 5 else mean


def give_back_unlogged(trainer: Trainer, total: float, updates: int) -> None:
    """Let a Trainer that has just begun to train log the mean with losses of before it resumed.

    The loss of the whole training, which it returns, stays that of the updates of this process.
    """
    running: Any = trainer
    running._tr_loss += total
    running._total_loss_scalar -= total
    running._globalstep_last_logged -= updates


_TRAINING_LOOP = "_inner_training_loop"


def beginning_to_train(frame: FrameType | None) -> Trainer | None:
    """Return the trainer whose training loop has called a function; None if another has.

    The loop asks its arguments for the device as all is prepared and nothing is trained yet; before
    5.3, again at each update.

    Args:
        frame: of that function.
    """
    name, caller = "" if frame is None else frame.f_code.co_name, frame
    while caller is not None and caller.f_code.co_name == name:
        caller = caller.f_back  # a derived class may have a function of that name, which asks this
    if caller is None or caller.f_code.co_name != _TRAINING_LOOP:
        return None
    found = caller.f_locals.get("self")
    return found if isinstance(found, Trainer) else None


def unwrapped(scheduler: Any) -> Any:
    """Return a scheduler itself, if it is in accelerate's wrapper, which is none of torch's."""
    return scheduler.scheduler if isinstance(scheduler, AcceleratedScheduler) else scheduler


def model_without_weights(cls: type[_Model], config: Any) -> _Model:
    """Build a model on the meta device: shapes, no weights.

    ``_from_config`` is what ``AutoModel.from_config`` calls: unlike the constructor it heeds the
    dtype and the attention that the config names. An AutoModel would need to know the task.
    """
    with torch.device("meta"):
        return cast("_Model", cast("Any", cls)._from_config(config))
