"""The steps of a Trainer that are private to it, as events; each with its reason.

A new release may change any of them without a word: tests/huggingface/events/test_internals.py
tries each and names the one that broke.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from optimplug.huggingface.internals import HAS_STEPS, horizon_in
from optimplug.recipe import Horizon

__all__ = ["NEEDED", "TrainerEvents", "require_methods"]

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object  # what derives from it stands before a Trainer in the bases

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
NEEDED: Mapping[str, str] = {
    **(_STEPS if HAS_STEPS else _LOOP),
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
        if not HAS_STEPS:
            self.trained()
        super()._load_best_model()

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        log: Any = super()._maybe_log_save_evaluate
        if not HAS_STEPS:
            tr_loss += self._tr_loss  # in place, as it is the loop's own; what was given back
            self._tr_loss = tr_loss
        log(tr_loss, *args, **kwargs)
        if not HAS_STEPS:
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
    if HAS_STEPS:
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
