"""A Trainer whose optimizer and schedule are a recipe's."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from torch import nn
from transformers import Trainer, TrainingArguments

from optimplug._core.optim.gradients import global_norm
from optimplug.errors import RecipeError
from optimplug.huggingface.arguments import report_replaced, resolve_recipe
from optimplug.huggingface.differences import settings_of, tell_differences
from optimplug.huggingface.evaluations import check_evaluations
from optimplug.huggingface.horizon import told_by
from optimplug.huggingface.resume import resume
from optimplug.recipe import Horizon, Recipe, RecipeScheduler
from optimplug.recipe.text.reader import Source
from optimplug.recipe.updates import Updates

__all__ = ["RecipeTrainer", "with_recipe"]

_Trainer = TypeVar("_Trainer", bound=Trainer)
if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object  # what derives from it stands before a Trainer in the bases


_NEEDED = (
    "get_decay_parameter_names",
    "set_initial_training_values",
    "_clip_grad_norm",
    "_evaluate",
    "_get_grad_norm",
    "_get_learning_rate",
    "_load_optimizer_and_scheduler",
)


class _WithRecipe(_Base):
    """Runs a recipe in the Trainer that it stands before in the bases."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, recipe: Source | Recipe | None = None, **kwargs: Any) -> None:
        self._given = None if recipe is None else Recipe.load(recipe)
        self._steps_per_epoch: int | None = None
        self._used_rates: dict[str, float] = {}
        self._trainable: list[str] = []
        self._updates: Updates | None = None
        super().__init__(*args, **kwargs)
        _refuse_other_optimizers(cast(Trainer, self))
        self.recipe = resolve_recipe(self._given, self.args)
        self._reported = report_replaced(self.args, self.recipe)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> Any:
        values = super().set_initial_training_values(args, dataloader)
        self._steps_per_epoch = told_by(values, dataloader).steps_per_epoch
        return values

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            # The arguments may have changed since; what has been said need not be said again.
            self.recipe = resolve_recipe(self._given, self.args)
            self._reported = report_replaced(self.args, self.recipe, told=self._reported)
            owner = cast(nn.Module, self.model if model is None else model)
            # Later, what the recipe freezes cannot be told from what was frozen before it.
            self._trainable = [name for name, p in owner.named_parameters() if p.requires_grad]
            self.optimizer = self.recipe.build_optimizer(owner)
            self._updates = Updates(self.optimizer)
        return cast(torch.optim.Optimizer, self.optimizer)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            horizon = Horizon(num_training_steps, self._steps_per_epoch)
            owner = self.optimizer if optimizer is None else optimizer
            scheduler = self.recipe.build_scheduler(owner, horizon)
            if scheduler.counts_validations:
                check_evaluations(self.args, partial(RecipeError.at, "schedule"))
            scheduler.go_to(0)  # a run before may have left the optimizer at other rates
            # The Trainer keeps a scheduler that it was given, but renews one of its own.
            self.lr_scheduler, self._created_lr_scheduler = scheduler, True
        return cast(torch.optim.lr_scheduler.LRScheduler, self.lr_scheduler)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does; beside the rate of the first group, those of all."""
        if "learning_rate" in logs and len(self._used_rates) > 1:
            logs = {**logs, **self._used_rates}
        super().log(logs, start_time)

    # These are private to the Trainer, which has no public place to keep it from clipping, nor
    # one that knows an evaluation of several data sets as one; the check above and tests say so
    # if they go.

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False
    ) -> dict[str, float]:
        """Evaluate, and tell the scheduler of it, but for the evaluation before the start."""
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        recipes = isinstance(self.lr_scheduler, RecipeScheduler)
        if recipes and not skip_scheduler and not _has_teller(cast(Trainer, self)):
            # Those of the main process, so that all processes come to the same decision.
            self.lr_scheduler.step_metric(broadcast_object_list([metrics])[0])
        return metrics

    def _get_learning_rate(self) -> float:
        """Note the rates that an update used, as the Trainer asks before it steps the schedule."""
        skipped = self._updates is not None and not self._updates.take()
        if skipped and self.accelerator.scaler is not None:
            # accelerate takes a step for an update, but fused ones skip by themselves.
            self.optimizer._is_overflow = True
        groups = enumerate(self.optimizer.param_groups)
        self._used_rates = {f"lr/{g.get('name', i)}": float(g["lr"]) for i, g in groups}
        return super()._get_learning_rate()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load what a checkpoint has of both; of a run without a recipe, by parameter name."""
        if checkpoint is None:
            return
        change = None
        if not self.is_deepspeed_enabled:
            decayed = set(self.get_decay_parameter_names(cast(nn.Module, self.model)))
            groups = [[n for n in self._trainable if (n in decayed) == d] for d in (True, False)]
            updates = self.state.global_step
            change = resume(Path(checkpoint), self.optimizer, self.lr_scheduler, groups, updates)
        if change is None:
            ours = settings_of(self.optimizer)
            super()._load_optimizer_and_scheduler(checkpoint)
            if self.is_world_process_zero():
                tell_differences(ours, settings_of(self.optimizer), Path(checkpoint).name)
        elif self.is_world_process_zero():
            warnings.warn(change, UserWarning, stacklevel=2)

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """Leave the gradients as they are: the optimizer clips, where the recipe says so."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> torch.Tensor:
        """Return the norm that the Trainer logs, without touching the gradients."""
        self.accelerator.unscale_gradients()
        return global_norm([p.grad for p in model.parameters() if p.grad is not None])


def with_recipe(trainer_class: type[_Trainer]) -> type[_Trainer]:
    """Return a subclass of any Trainer class that runs a recipe.

    The recipe is given as ``recipe=``, or in its arguments
    (:class:`~optimplug.huggingface.RecipeTrainingArguments`).

    It is the whole truth: the optimizer, its groups, the schedule and clipping come from it alone,
    and the arguments that it replaces do not apply, ``max_grad_norm`` (1.0 by default) included.
    Those that were set to something else than their default are named in a warning.

    Args:
        trainer_class: ``transformers.Trainer`` or a subclass of it; one that runs recipes already
            is returned as it is.

    Raises:
        ImportError: transformers is too old.
        RecipeError: from the constructor of the subclass, if there is no recipe, two that differ,
            or a bad one, or if an optimizer is given beside it.

    Example:
        ``with_recipe(Seq2SeqTrainer)(model=model, args=args, recipe="recipe.yaml", ...)``
    """
    if issubclass(trainer_class, _WithRecipe):
        return trainer_class
    for name in _NEEDED:
        if not hasattr(trainer_class, name):
            raise ImportError(
                f"this transformers has no Trainer.{name}, which a recipe needs to take over; "
                'pip install "transformers>=5.20"'
            )
    name = f"Recipe{trainer_class.__name__}"
    body = {
        "__doc__": f"{trainer_class.__name__} whose optimizer and schedule come from a recipe.",
        "__module__": __name__,
    }
    return cast("type[_Trainer]", type(name, (_WithRecipe, trainer_class), body))


RecipeTrainer = with_recipe(Trainer)


def _has_teller(trainer: Trainer) -> bool:
    """Whether a MetricCallback tells the scheduler of evaluations already."""
    callbacks = trainer.callback_handler.callbacks
    return any(getattr(callback, "tells_recipes", False) for callback in callbacks)


def _refuse_other_optimizers(trainer: Trainer) -> None:
    """Raise if the trainer was also given an optimizer or a scheduler by another way."""
    for name in ("optimizer", "lr_scheduler", "optimizer_cls_and_kwargs"):
        if getattr(trainer, name, None) is not None:
            argument = name if name == "optimizer_cls_and_kwargs" else "optimizers"
            raise RecipeError.at("recipe", f"give either recipe= or {argument}=, not both")
