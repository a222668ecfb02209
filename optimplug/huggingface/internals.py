"""All that the adapter takes from the inside of transformers and accelerate, each with its reason.

A new release may change any of it without a word: tests/huggingface/test_internals.py tries each
and names the one that broke. The rest of the package touches public names alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import transformers
from accelerate.scheduler import AcceleratedScheduler  # type: ignore[import-untyped]
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments, default_data_collator
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import has_length

from optimplug.recipe import Horizon

__all__ = [
    "NEEDED",
    "TAKES_FACTORIES",
    "TrainerEvents",
    "UnbuiltTrainer",
    "beginning_to_train",
    "give_back_unlogged",
    "horizon_in",
    "logged_mean",
    "loss_of",
    "model_without_weights",
    "planned_by",
    "require_methods",
    "unlogged_loss",
    "unwrapped",
    "updates_before",
]

_Model = TypeVar("_Model", bound=PreTrainedModel)
if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object  # what derives from it stands before a Trainer in the bases

_HAS_STEPS = hasattr(Trainer, "_finalize_training")
"""Whether the steps of the training loop are methods, as they are since transformers 5.3."""

_STEPS: Mapping[str, str] = {
    "_clip_grad_norm": "clips: max_grad_norm=0 would keep it from that, but is the user's to set",
    "_finalize_training": "loads the best weights at the end, before any callback is asked",
    "_get_grad_norm": "measures the norm that is logged, of gradients that are scaled under AMP",
}
_LOOP: Mapping[str, str] = {
    "_inner_training_loop": "clips by the accelerator, and has no method of its own for that",
    "_load_best_model": "loads the best weights at the end, before any callback is asked",
    "_maybe_log_save_evaluate": "is handed the losses that were not logged, a variable of the loop",
}
TAKES_FACTORIES = _HAS_STEPS
"""Whether ``optimizer_cls_and_kwargs`` may hold what is called with the model: from 5.3 on too."""

NEEDED: Mapping[str, str] = {
    **(_STEPS if _HAS_STEPS else _LOOP),
    "get_decay_parameter_names": "tells the groups of a run that had no recipe",
    "set_initial_training_values": "is where the Trainer counts its updates",
    "_evaluate": "knows an evaluation of several data sets as one, which no callback does",
    "_get_learning_rate": "is called after each update, before the schedule is stepped",
    "_save_checkpoint": "saves the schedule, before any callback is asked",
    "_load_optimizer_and_scheduler": "loads both before any callback is asked",
}
"""The methods of a Trainer that are overridden or called, each with the reason: what it does that
nothing public does."""


def require_methods(trainer_class: type) -> None:
    """Raise unless a class of trainers has all that a recipe needs to take over.

    Raises:
        ImportError: transformers is too old.
    """
    for name in NEEDED:
        if not hasattr(trainer_class, name):
            raise ImportError(
                f"this transformers has no Trainer.{name}, which a recipe needs to take over; "
                'pip install "transformers>=4.56.2"'
            )


class TrainerEvents(_Base):
    """The private steps of a Trainer as events with names of their own.

    It stands before a Trainer in the bases; what derives from it says what happens at each event,
    and need not know where the Trainer has it.
    """

    optimizer: Any
    lr_scheduler: Any
    _tr_loss: Any
    """The losses that were not logged. Before 5.3, the loop's as it logs and saves; otherwise those
    that are to be added to them."""

    def planned(self, horizon: Horizon) -> None:
        """The Trainer has counted how many updates a run will have."""
        raise NotImplementedError

    def gradients_ready(self, model: nn.Module) -> torch.Tensor:
        """The gradients of an update are complete, and true under AMP; return their norm to log.

        The Trainer leaves them as they are: it does not clip.
        """
        raise NotImplementedError

    def update_done(self) -> bool:
        """The optimizer was stepped, the schedule not yet; return whether the update happened."""
        raise NotImplementedError

    def evaluated(self, metrics: dict[str, float]) -> None:
        """An evaluation of the run is complete, over all data sets; none before its first update.

        The metrics are those of this process.
        """
        raise NotImplementedError

    def trained(self) -> None:
        """The last update of a run is done; the Trainer may load the best weights next."""
        raise NotImplementedError

    def saving(self, save: Callable[[], None]) -> None:
        """A checkpoint is to be saved; ``save`` does it."""
        raise NotImplementedError

    def loading(self, checkpoint: Path, load: Callable[[], None]) -> None:
        """A run goes on from a checkpoint; ``load`` does what the Trainer would do."""
        raise NotImplementedError

    def renew_schedule(self) -> None:
        """Have the Trainer ask for a new schedule at the next ``train``.

        It does so for one that it made itself; one that it was given it keeps.
        """
        self._created_lr_scheduler = True

    def set_initial_training_values(
        self, args: TrainingArguments, dataloader: Any, *batch_size: int
    ) -> Any:
        """Count the updates, as the Trainer does; before 5.3 it was told the batch size as well."""
        values = super().set_initial_training_values(args, dataloader, *batch_size)
        self.planned(horizon_in(values, dataloader))
        return values

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """Leave the gradients as they are."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> torch.Tensor:
        self.accelerator.unscale_gradients()
        return self.gradients_ready(model)

    def _get_learning_rate(self) -> float:
        happened = self.update_done()
        if not happened and self.accelerator.scaler is not None:
            # accelerate takes a step for an update, but fused optimizers are called for a skipped
            # one too, and leave it out by themselves. Then the schedule is not to be stepped.
            self.optimizer._is_overflow = True
        return super()._get_learning_rate()

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False
    ) -> dict[str, float]:
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if not skip_scheduler:  # which it says of the evaluation before the first update alone
            self.evaluated(metrics)
        return metrics

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: Any) -> Any:
        self.trained()
        finalize: Any = super()._finalize_training
        return finalize(trial, num_train_samples, start_time)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        with _steps_of_loop(self):
            return super()._inner_training_loop(*args, **kwargs)

    def _load_best_model(self) -> None:
        if not _HAS_STEPS:
            self.trained()
        super()._load_best_model()

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        log: Any = super()._maybe_log_save_evaluate
        if not _HAS_STEPS:
            tr_loss += self._tr_loss  # in place, as it is the loop's own; what was given back
            self._tr_loss = tr_loss
        log(tr_loss, *args, **kwargs)
        if not _HAS_STEPS:
            self._tr_loss = 0.0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        save = super()._save_checkpoint
        self.saving(lambda: save(model, trial))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load = super()._load_optimizer_and_scheduler
            self.loading(Path(checkpoint), lambda: load(checkpoint))


@contextmanager
def _steps_of_loop(trainer: TrainerEvents) -> Iterator[None]:
    """Have a training loop that is one method call those of its steps that are events.

    What it calls for them belongs to the accelerator and to the callbacks' handler.
    """
    if _HAS_STEPS:
        yield
        return

    def clip(*args: Any, **kwargs: Any) -> torch.Tensor:
        trainer.accelerator.unscale_gradients()
        return trainer.gradients_ready(cast(nn.Module, trainer.model))

    def end(*args: Any, **kwargs: Any) -> Any:
        trainer.trained()
        return on_train_end(*args, **kwargs)

    handler = trainer.callback_handler
    on_train_end = handler.on_train_end
    trainer._tr_loss = 0.0
    with (
        _replaced(trainer.accelerator, "clip_grad_norm_", clip),
        _replaced(handler, "on_train_end", end),
    ):
        yield


@contextmanager
def _replaced(owner: object, name: str, function: Callable[..., Any]) -> Iterator[None]:
    before = {key: value for key, value in vars(owner).items() if key == name}
    setattr(owner, name, function)
    try:
        yield
    finally:
        vars(owner).pop(name)
        vars(owner).update(before)


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
