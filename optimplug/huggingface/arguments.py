"""The recipe among the training arguments, and which of those it replaces."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from transformers import TrainingArguments

from optimplug.errors import ArgumentError, RecipeError
from optimplug.huggingface.command_line import ChangedRecipe, RecipeAction
from optimplug.huggingface.conflicts import not_run, refuse_if_not_run
from optimplug.huggingface.internals import beginning_to_train
from optimplug.recipe import Recipe
from optimplug.recipe.checkpoint.policy import Resume
from optimplug.recipe.logged import LoggedGroups
from optimplug.recipe.text.reader import Source, is_text, read

__all__ = [
    "RecipeArguments",
    "RecipeTrainingArguments",
    "report_replaced",
    "resolve_log_groups",
    "resolve_recipe",
    "resolve_resume",
]


@dataclass
class RecipeArguments:
    """Adds ``recipe`` to a class of training arguments; put it before that class in the bases.

    The recipe is checked at once. YAML itself is read at once, too, so that what reports the
    arguments and what is saved beside a checkpoint holds the recipe.

    Args:
        recipe: a path (a relative one begins at the working directory, wherever it is written),
            YAML itself or a mapping, as :meth:`optimplug.Recipe.load` takes it.

        resume: what may be otherwise where training goes on from a checkpoint; see
            :func:`~optimplug.huggingface.with_recipe`.
        rewarm: under ``adapt``, for how long rates that would jump climb from what they were.

        log_groups: globs on the names of the groups whose rates are logged; None for all.

    In a YAML file of training arguments, write it as a block of text (``recipe: |``) to have it
    read as a recipe's own file is. A mapping there is read by transformers: a key given twice is
    taken as if the first were not there, and ``010`` is 8; ``1e-3`` is a number either way.

    Raises:
        ArgumentError: ``resume`` is no policy, ``rewarm`` no duration, or ``log_groups`` no texts.
        RecipeError: the recipe cannot be read, or something is wrong with it. As training begins:
            the arguments are those of a Trainer that runs no recipes.

    Example::

        @dataclass
        class Arguments(RecipeArguments, Seq2SeqTrainingArguments):
            pass
    """

    recipe: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "The recipe: a path to a YAML file, YAML itself, or a mapping; single values: "
            "--recipe.optimizer.lr 1e-4, --recipe.groups.0.lr_scale 2",
            "action": RecipeAction,
        },
    )

    resume: str | None = field(
        default=None,
        metadata={
            "help": "What may be otherwise than in the checkpoint that training goes on from: "
            "exact, adapt or weights. Default: as the recipe says."
        },
    )

    rewarm: str | None = field(
        default=None,
        metadata={
            "help": "With --resume adapt: for how long a rate that would jump climbs from what it "
            "was (2%%, 1 epoch, 100). Default: as the recipe says."
        },
    )

    log_groups: list[str] | None = field(
        default=None,
        metadata={
            "help": "Globs on the names of the groups whose rates are logged. Default: all groups."
        },
    )

    def __post_init__(self) -> None:
        """Read and check the recipe, then do what the other bases do."""
        LoggedGroups(self.log_groups)
        Resume.read(self.resume, self.rewarm)
        if self.recipe is not None:
            self.recipe = _plain(self.recipe)
            Recipe.load(self.recipe)
        super().__post_init__()  # type: ignore[misc] # a class of training arguments has it

    @property
    def device(self) -> torch.device:
        """The device of this process.

        A Trainer that is given both an optimizer and a schedule asks its arguments for nothing that
        would tell so. But it asks for the device before its first update, and who asks is looked
        at.

        Raises:
            RecipeError: there is a recipe, and a trainer begins to train that does not run it.
        """
        if self.recipe is not None:
            refuse_if_not_run(beginning_to_train(inspect.currentframe()))
        found: torch.device = super().device  # type: ignore[misc] # a class of arguments has it
        return found

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Refuse a Trainer that makes a schedule of its own, as it runs no recipes.

        Nothing public that a Trainer asks its arguments for tells so earlier.

        Raises:
            RecipeError: there is a recipe, or something else that only its trainer does.
        """
        deepspeed = getattr(self, "deepspeed", None)  # which asks for it under recipes too
        if self.recipe is not None and not deepspeed:
            raise not_run("makes an optimizer and a schedule of its own")
        if self.log_groups is not None and not deepspeed:
            raise RecipeError.at(
                "log_groups",
                "would not be heard: the trainer makes groups of its own; use RecipeTrainer, or "
                "give a plain Trainer a callback, OptimizerMonitor(log_groups=...)",
            )
        found: int = super().get_warmup_steps(num_training_steps)  # type: ignore[misc] # as above
        return found


@dataclass
class RecipeTrainingArguments(RecipeArguments, TrainingArguments):
    """``transformers.TrainingArguments`` with a ``recipe``; see :class:`RecipeArguments`.

    It can be given in Python, on the command line and in YAML and JSON files. On the command line
    single values of it can be given too, in any order: ``--recipe recipe.yaml
    --recipe.optimizer.lr 1e-4 --recipe.groups.0.lr_scale 2``. HfArgumentParser and TRL's parser
    take them, as they are, among the arguments of the program.

    Example:
        ``python train.py --output_dir out --recipe '{optimizer: {name: AdamW, lr: 1e-3}}'`` with
        ``HfArgumentParser(RecipeTrainingArguments).parse_args_into_dataclasses()``
    """


