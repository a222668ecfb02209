"""Names in a recipe -> classes, and whether the arguments given fit them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.optim.optimizer import required

from optimplug import optim
from optimplug.errors import Problem, RecipeError, did_you_mean
from optimplug.optim import lr_scheduler

__all__ = ["optimizer_class", "optimizer_problems", "parameters_of", "scheduler_class"]

# These choose how the whole optimizer runs; a group cannot differ in them.
_WHOLE_OPTIMIZER = frozenset(
    {"foreach", "fused", "capturable", "differentiable", "max_grad_norm", "skip_nonfinite"}
)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the optimizer of that name: one of optimplug.optim, or an import path.

    Raises:
        RecipeError: there is none, or the path leads to something else than an Optimizer class.
    """
    known = [n for n in optim.__all__ if n not in ("Optimizer", "lr_scheduler")]
    if name in known:
        return getattr(optim, name)  # type: ignore[no-any-return]
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        raise RecipeError.at("optimizer.name", f"no optimizer {name!r}{did_you_mean(name, known)}")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise RecipeError.at("optimizer.name", f"cannot import {name!r}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise RecipeError.at("optimizer.name", f"{name!r} is not a torch.optim.Optimizer class")
    return found


def scheduler_class(name: str, path: str) -> type[lr_scheduler.LRScheduler]:
    """Return the scheduler of that name in optimplug.optim.lr_scheduler."""
    # A recipe composes by itself: its phases are the sequence.
    known = [n for n in lr_scheduler.__all__ if n not in ("LRScheduler", "SequentialLR")]
    if name not in known:
        raise RecipeError.at(path, f"no scheduler {name!r}{did_you_mean(name, known)}")
    return getattr(lr_scheduler, name)  # type: ignore[no-any-return]


def parameters_of(cls: type, without: Iterable[str]) -> dict[str, inspect.Parameter]:
    """Return the keyword arguments of a class, by name."""
    skip = {*without, "self"}
    return {n: p for n, p in inspect.signature(cls).parameters.items() if n not in skip}


def optimizer_problems(
    cls: type[torch.optim.Optimizer],
    settings: Mapping[str, Any],
    rules: list[Mapping[str, Any]],
    rule_keys: Iterable[str],
) -> Iterator[Problem]:
    """Check hyperparameters, the optimizer's and each rule's, without any model.

    Args:
        cls: the optimizer's class.
        settings: the hyperparameters under ``optimizer``.
        rules: the hyperparameters of each rule under ``groups``.
        rule_keys: what a rule may say besides hyperparameters.
    """
    known = parameters_of(cls, without=("params",))
    wrong = list(_argument_problems("optimizer", settings, known, [*known, "name"]))
    of_group = {name: p for name, p in known.items() if name not in _WHOLE_OPTIMIZER}
    for i, rule in enumerate(rules):
        valid = [*of_group, *rule_keys]
        wrong += _argument_problems(f"groups[{i}]", rule, of_group, valid)
    yield from wrong or _value_problems(cls, settings, rules)


def _argument_problems(
    path: str,
    given: Mapping[str, Any],
    known: Mapping[str, inspect.Parameter],
    valid: list[str],
) -> Iterator[Problem]:
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for key, value in given.items():
        if key in known:
            kind = _expected(known[key].default)
            if kind and not _is_kind(value, kind):
                yield Problem(f"{path}.{key}", f"must be {kind} (got {value!r})")
        elif key in _WHOLE_OPTIMIZER and path != "optimizer":
            yield Problem(f"{path}.{key}", "is for the whole optimizer; move it to 'optimizer'")
        elif not takes_any:
            yield Problem(f"{path}.{key}", f"unknown key{did_you_mean(key, valid)}")


def _expected(default: object) -> str | None:
    """Say what kind of value stands where this default does; None if that cannot be told."""
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int | float) or default is required:
        return "a number"
    return "a list of numbers" if isinstance(default, tuple) else None


def _is_kind(value: object, kind: str) -> bool:
    if kind == "true or false":
        return isinstance(value, bool)
    if kind == "a list of numbers":
        return isinstance(value, list | tuple) and all(_is_kind(v, "a number") for v in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value_problems(
    cls: type[torch.optim.Optimizer], settings: Mapping[str, Any], rules: list[Mapping[str, Any]]
) -> Iterator[Problem]:
    """Let the optimizer itself judge the values, on a parameter of its own."""

    def probe(**kwargs: Any) -> None:
        cls([torch.nn.Parameter(torch.zeros(1))], **kwargs)

    try:
        probe(**settings)
    except (ValueError, TypeError, RuntimeError) as error:
        yield Problem("optimizer", str(error))
        return
    for i, rule in enumerate(rules):
        try:
            probe(**{**settings, **rule})
        except (ValueError, TypeError, RuntimeError) as error:
            yield Problem(f"groups[{i}]", str(error))
