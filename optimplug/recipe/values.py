"""Whether the hyperparameters that a recipe sets fit its optimizers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim.optimizer import required

from optimplug import optim
from optimplug._core.optim.group_checks import StandIn
from optimplug._core.optim.multi import joined_class
from optimplug.errors import ArgumentError, Problem, did_you_mean
from optimplug.recipe.clipped import construct
from optimplug.recipe.keywords import takes
from optimplug.recipe.lengths import LENGTHS
from optimplug.recipe.resolve import Choice, Optimizers, hyperparameters_of, settable_per_group
from optimplug.recipe.text.written import within

__all__ = ["expected_kind", "no_decay_problems", "optimizer_problems", "refusals"]


def optimizer_problems(
    optimizers: Optimizers, rules: Sequence[Mapping[str, Any]], rule_keys: Iterable[str]
) -> Iterator[Problem]:
    """Check hyperparameters, the optimizers' and each rule's, without any model.

    Args:
        optimizers: of the recipe.
        rules: the hyperparameters of each rule under ``groups``.
        rule_keys: what a rule may say besides hyperparameters.
    """
    wrong = [*_joining_problems(optimizers), *_setting_problems(optimizers, rules)]
    own = [{name: c.known[name] for name in settable_per_group(c.known)} for c in optimizers]
    whole = {name for c in optimizers for name in hyperparameters_of(c.optimizer_class)}
    whole -= {name for known in own for name in known}
    valid = [*dict.fromkeys(key for known in own for key in known), *rule_keys]
    for i, rule in enumerate(rules):
        wrong += _argument_problems(f"groups[{i}]", rule, own, optimizers, valid, whole)
    # The optimizer's own complaints about a misspelt key would repeat these in worse words.
    yield from wrong or _value_problems(optimizers, rules)


def _joining_problems(optimizers: Optimizers) -> Iterator[Problem]:
    """Check that several optimizers can be one, and that what falls back has where to."""
    for choice in optimizers if optimizers.are_several else ():
        try:
            joined_class(choice.optimizer_class)
        except ArgumentError as error:
            yield Problem(f"{choice.path}.name", str(error))
    for choice in (optimizers.main, *optimizers.of_rules.values()):
        fallback = choice.fallback
        if fallback is None:
            continue
        if choice.made_for is None:
            message = f"{choice.name} is made for all parameters, so that nothing falls back"
            yield Problem(fallback.path, f"{message}; leave it out")
        if fallback.made_for is not None:
            message = f"{fallback.name} is itself made for {fallback.made_for} alone"
            yield Problem(f"{fallback.path}.name", f"{message}; name one for all, such as AdamW")


def _setting_problems(
    optimizers: Optimizers, rules: Sequence[Mapping[str, Any]]
) -> Iterator[Problem]:
    for choice in optimizers:
        whole = hyperparameters_of(choice.optimizer_class).keys() - choice.known.keys()
        valid = [*choice.known, "name"]
        known = [choice.known]
        yield from _argument_problems(choice.path, choice.settings, known, [choice], valid, whole)
        by_rule = [i for i, each in optimizers.of_rules.items() if each is choice]
        if not any("lr" in rules[i] for i in by_rule):
            yield from _rate_problems(choice)


def _rate_problems(choice: Choice) -> Iterator[Problem]:
    rate = choice.hyperparameters.get("lr")
    # Three ways to say that there is no default: None, torch's marker, and none in the signature.
    if rate is None or rate is required or rate is inspect.Parameter.empty:
        message = f"is required: {choice.optimizer_class.__name__} has no default for it"
        if choice.hyperparameters.get("relative_step"):  # of the Adafactor of transformers
            message += ", and takes one only beside relative_step: false"
        yield Problem(f"{choice.path}.lr", message)


def no_decay_problems(optimizers: Optimizers, no_decay: Iterable[object]) -> Iterator[Problem]:
    """Check that there is a weight decay, if a rule spares some parameters from it.

    Args:
        optimizers: of the recipe.
        no_decay: what each rule under ``groups`` says for ``no_decay``, or None.
    """
    classes = [choice.optimizer_class for choice in optimizers]
    if any(takes(cls, "weight_decay") for cls in classes):
        return
    names = " and ".join(dict.fromkeys(cls.__name__ for cls in classes))
    for i, spared in enumerate(no_decay):
        if spared is not None:
            verb = "has" if len(classes) == 1 else "have"
            yield Problem(f"groups[{i}].no_decay", f"{names} {verb} no weight_decay")


def _argument_problems(
    path: str,
    given: Mapping[str, Any],
    known: Sequence[Mapping[str, inspect.Parameter]],
    choices: Iterable[Choice],
    valid: Iterable[str],
    whole: Collection[str],
) -> Iterator[Problem]:
    """Check names and kinds of arguments.

    Args:
        path: where they stand in the recipe.
        given: the arguments.
        known: those that may stand there, of each optimizer that they may be for.
        choices: the optimizers, which may take some that are not known by their signatures.
        valid: what else may, for suggestions.
        whole: those that may stand under ``optimizer`` alone.
    """
    classes = [choice.optimizer_class for choice in choices]
    for key, value in given.items():
        defaults = [own[key].default for own in known if key in own]
        if defaults:
            kind = _missed_kind(key, value, defaults)
            if kind is not None:
                yield Problem(within(path, key), f"must be {kind} (got {value!r})")
        elif key in whole:
            yield Problem(within(path, key), "is for the whole optimizer; move it to 'optimizer'")
        elif not any(takes(cls, key) for cls in classes):
            yield Problem(within(path, key), f"unknown key{did_you_mean(key, valid)}")


def _missed_kind(key: str, value: object, defaults: Iterable[object]) -> str | None:
    """Return what kind of value an argument takes, if a value is of none that it may be of."""
    kinds: list[str] = []
    for default in defaults:
        kind = expected_kind(key, default)
        if kind is None or (value is None and default is None) or _is_kind(value, kind):
            return None
        kinds.append(kind)
    return " or ".join(dict.fromkeys(kinds))


def expected_kind(key: str, default: object) -> str | None:
    """Return in words what kind of value an argument takes, or None if its default does not tell.

    Args:
        key: the argument's name.
        default: its default.
    """
    if key in LENGTHS:  # a number, or a duration
        return None
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
    optimizers: Optimizers, rules: Sequence[Mapping[str, Any]]
) -> Iterator[Problem]:
    """Construct optimizers over a parameter made for it, and return what they refuse."""
    wrong = [problem for choice in optimizers for problem in _setting_refusals(choice)]
    yield from wrong
    for i, rule in enumerate(rules):
        yield from _rule_refusals(f"groups[{i}]", rule, optimizers, bool(wrong))
    if optimizers.are_several and not wrong:
        yield from refusals("optimizer", partial(_probe_together, optimizers), {})


def _setting_refusals(choice: Choice) -> list[Problem]:
    """Return what an optimizer refuses of its own settings."""
    found = list(refusals(choice.path, partial(_probe, choice), choice.settings))
    own = [problem for problem in found if problem.message != _always_refused(choice)]
    return own or [Problem(choice.path, problem.message) for problem in found[:1]]


def _always_refused(choice: Choice) -> str | None:
    """Return what comes back for every argument by itself, where the defaults go with no lr."""
    return _refusal(partial(_probe, choice), {})


def _rule_refusals(
    path: str, rule: Mapping[str, Any], optimizers: Optimizers, alone: bool
) -> list[Problem]:
    """Return what is refused of a rule by each optimizer that it may be for."""
    found: list[list[Problem]] = []
    for choice in optimizers:
        own = {key: value for key, value in rule.items() if takes(choice.optimizer_class, key)}
        # The values of a rule may need the optimizer's: nesterov is nothing without momentum. If
        # those are wrong themselves, they would be reported again for every rule.
        shared = {} if alone else choice.settings
        if own:
            refused = refusals(path, partial(_probe, choice, **shared), own)
            always = _always_refused(choice) if alone else None
            found.append([problem for problem in refused if problem.message != always])
    # Which of them has the parameters is known with a model, and then it is checked again.
    return found[0] if found and all(found) else []


def _probe(choice: Choice, **kwargs: Any) -> None:
    construct(choice.optimizer_class, [_stand_in()], {"lr": 1e-3, **kwargs})


def _stand_in() -> StandIn:
    # A matrix, because some optimizers (torch's Muon) take nothing else.
    return StandIn(torch.zeros(1, 1))


def _probe_together(optimizers: Optimizers) -> None:
    """Construct all in one, as what is for the whole may not be for each."""
    per_group = {choice.path: settable_per_group(choice.settings) for choice in optimizers}
    main = optimizers.main
    construct(
        optim.MultiOptimizer,
        [
            {
                "params": [_stand_in()],
                "optimizer": choice.optimizer_class,
                "name": choice.path,
                "lr": 1e-3,
                **{key: choice.settings[key] for key in per_group[choice.path]},
            }
            for choice in optimizers
        ],
        {k: v for k, v in main.settings.items() if k not in per_group[main.path]},
    )


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
