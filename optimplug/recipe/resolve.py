"""The name of an optimizer -> its class, and whether hyperparameters fit it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.optim.optimizer import required

from optimplug import optim
from optimplug.errors import Problem, RecipeError, did_you_mean
from optimplug.recipe.clipped import CLIPPING, construct
from optimplug.recipe.keywords import NOT_SET, keywords_of, takes
from optimplug.recipe.text.written import within

__all__ = [
    "expected_kind",
    "hyperparameters_of",
    "no_decay_problems",
    "optimizer_class",
    "optimizer_names",
    "optimizer_problems",
    "refusals",
    "settable_per_group",
]

# These choose how the whole optimizer runs, so that no rule can set them for some parameters.
_WHOLE_OPTIMIZER = frozenset(
    {"foreach", "fused", "capturable", "differentiable", "max_grad_norm", "skip_nonfinite"}
)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the optimizer of that name: one of optimplug.optim, or an import path.

    Raises:
        RecipeError: there is none, or the path leads to something else than an Optimizer class.
    """
    known = optimizer_names()
    if name in known:
        return getattr(optim, name)  # type: ignore[no-any-return]
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        torchs = inspect.isclass(getattr(torch.optim, name, None))
        hint = f"; torch has one: write torch.optim.{name}" if torchs else did_you_mean(name, known)
        raise RecipeError.at("optimizer.name", f"no optimizer {name!r}{hint}")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (Exception, SystemExit) as error:
        # Importing runs someone else's module, which can fail in any way.
        reason = f"{type(error).__name__}: {error}"
        raise RecipeError.at("optimizer.name", f"cannot import {name!r}: {reason}") from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise RecipeError.at("optimizer.name", f"{name!r} is not a torch.optim.Optimizer class")
    return found


def optimizer_names() -> list[str]:
    """Return the optimizers that need no import path."""
    return [n for n in optim.__all__ if n not in ("Optimizer", "lr_scheduler")]


def settable_per_group(names: Iterable[str]) -> list[str]:
    """Return those of some hyperparameters in which groups can differ."""
    return [name for name in names if name not in _WHOLE_OPTIMIZER]


def hyperparameters_of(cls: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """Return what a recipe may set of an optimizer, by name, with the defaults.

    Clipping is among it for every class: a recipe clips for those that do not.
    """
    own = keywords_of(cls, without=NOT_SET)
    return {**own, **{name: p for name, p in CLIPPING.items() if name not in own}}


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
    known = hyperparameters_of(cls)
    others = partial(takes, cls)
    wrong = list(_argument_problems("optimizer", settings, known, others, [*known, "name"], ()))
    wrong += _rate_problems(cls, settings, known)
    own = {name: known[name] for name in settable_per_group(known)}
    whole = known.keys() - own.keys()
    for i, rule in enumerate(rules):
        wrong += _argument_problems(f"groups[{i}]", rule, own, others, [*own, *rule_keys], whole)
    # The optimizer's own complaints about a misspelt key would repeat these in worse words.
    yield from wrong or _value_problems(cls, settings, rules)


def _rate_problems(
    cls: type[torch.optim.Optimizer],
    settings: Mapping[str, Any],
    known: Mapping[str, inspect.Parameter],
) -> Iterator[Problem]:
    rate = settings.get("lr", known["lr"].default if "lr" in known else None)
    # Three ways to say that there is no default: None, torch's marker, and none in the signature.
    if rate is None or rate is required or rate is inspect.Parameter.empty:
        yield Problem("optimizer.lr", f"is required: {cls.__name__} has no default for it")


def no_decay_problems(
    cls: type[torch.optim.Optimizer], no_decay: Iterable[object]
) -> Iterator[Problem]:
    """Check that the optimizer has a weight decay, if a rule spares some parameters from it.

    Args:
        cls: the optimizer's class.
        no_decay: what each rule under ``groups`` says for ``no_decay``, or None.
    """
    if takes(cls, "weight_decay"):
        return
    for i, spared in enumerate(no_decay):
        if spared is not None:
            yield Problem(f"groups[{i}].no_decay", f"{cls.__name__} has no weight_decay")


def _argument_problems(
    path: str,
    given: Mapping[str, Any],
    known: Mapping[str, inspect.Parameter],
    others: Callable[[str], bool],
    valid: list[str],
    whole: Collection[str],
) -> Iterator[Problem]:
    """Check names and kinds of arguments.

    Args:
        path: where they stand in the recipe.
        given: the arguments.
        known: those that may stand there.
        others: tells whether one may that is not known by its signature.
        valid: what else may, for suggestions.
        whole: those that may stand under ``optimizer`` alone.
    """
    for key, value in given.items():
        if key in known:
            kind = expected_kind(key, known[key].default)
            is_default = value is None and known[key].default is None
            if kind and not is_default and not _is_kind(value, kind):
                yield Problem(within(path, key), f"must be {kind} (got {value!r})")
        elif key in whole:
            yield Problem(within(path, key), "is for the whole optimizer; move it to 'optimizer'")
        elif not others(key):
            yield Problem(within(path, key), f"unknown key{did_you_mean(key, valid)}")


def expected_kind(key: str, default: object) -> str | None:
    """Return in words what kind of value an argument takes, or None if its default does not tell.

    Args:
        key: the argument's name.
        default: its default.
    """
    # A default of None does not tell a kind, so that the common ones are known by their names.
    if isinstance(default, bool) or key in ("foreach", "fused"):
        return "true or false"
    if isinstance(default, int | float) or default is required or key in ("lr", "max_grad_norm"):
        return "a finite number"
    return f"a list of {len(default)} finite numbers" if isinstance(default, tuple) else None


def _is_kind(value: object, kind: str) -> bool:
    if kind == "true or false":
        return isinstance(value, bool)
    if kind == "a finite number":
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max  # which infinity is not, nor an int too large
        )
    return (
        isinstance(value, list | tuple)
        and kind == f"a list of {len(value)} finite numbers"
        and all(_is_kind(item, "a finite number") for item in value)
    )


