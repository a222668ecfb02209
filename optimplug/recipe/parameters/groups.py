"""Rules -> parameter groups: parameters whose final settings are equal."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from optimplug.errors import Problem, RecipeError
from optimplug.recipe.keywords import takes
from optimplug.recipe.parameters.assign import NO_HYPERPARAMETERS, assign
from optimplug.recipe.parameters.depth.depth import Layout
from optimplug.recipe.parameters.shapes import ShapeProblems
from optimplug.recipe.parameters.votes import ParameterVotes, collect_votes
from optimplug.recipe.resolve import Choice, Optimizers, settable_per_group
from optimplug.recipe.text.problems import Problems
from optimplug.recipe.text.rule_id import RuleId
from optimplug.recipe.text.schema.rules import LayerDecay, RuleSpec

__all__ = ["Group", "Grouping", "group_parameters"]

# Groups carry these for the scheduler; they are no hyperparameters of the optimizer.
_FOR_SCHEDULER = ("schedule", "freeze")


@dataclass(frozen=True)
class Group:
    """Parameters whose final settings are equal."""

    name: str
    parameters: dict[str, nn.Parameter]
    settings: dict[str, Any]
    """Its lr, and the hyperparameters that differ from the optimizer's. Of several optimizers, also
    its name, and all that the recipe sets of it."""
    optimizer: Choice
    """The optimizer that moves them."""
    rules: tuple[int, ...]
    """The rules that set something here, by their places under ``groups``."""
    schedule: RuleId | None = None
    """The rule that gives it a schedule of its own."""
    freeze: RuleId | None = None
    """The rule that freezes it for a time."""

    @property
    def lr(self) -> float:
        """The group's own rate, before the schedule."""
        return float(self.settings["lr"])

    @property
    def numel(self) -> int:
        """Number of elements in all its parameters."""
        return sum(p.numel() for p in self.parameters.values())

    def as_param_group(self) -> dict[str, Any]:
        """Return the dict that an optimizer takes."""
        for_scheduler = {"schedule": self.schedule, "freeze": self.freeze}
        return {
            "params": list(self.parameters.values()),
            "param_names": list(self.parameters),
            "name": self.name,
            **{key: rule.path for key, rule in for_scheduler.items() if rule is not None},
            **self.settings,
        }


@dataclass(frozen=True)
class Grouping:
    """What the rules make of a model: groups to train, and parameters that stay as they are."""

    groups: tuple[Group, ...]
    frozen: dict[str, nn.Parameter]
    """What stays as it is for the whole run, by name."""
    parameters: dict[str, ParameterVotes]
    """Every parameter of the model, frozen ones too, by the first of its names."""
    layout: Layout | None = None
    """The model's layers, if the recipe asks for depth or says what they are."""
    absent: tuple[Problem, ...] = ()
    """Families that a rule names and the model lacks, each with its path in the recipe."""


@dataclass
class _Draft:
    """A group while its parameters are being found."""

    optimizer: Choice
    settings: dict[str, Any]
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    rules: set[int] = field(default_factory=set)

    def add(self, name: str, votes: ParameterVotes, settings: dict[str, Any]) -> None:
        self.parameters[name] = votes.parameter
        self.settings = settings  # the same again, or 0 where it was 0.0
        self.rules |= {each[-1].rule for each in votes.votes.values()}

    def as_group(self, name: str) -> Group:
        settings = {k: v for k, v in self.settings.items() if k not in _FOR_SCHEDULER}
        schedule, freeze = (self.settings.get(key) for key in _FOR_SCHEDULER)
        rules = tuple(sorted(self.rules))
        own = self.optimizer
        return Group(name, self.parameters, settings, own, rules, schedule, freeze)


