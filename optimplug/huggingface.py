"""Recipes in the Hugging Face Trainer: ``pip install "optimplug[huggingface]"``."""

from __future__ import annotations

import os
import warnings
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from optimplug._core.optim.gradients import global_norm
from optimplug.errors import ArgumentError, MissingExtraError, RecipeError
from optimplug.recipe import Horizon, Recipe, RecipeScheduler
from optimplug.recipe.reader import Source

try:
    import transformers
    from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
    from transformers import AutoConfig, PreTrainedModel, Trainer, TrainingArguments
    from transformers.trainer_utils import has_length
except ImportError:
    raise MissingExtraError("optimplug.huggingface", "huggingface") from None

__all__ = ["RecipeTrainer", "model_of_config", "with_recipe"]

_Trainer = TypeVar("_Trainer", bound=Trainer)

# What the recipe replaces, whole.
_REPLACED = (
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
    "optim",
    "optim_args",
)


def with_recipe(trainer_class: type[_Trainer]) -> type[_Trainer]:
    """Return a subclass of any Trainer class that takes ``recipe=``.

    The recipe is the whole truth: the optimizer, its groups, the schedule and clipping come from it
    alone, and the arguments that it replaces do not apply, ``max_grad_norm`` (1.0 by default)
    included. One that was set to something else than its default is named in a warning.

    Args:
        trainer_class: ``transformers.Trainer`` or a subclass of it.

    Example:
        ``with_recipe(Seq2SeqTrainer)(model=model, args=args, recipe="recipe.yaml", ...)``
    """
    for name in ("set_initial_training_values", "_clip_grad_norm", "_get_grad_norm", "_evaluate"):
        if not hasattr(trainer_class, name):
            raise ImportError(
                f"this transformers has no Trainer.{name}, which a recipe needs to take over; "
                'pip install "transformers>=5.20"'
            )

    class WithRecipe(trainer_class):  # type: ignore[valid-type, misc]
        __doc__ = f"{trainer_class.__name__} whose optimizer and schedule come from ``recipe=``."

        optimizer: Any
        lr_scheduler: Any

        def __init__(self, *args: Any, recipe: Source | Recipe, **kwargs: Any) -> None:
            self.recipe = Recipe.load(recipe)
            self._steps_per_epoch: int | None = None
            super().__init__(*args, **kwargs)
            _refuse_other_optimizers(self)
            _report_replaced(self.args)

        def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> Any:
            values = super().set_initial_training_values(args, dataloader)
            # For data without a length the Trainer puts the whole run in the epoch's place.
            self._steps_per_epoch = values[1] if has_length(dataloader) else None
            return values

        def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
            if self.optimizer is None:
                self.optimizer = self.recipe.build_optimizer(self.model if model is None else model)
            return cast(torch.optim.Optimizer, self.optimizer)

        def create_scheduler(
            self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
        ) -> torch.optim.lr_scheduler.LRScheduler:
            if self.lr_scheduler is None:
                horizon = Horizon(num_training_steps, self._steps_per_epoch)
                owner = self.optimizer if optimizer is None else optimizer
                self.lr_scheduler = self.recipe.build_scheduler(owner, horizon)
                _check_evaluations(self.args, self.lr_scheduler)
                # The Trainer keeps a scheduler that it was given, but renews one of its own.
                self._created_lr_scheduler = True
            return cast(torch.optim.lr_scheduler.LRScheduler, self.lr_scheduler)

        # These are private to the Trainer, which has no public place to keep it from clipping, nor
        # one that knows an evaluation of several data sets as one; the check above and tests say so
        # if they go.

        def _evaluate(
            self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False
        ) -> dict[str, float]:
            """Evaluate, and tell the scheduler of it, but for the evaluation before the start."""
            metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
            recipes = isinstance(self.lr_scheduler, RecipeScheduler)
            if recipes and not skip_scheduler and not _has_teller(self):
                # Those of the main process, so that all processes come to the same decision.
                self.lr_scheduler.step_metric(broadcast_object_list([metrics])[0])
            return cast("dict[str, float]", metrics)

        def _clip_grad_norm(self, model: nn.Module) -> None:
            """Leave the gradients as they are: the optimizer clips, where the recipe says so."""

        def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> torch.Tensor:
            """Return the norm that the Trainer logs, without touching the gradients."""
            self.accelerator.unscale_gradients()
            return global_norm([p.grad for p in model.parameters() if p.grad is not None])

    WithRecipe.__name__ = WithRecipe.__qualname__ = f"Recipe{trainer_class.__name__}"
    return WithRecipe