def resolve_recipe(given: Source | Recipe | None, args: TrainingArguments) -> Recipe:
    """Return the recipe of a trainer, which was given to it or to its arguments.

    Raises:
        RecipeError: there is none, there are two that differ, or something is wrong with it.
    """
    own = getattr(args, "recipe", None)
    if given is None and own is None:
        raise RecipeError.at(
            "recipe", "there is none; give recipe= to the trainer or to RecipeTrainingArguments"
        )
    found = [Recipe.load(r) for r in (given, None if own is None else _plain(own)) if r is not None]
    if found[0].spec.model_dump() != found[-1].spec.model_dump():
        raise RecipeError.at("recipe", "recipe= and args.recipe differ; give only one of the two")
    return found[0]


def resolve_resume(given: Resume, args: TrainingArguments) -> Resume:
    """Return how a trainer resumes, as it or its arguments say.

    Raises:
        ArgumentError: both say it, and differ.
    """
    own = Resume.read(*(getattr(args, name, None) for name in ("resume", "rewarm")))
    found = {}
    for name, key in (("resume", "policy"), ("rewarm", "rewarm")):
        one, other = getattr(given, key), getattr(own, key)
        if None not in (one, other) and one != other:
            raise ArgumentError(
                f"{name}={str(one)!r} and args.{name}={str(other)!r} differ; give only one of the "
                "two"
            )
        found[key] = other if one is None else one
    return Resume(**found)


def resolve_log_groups(given: LoggedGroups, args: TrainingArguments) -> LoggedGroups:
    """Return which groups a trainer logs, as it or its arguments say.

    Raises:
        ArgumentError: both say it, and differ.
    """
    own = LoggedGroups(getattr(args, "log_groups", None))
    if None not in (given.globs, own.globs) and given.globs != own.globs:
        raise ArgumentError(
            f"log_groups={given.globs} and args.log_groups={own.globs} differ; give only one of "
            "the two"
        )
    return given if own.globs is None else own


def report_replaced(
    args: TrainingArguments, recipe: Recipe, but: Collection[str] = (), told: str = ""
) -> str:
    """Warn, once, of every argument that was set although the recipe replaces it by another value.

    Args:
        args: the trainer's.
        recipe: what applies in their place.
        but: arguments that are none of the recipe's business here.
        told: what was said before, and need not be said again.

    Returns:
        What there is to say, of which the warning is made.
    """
    defaults = {field.name: field.default for field in fields(args) if field.default is not MISSING}
    changed = [
        (f"{name}={_bare(getattr(args, name))!r}", winner)
        for name, same, winner in _winners(recipe)
        if name in defaults and name not in but
        if getattr(args, name) not in (defaults[name], same)
    ]
    report = ", ".join(
        f"{', '.join(name for name, _ in names)} ({winner})"
        for winner, names in groupby(changed, itemgetter(1))
    )
    if report and report != told:
        warnings.warn(
            f"the recipe replaces these training arguments: {report}", UserWarning, stacklevel=3
        )
    return report


# Of these arguments, the recipe's hyperparameters by the same meaning; of a pair, which of the two.
_SETTINGS = {
    "learning_rate": ("lr", None),
    "weight_decay": ("weight_decay", None),
    "adam_beta1": ("betas", 0),
    "adam_beta2": ("betas", 1),
    "adam_epsilon": ("eps", None),
}
_NOTHING = object()  # no argument says what the recipe says


def _winners(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """Walk the arguments that a recipe replaces, whole.

    With each comes the value by which a Trainer would do what the recipe says, and what that is.
    """
    name = recipe.spec.optimizer.name
    settings = recipe.hyperparameters
    for argument, (key, i) in _SETTINGS.items():
        yield argument, *_setting(name, settings, key, i)
    clips = recipe.max_grad_norm is not None
    none = (0, "the recipe does not clip")
    yield "max_grad_norm", *(_setting(name, settings, "max_grad_norm") if clips else none)
    phases = ", ".join(str(p.name or p.preset or "together") for p in recipe.spec.schedule)
    schedule = f"the recipe's schedule is {phases}" if phases else "the recipe has no schedule"
    for argument in ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"):
        yield argument, _NOTHING, schedule
    for argument in ("optim", "optim_args"):
        yield argument, _NOTHING, f"the recipe's optimizer is {name}"


def _setting(
    name: str, settings: Mapping[str, Any], key: str, i: int | None = None
) -> tuple[Any, str]:
    if key not in settings:
        return _NOTHING, f"the recipe's {name} has no {key}"
    value = settings[key]
    if i is None:
        return value, f"the recipe's {key} is {value}"
    return value[i], f"the recipe's {key}[{i}] is {value[i]}"


def _bare(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _plain(recipe: Any) -> dict[str, Any] | str:
    """Return a recipe as it can be written to JSON: a path stays one, all else is a mapping."""
    if isinstance(recipe, ChangedRecipe):
        return recipe.content()
    if isinstance(recipe, Mapping):
        content: dict[str, Any] = _with_numbers(read(recipe)[0])
        return content
    if not isinstance(recipe, str | os.PathLike):
        raise RecipeError.at(
            "recipe",
            "must be a path, YAML or a mapping among the arguments "
            f"(got a {type(recipe).__name__}); the trainer's recipe= takes a Recipe as well",
        )
    path = str(recipe)
    return read(recipe)[0] if is_text(path) else path


_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+")


def _with_numbers(value: Any) -> Any:
    """Turn ``"1e-3"`` into the number that it is, which transformers reads from YAML as text."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