def group_parameters(
    model: nn.Module,
    optimizers: Optimizers,
    rules: Sequence[RuleSpec],
    rule_settings: Sequence[Mapping[str, Any]],
    layers: Sequence[str] | None = None,
) -> Grouping:
    """Apply every rule to every parameter, and put parameters that end up equal together.

    Args:
        model: whose parameters are grouped; it is not changed.
        optimizers: the recipe's, with the hyperparameters where no rule says otherwise.
        rules: the recipe's rules, in order.
        rule_settings: the hyperparameters that each rule sets.
        layers: globs on the modules that are the model's layers; None to find them.

    Raises:
        RecipeError: a rule matches nothing, depth cannot be found, rules give different values to
            the names of a tied parameter, a rate is not finite, an optimizer does not fit its
            parameters, their shapes or what rules set for them, or nothing is left to train.
    """
    _check_trainable(model)
    asking = {choice.path: choice.name for choice in optimizers if choice.made_for is not None}
    all_votes, absent, layout = collect_votes(model, rules, rule_settings, layers, asking)
    parameters = {each.names[0]: each for each in all_votes}
    frozen = {name: each.parameter for name, each in parameters.items() if each.is_frozen}
    trained = {name: each for name, each in parameters.items() if name not in frozen}
    chosen = assign(trained, optimizers, rules)
    # Groups come in the order of their first parameters: a dict keeps the order of its keys.
    drafts: dict[str, _Draft] = {}
    misshapen = ShapeProblems()
    for name, votes in trained.items():
        settings = _settings(votes, chosen[name], optimizers.are_several)
        draft = drafts.setdefault(_key(settings), _Draft(chosen[name], settings))
        draft.add(name, votes, settings)
        misshapen.check(votes, chosen[name], settings)
    wrong = Problems()
    wrong.extend(misshapen)
    wrong.raise_if_any()
    if not drafts:
        raise RecipeError.at("groups", "no parameter is left to train: all are frozen")
    names = _group_names(list(drafts.values()))
    groups = tuple(draft.as_group(name) for draft, name in zip(drafts.values(), names, strict=True))
    return Grouping(groups, frozen, parameters, layout, tuple(absent))


def _check_trainable(model: nn.Module) -> None:
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise RecipeError.at("", f"{lazy[0]} has no shape yet; run the model on one batch first")
    if next(model.parameters(), None) is None:
        raise RecipeError.at("", f"{type(model).__name__} has no parameters to train")


def _settings(parameter: ParameterVotes, optimizer: Choice, are_several: bool) -> dict[str, Any]:
    """Return the parameter's rate, and the values that differ from its optimizer's."""
    values, defaults = parameter.values, optimizer.hyperparameters
    rate = _rate(values, defaults, parameter.distance)
    if not math.isfinite(rate):
        message = f"lr of {parameter.names[0]} comes to {rate}; it must be finite"
        raise RecipeError.at("groups", message)
    if values.get("freeze") is False:  # as if no rule spoke of it
        del values["freeze"]
    if "weight_decay" in values and not takes(optimizer.optimizer_class, "weight_decay"):
        del values["weight_decay"]  # no_decay is true then without a word
    differing = {
        key: value
        for key, value in values.items()
        if key in _FOR_SCHEDULER
        or (key not in NO_HYPERPARAMETERS and (key not in defaults or value != defaults[key]))
    }
    differing = {**_as_matrix(parameter, optimizer), **differing}
    if not are_several:
        return {**differing, "lr": rate}
    own = {key: optimizer.settings[key] for key in settable_per_group(optimizer.settings)}
    return {"optimizer": optimizer.name, **own, **differing, "lr": rate}


def _as_matrix(parameter: ParameterVotes, optimizer: Choice) -> dict[str, Any]:
    """Return what tells an optimizer for matrices which one a parameter is: (out, rest) of it.

    By its shape alone it could as well be a stack of matrices; but then it is no hidden matrix. Nor
    does that tell outputs from inputs. What the recipe says itself holds.
    """
    found = {"flatten": parameter.parameter.ndim == 3, "transposed": parameter.is_transposed}
    said = {*parameter.values, *optimizer.settings}
    asks = optimizer.known if optimizer.made_for is not None else {}
    return {key: True for key, holds in found.items() if holds and key in asks and key not in said}


