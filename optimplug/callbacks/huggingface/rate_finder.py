"""A sweep over rates as the Trainer begins."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args

from optimplug.callbacks.rate_finder import RateFinder as _Finder
from optimplug.callbacks.rate_finder import refuse
from optimplug.huggingface.internals import loss_of

__all__ = ["RateFinder"]


class RateFinder(_Finder, TrainerCallback):
    """Sweeps over rates as ``train`` begins, and says which it suggests; see :func:`.find_lr`.

    One multiplier is for all groups, so that they keep their ratios. The losses are those of the
    trainer's ``compute_loss``. The training then goes on as if nothing had been; what a trainer's
    own ``compute_loss`` keeps for itself (TRL's averages, which are logged) is not put back.

    Args:
        updates: as for :func:`.find_lr`.
        lowest: likewise.
        highest: likewise.
        diverges: likewise.
        plot: a PNG, SVG or PDF file to draw the curve into; None for none.
        html: a page to write; None for none.

    Attributes:
        curve: what was found; None before.

    Raises:
        ArgumentError: a setting breaks its rule. As the training begins: the trainer is no
            ``RecipeTrainer``, or has several processes, gradients that are scaled (``fp16``), FSDP
            or DeepSpeed.

    Example:
        ``RecipeTrainer(..., callbacks=[RateFinder(plot="rates.png")])``
    """

    finds_rates = True
    """What a ``RecipeTrainer`` goes by: it makes itself known as each ``train`` begins."""
    trainer: Any = None

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        """Find, unless the training goes on from a checkpoint.

        Raises:
            ArgumentError: as for the class.
        """
        trainer, self.trainer = self.trainer, None
        if trainer is None or trainer.run is None:
            raise refuse(
                "RateFinder multiplies the rates of a recipe: use a RecipeTrainer, or with_recipe"
            )
        _check(trainer)
        if state.global_step:
            self.skip(state.global_step)
            return
        self.find(
            trainer.run,
            trainer.recipe,
            lambda batch: loss_of(trainer, batch),
            kwargs["train_dataloader"],
            args.gradient_accumulation_steps,
        )


def _check(trainer: Trainer) -> None:
    if trainer.args.world_size > 1 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise refuse("RateFinder works in one process, without FSDP and DeepSpeed")
    if trainer.accelerator.scaler is not None:
        raise refuse("RateFinder needs gradients that are not scaled: use bf16 in place of fp16")