def _value_problems(
    cls: type[torch.optim.Optimizer], settings: Mapping[str, Any], rules: list[Mapping[str, Any]]
) -> Iterator[Problem]:
    """Construct the optimizer over a parameter made for it, and return what it refuses."""

    def probe(**kwargs: Any) -> None:
        # A matrix, because some optimizers (Muon) take nothing else.
        construct(cls, [torch.nn.Parameter(torch.zeros(1, 1))], {"lr": 1e-3, **kwargs})

    # Of a class whose defaults go with no lr, this comes back for whatever is tried by itself.
    always = _refusal(probe, {})
    found = list(refusals("optimizer", probe, settings))
    wrong = [problem for problem in found if problem.message != always]
    if found and not wrong:
        wrong = [Problem("optimizer", found[0].message)]
    yield from wrong
    # The values of a rule may need the optimizer's: nesterov is nothing without momentum. If those
    # are wrong themselves, they would be reported again for every rule.
    shared = {} if wrong else settings
    for i, rule in enumerate(rules):
        for problem in refusals(f"groups[{i}]", partial(probe, **shared), rule):
            if not wrong or problem.message != always:
                yield problem


def refusals(
    path: str, attempt: Callable[..., object], arguments: Mapping[str, Any]
) -> Iterator[Problem]:
    """Return what a call refuses: the arguments that fail by themselves, or else all together.

    Args:
        path: where the arguments stand in the recipe.
        attempt: takes all of them, and any one of them.
        arguments: by their names.
    """
    try:
        attempt(**arguments)
    except Exception as error:  # constructors refuse arguments by whatever error they like
        found = [
            Problem(within(path, key), reason)
            for key, value in arguments.items()
            if (reason := _refusal(attempt, {key: value})) is not None
        ]
        yield from found or [Problem(path, _text(error))]


def _refusal(attempt: Callable[..., object], arguments: Mapping[str, Any]) -> str | None:
    try:
        attempt(**arguments)
    except Exception as error:  # as above
        return _text(error)
    return None


def _text(error: Exception) -> str:
    # These have messages that stand by themselves. That of a KeyError is only the key.
    known = isinstance(error, ValueError | TypeError | RuntimeError)
    return str(error) if known else f"{type(error).__name__}: {error}"