def _rate(values: Mapping[str, Any], defaults: Mapping[str, Any], distance: int) -> float:
    """Return lr x lr_scale x layer_decay^distance."""
    decay = values.get("layer_decay", 1.0)
    rate, least = (decay.rate, decay.min) if isinstance(decay, LayerDecay) else (decay, 0.0)
    factor = max(math.prod([rate] * distance), least)
    return math.prod([values.get("lr", defaults["lr"]), values.get("lr_scale", 1.0), factor])


def _key(settings: Mapping[str, Any]) -> str:
    """Return a text that is the same for equal settings, whatever their order and types."""
    return repr(sorted((name, _comparable(value)) for name, value in settings.items()))


def _comparable(value: object) -> object:
    """Return a value such that equal ones look equal: 0 as 0.0, lists as tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(_comparable, value))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _group_names(drafts: Sequence[_Draft]) -> list[str]:
    """Name each group after what its parameters share; add words where that is not enough.

    A name holds no value: what is logged under it is found again when a rate has changed. It is the
    last part of keys, so that it holds no ``=`` either.
    """
    rivals: dict[str, list[_Draft]] = defaultdict(list)
    prefixes = [_shared_prefix(list(draft.parameters)) for draft in drafts]
    for draft, prefix in zip(drafts, prefixes, strict=True):
        rivals[prefix].append(draft)
    suffixes = {
        id(d): s for p, of in rivals.items() for d, s in zip(of, _suffixes(of, p), strict=True)
    }
    return [
        f"{prefix}/{suffix}" if (suffix := suffixes[id(draft)]) else prefix
        for draft, prefix in zip(drafts, prefixes, strict=True)
    ]


def _suffixes(rivals: Sequence[_Draft], prefix: str) -> list[str]:
    """Return what tells groups of one prefix apart.

    It is words on their settings; or else what the names of a group's parameters have in common; or
    else the first of these names.
    """
    keys = _differing_keys([rival.settings for rival in rivals])
    words = [_words(rival, keys) for rival in rivals]
    common = [_common_below(rival, prefix) for rival in rivals]
    count = Counter([*words, *common])
    own_words = Counter(words)
    found = []
    for rival, own, parts in zip(rivals, words, common, strict=True):
        by_parts = parts if parts and count[parts] == 1 else _first_below(rival, prefix)
        found.append(own if own_words[own] == 1 else by_parts)
    return found


def _words(draft: _Draft, keys: Sequence[str]) -> str:
    """Return in words what of these settings is said of a group: ``no_decay-state_dtype``."""
    said = (key for key in keys if key in draft.settings and key != "lr")
    return "-".join(_word(key, draft.settings[key]) for key in said)


def _word(key: str, value: object) -> str:
    if key == "optimizer":
        return str(value)
    return "no_decay" if key == "weight_decay" and value == 0 else key


def _common_below(draft: _Draft, prefix: str) -> str:
    """Return the parts of their names, below the prefix, that all of a group's parameters have."""
    first, *others = (name.removeprefix(f"{prefix}.").split(".") for name in draft.parameters)
    shared = (part for part in first if all(part in other for other in others))
    return ".".join(part for part in shared if not part.isdecimal())


def _first_below(draft: _Draft, prefix: str) -> str:
    return next(iter(draft.parameters)).removeprefix(f"{prefix}.")


def _differing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    # By their texts, because a setting may be a list, which no set can hold.
    keys = sorted({key for each in settings for key in each})
    return [key for key in keys if len({repr(each.get(key)) for each in settings}) > 1]


def _shared_prefix(names: Sequence[str]) -> str:
    columns = zip(*(name.split(".") for name in names), strict=False)
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    return ".".join(column[0] for column in shared) or "model"
