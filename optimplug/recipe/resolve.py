"""The names of optimizers -> their classes, and which of them a recipe has for what."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from optimplug import optim
from optimplug.errors import RecipeError, did_you_mean, nearest
from optimplug.recipe.clipped import CLIPPING
from optimplug.recipe.keywords import NOT_SET, keywords_of

__all__ = [
    "Choice",
    "Optimizers",
    "hyperparameters_of",
    "optimizer_class",
    "optimizer_names",
    "settable_per_group",
]

_SEVERAL = optim.MultiOptimizer.__name__

# These choose how the whole optimizer runs, so that no rule can set them for some parameters.
_WHOLE_OPTIMIZER = frozenset(
    {
        *("foreach", "fused", "capturable", "differentiable"),
        *("max_grad_norm", "skip_nonfinite", "compact_state"),
    }
)


def optimizer_class(name: str, path: str = "optimizer") -> type[torch.optim.Optimizer]:
    """Return the optimizer of that name: one of optimplug.optim, or an import path.

    Args:
        name: as a recipe gives it.
        path: where it stands in the recipe.

    Raises:
        RecipeError: there is none, or the path leads to something else than an Optimizer class.
    """
    known = optimizer_names()
    if name in known:
        return getattr(optim, name)  # type: ignore[no-any-return]
    if name == _SEVERAL:
        message = "name one of them here, and the others in rules under 'groups'"
        raise RecipeError.at(f"{path}.name", f"{name} is what a recipe of several makes; {message}")
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        raise RecipeError.at(f"{path}.name", f"no optimizer {name!r}{_meant(name, known)}")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (Exception, SystemExit) as error:
        # Importing runs someone else's module, which can fail in any way.
        reason = f"{type(error).__name__}: {error}"
        raise RecipeError.at(f"{path}.name", f"cannot import {name!r}: {reason}") from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise RecipeError.at(f"{path}.name", f"{name!r} is not a torch.optim.Optimizer class")
    return found


def _meant(name: str, known: list[str]) -> str:
    """Return what else to write; other projects have 8-bit moments as classes of their own."""
    rule, found = re.subn("_?8_?bit|^paged_?|_?bnb|bitsandbytes_?", "", name, flags=re.IGNORECASE)
    close = nearest(rule, known) if found and "8" in name else None
    return (
        f"; did you mean {close!r} with state_dtype: 8bit?" if close else did_you_mean(name, known)
    )


def optimizer_names() -> list[str]:
    """Return the optimizers that need no import path."""
    return [n for n in optim.__all__ if n not in ("Optimizer", _SEVERAL, "lr_scheduler")]


def settable_per_group(names: Iterable[str]) -> list[str]:
    """Return those of some hyperparameters in which groups can differ."""
    return [name for name in names if name not in _WHOLE_OPTIMIZER]


def hyperparameters_of(cls: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """Return what a recipe may set of an optimizer, by name, with the defaults.

    Clipping is among it for every class: a recipe clips for those that do not.
    """
    own = keywords_of(cls, without=NOT_SET)
    return {**own, **{name: p for name, p in CLIPPING.items() if name not in own}}


@dataclass(frozen=True)
class Choice:
    """One of the optimizers that a recipe names."""

    path: str
    """Where it stands: ``optimizer``, ``groups[2].optimizer``, ``optimizer.fallback``."""
    name: str
    optimizer_class: type[torch.optim.Optimizer]
    settings: Mapping[str, Any]
    """The hyperparameters that are given to it there."""
    fallback: Choice | None = None
    """The optimizer of all parameters that this one is not made for."""

    @cached_property
    def known(self) -> dict[str, inspect.Parameter]:
        """What a recipe may set of it there; see :func:`hyperparameters_of`.

        What is for the whole is set under ``optimizer`` alone, for all.
        """
        found = hyperparameters_of(self.optimizer_class)
        is_main = self.path == "optimizer"
        return found if is_main else {name: found[name] for name in settable_per_group(found)}

    @cached_property
    def hyperparameters(self) -> dict[str, Any]:
        """Its hyperparameters where no rule sets them: its defaults, and settings."""
        return {**{name: p.default for name, p in self.known.items()}, **self.settings}

    @property
    def made_for(self) -> str | None:
        """What it is made for, in words; None for all parameters."""
        found: str | None = getattr(self.optimizer_class, "made_for", None)
        return found


@dataclass(frozen=True)
class Optimizers:
    """All optimizers that a recipe names, and for what."""

    main: Choice
    """That of the recipe, for all parameters for which no rule has another."""
    of_rules: Mapping[int, Choice] = field(default_factory=dict)
    """Those of rules, by their places under ``groups``."""

    def __iter__(self) -> Iterator[Choice]:
        for choice in (self.main, *self.of_rules.values()):
            yield choice
            if choice.fallback is not None:
                yield choice.fallback

    @property
    def are_several(self) -> bool:
        """Whether there is more than one, which are then run as one."""
        return len(list(self)) > 1

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The hyperparameters of all, with the recipe's own values where it has them."""
        found = {key: value for each in self for key, value in each.hyperparameters.items()}
        return {**found, **self.main.hyperparameters}
