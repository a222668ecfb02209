"""A Trainer whose optimizer and schedule are a recipe's."""

from __future__ import annotations

from typing import TypeVar, cast

from transformers import Trainer

from optimplug.errors import ArgumentError
from optimplug.huggingface.conflicts import refuse_methods
from optimplug.huggingface.events.internals import require_methods
from optimplug.huggingface.events.with_recipe import WithRecipe

__all__ = ["RecipeTrainer", "with_recipe"]

_Trainer = TypeVar("_Trainer", bound=Trainer)


def with_recipe(trainer_class: type[_Trainer]) -> type[_Trainer]:
    """Return a subclass of any Trainer class that runs a recipe.

    The recipe is given as ``recipe=``, or in its arguments
    (:class:`~optimplug.huggingface.RecipeTrainingArguments`). So is ``resume=``: what may be
    otherwise where ``train`` goes on from a checkpoint, of a recipe's run or of a Trainer's without
    one; ``exact``, ``adapt`` or ``weights``, as for :meth:`optimplug.Run.load_state_dict`, which is
    as the recipe says where it is left out. Under ``weights`` the schedule is laid over the updates
    that are left. ``rewarm="2%"`` beside it, under ``adapt``, lets rates that would jump climb from
    what they were. ``trainer.run.resumption`` tells what has changed.

    Beside the loss, every group's rate is logged, as ``lr/<group>``: all of them to the reporters,
    or those that ``log_groups=`` names by globs (here, or in the arguments). A line of the console
    stays under 200 characters: where it would not, it has the range of the rates instead.

    It is the whole truth: the optimizer, its groups, the schedule and clipping come from it alone,
    and the arguments that it replaces do not apply, ``max_grad_norm`` (1.0 by default) included.
    Those that were set to something else than their default are named in a warning.

    What a loss of sentence-transformers has of its own is trained as well: in a recipe it stands
    beside the model as ``loss.*``. A recipe may also be written in the names of the loss, as
    ``learning_rate_mapping`` is: ``classifier.*``, and ``model.*`` for the model.
    ``trainer.plan()`` shows all of it.

    Args:
        trainer_class: ``transformers.Trainer`` or a subclass of it; one that runs recipes already
            is returned as it is.

    Raises:
        ArgumentError: it is no class of trainers; or, as training begins, ``log_groups`` names a
            group that there is not.
        ImportError: transformers is too old.
        RecipeError: the class makes its optimizer, schedule or groups by methods of its own. From
            the constructor of the subclass, if there is no recipe, two that differ, or a bad one,
            or if there is an optimizer beside it, or an argument that no recipe can honour
            (``learning_rate_mapping``, ``optim_target_modules``).

    Example:
        ``with_recipe(Seq2SeqTrainer)(model=model, args=args, recipe="recipe.yaml", ...)``
    """
    if not isinstance(trainer_class, type):
        given = type(trainer_class).__name__
        raise ArgumentError(
            f"trainer_class must be a class of trainers, as in with_recipe({given})(model=..., "
            f"recipe=...) (got an object: a {given})"
        )
    if issubclass(trainer_class, WithRecipe):
        return trainer_class
    require_methods(trainer_class)
    refuse_methods(trainer_class)
    name = f"Recipe{trainer_class.__name__}"
    body = {
        "__doc__": f"{trainer_class.__name__} whose optimizer and schedule come from a recipe.",
        "__module__": __name__,
    }
    return cast("type[_Trainer]", type(name, (WithRecipe, trainer_class), body))


RecipeTrainer = with_recipe(Trainer)
