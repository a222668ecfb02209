"""What cannot stand beside a recipe, and what it silently would have ended."""

from __future__ import annotations

from dataclasses import fields

from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from optimplug.errors import RecipeError
from optimplug.huggingface.internals import unwrapped
from optimplug.recipe import Recipe, RecipeScheduler

__all__ = [
    "not_run",
    "refuse_arguments",
    "refuse_if_not_run",
    "refuse_methods",
    "refuse_other_optimizers",
    "refuse_other_schedule",
    "tell_of_clipping",
    "trains_its_loss",
]

_METHODS = {
    "create_optimizer": "the optimizer is the recipe's",
    "create_scheduler": "the schedule is the recipe's",
    "get_optimizer_cls_and_kwargs": "the optimizer is the recipe's",
    "get_decay_parameter_names": "weight decay is the recipe's, by `no_decay` and rules",
}
_ARGUMENTS = {
    "learning_rate_mapping": "write a rule for each: {match: {regex: '...'}, lr: ...}",
    "optim_target_modules": "it belongs to an optimizer of the Trainer's; leave it out",
}
# Beside the Trainer's own: of these it is known what theirs do.
_KNOWN = ("transformers", "sentence_transformers")


def refuse_methods(trainer_class: type[Trainer]) -> None:
    """Refuse a class of trainers whose own methods a recipe would never call.

    Raises:
        RecipeError: it makes its optimizer, its schedule or its groups by itself.
    """
    for name, reason in _METHODS.items():
        owner = next(cls for cls in trainer_class.__mro__ if name in vars(cls))
        if owner.__module__.split(".")[0] not in _KNOWN:
            raise RecipeError.at(
                "recipe",
                f"{owner.__name__}.{name} would not be called: {reason}; leave the method out, or "
                "train without the recipe",
            )


def trains_its_loss(trainer_class: type[Trainer]) -> bool:
    """Tell whether a class of trainers trains the parameters of its ``loss`` as well."""
    names = {cls.__module__.split(".")[0] for cls in trainer_class.__mro__}
    return "sentence_transformers" in names


def refuse_arguments(args: TrainingArguments) -> None:
    """Refuse arguments that mean something to a Trainer's own optimizer, and to no recipe.

    Raises:
        RecipeError: one is set.
    """
    for name, mend in _ARGUMENTS.items():
        if value := getattr(args, name, None):
            raise RecipeError.at(
                "recipe", f"args.{name}={value!r} would not apply beside a recipe: {mend}"
            )


def not_run(reason: str) -> RecipeError:
    """Return the error of a recipe among the arguments of a trainer that runs none."""
    return RecipeError.at(
        "recipe",
        f"would not be run: the trainer {reason}; use RecipeTrainer, or with_recipe(...) of its "
        "class, or give a plain Trainer optimizers=build(model, None, args, train_dataset)",
    )


def refuse_if_not_run(trainer: Trainer | None) -> None:
    """Refuse a trainer that is about to train by an optimizer and a schedule of no recipe.

    Args:
        trainer: whose arguments hold a recipe; None if none begins to train.

    Raises:
        RecipeError: neither its schedule nor its optimizer is a recipe's.
    """
    if trainer is None or trainer.is_deepspeed_enabled or trainer.optimizer is None:
        return
    is_scheduled = isinstance(unwrapped(trainer.lr_scheduler), RecipeScheduler)
    # A recipe gives each group a name, and torch gives none.
    is_named = any("name" in group for group in trainer.optimizer.param_groups)
    if not (is_scheduled or is_named):
        raise not_run("was given an optimizer and a schedule of its own")


def refuse_other_optimizers(trainer: Trainer) -> None:
    """Refuse a trainer that was also given an optimizer or a scheduler by another way.

    Raises:
        RecipeError: it was.
    """
    for name in ("optimizer", "lr_scheduler", "optimizer_cls_and_kwargs"):
        if getattr(trainer, name, None) is not None:
            argument = name if name == "optimizer_cls_and_kwargs" else "optimizers"
            raise RecipeError.at("recipe", f"give either recipe= or {argument}=, not both")


def refuse_other_schedule(trainer: Trainer, recipe: Recipe) -> None:
    """Refuse to train by a schedule that is not the recipe's, though the recipe has one.

    Raises:
        RecipeError: it is another one.
    """
    other = unwrapped(trainer.lr_scheduler)
    if recipe.spec.schedule and not (
        isinstance(other, RecipeScheduler) or trainer.is_deepspeed_enabled
    ):
        raise RecipeError.at(
            "schedule",
            f"the trainer has another one, of {type(other).__name__}; leave create_scheduler "
            "and trainer.lr_scheduler to RecipeTrainer, or the schedule out of the recipe",
        )


def tell_of_clipping(args: TrainingArguments, recipe: Recipe) -> None:
    """Log that nothing clips any more, where the Trainer would have clipped by default.

    A threshold that was set is among the arguments that are reported as replaced.
    """
    default = next(field.default for field in fields(args) if field.name == "max_grad_norm")
    if recipe.max_grad_norm is None and args.max_grad_norm == default:
        logging.get_logger("transformers.optimplug").warning(
            "The recipe does not clip gradients, so the Trainer's default of "
            f"max_grad_norm={default} does not apply; a recipe clips by optimizer.max_grad_norm."
        )