RecipeTrainer = with_recipe(Trainer)


def _refuse_other_optimizers(trainer: Trainer) -> None:
    """Raise if the trainer was also given an optimizer or a scheduler by another way."""
    for name in ("optimizer", "lr_scheduler", "optimizer_cls_and_kwargs"):
        if getattr(trainer, name, None) is not None:
            argument = name if name == "optimizer_cls_and_kwargs" else "optimizers"
            raise RecipeError.at("recipe", f"give either recipe= or {argument}=, not both")


def _has_teller(trainer: Trainer) -> bool:
    """Whether a MetricCallback tells the scheduler of evaluations already."""
    callbacks = trainer.callback_handler.callbacks
    return any(getattr(callback, "tells_recipes", False) for callback in callbacks)


def _check_evaluations(args: TrainingArguments, scheduler: RecipeScheduler) -> None:
    """Refuse a schedule that waits for evaluations in vain; warn of saves between them."""
    if not scheduler.counts_validations:
        return
    if args.eval_strategy == "no":
        raise RecipeError.at(
            "schedule",
            "counts validations or follows a metric, but eval_strategy is 'no'; "
            "set eval_strategy='epoch' or 'steps'",
        )
    saves = (args.save_strategy, args.save_steps if args.save_strategy == "steps" else None)
    evaluations = (args.eval_strategy, args.eval_steps if args.eval_strategy == "steps" else None)
    if saves[0] not in ("no", "best") and saves != evaluations:
        warnings.warn(
            "the schedule counts validations, but checkpoints are not saved as often as there are "
            f"evaluations ({saves[0]} and {evaluations[0]}): an evaluation due at the step of a "
            "checkpoint is lost when the run resumes from it; set save_strategy and save_steps as "
            "eval_strategy and eval_steps",
            UserWarning,
            stacklevel=3,
        )


def _report_replaced(args: TrainingArguments) -> None:
    """Warn, once, of every argument that was set although the recipe replaces it."""
    defaults = {field.name: field.default for field in fields(args) if field.default is not MISSING}
    changed = [
        f"{name}={getattr(args, name)!r}"
        for name in _REPLACED
        if name in defaults and getattr(args, name) != defaults[name]
    ]
    if changed:
        warnings.warn(
            f"the recipe replaces these training arguments: {', '.join(changed)}",
            UserWarning,
            stacklevel=3,
        )


def model_of_config(path: str | os.PathLike[str]) -> PreTrainedModel:
    """Build the model that a ``config.json`` describes, on the meta device: shapes, no weights.

    Nothing is fetched, and no code beside the config is run. The class is the first of the config's
    ``architectures``.

    Args:
        path: a model's folder, or its ``config.json``.

    Raises:
        ArgumentError: there is no such file, or it describes no model of transformers.
    """
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise ArgumentError(f"must be a folder with a config.json, or such a file (got {path})")
    try:
        config = AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ArgumentError(f"{file} is no config of transformers: {error}") from None
    name = next(iter(config.architectures or ()), None)
    found = getattr(transformers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ArgumentError(
            f"{file}: 'architectures' must name a model class of transformers (got {name!r})"
        )
    try:
        with torch.device("meta"):
            return cast("PreTrainedModel", cast("Any", found)._from_config(config))
    except Exception as error:  # a model's own code, with values that it may not expect
        reason = f"{type(error).__name__}: {error}"
        raise ArgumentError(f"{file}: {name} cannot be built: {reason}") from None
