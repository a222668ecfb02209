"""Rules -> parameter groups, and why each parameter is where it is."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from optimplug.errors import Problem, RecipeError
from optimplug.recipe.parameters.depth import find_depths
from optimplug.recipe.parameters.match import (
    FAMILY_WORDS,
    Condition,
    Place,
    asks_depth,
    condition,
    family_or_glob,
    places,
    suggestion,
)
from optimplug.recipe.text.levels import Depth
from optimplug.recipe.text.rule_id import RuleId
from optimplug.recipe.text.schema import LayerDecay, Match, RuleSpec

__all__ = ["Group", "Grouping", "ParameterVotes", "Vote", "group_parameters"]


@dataclass(frozen=True)
class Group:
    """Parameters whose final settings are equal."""

    name: str
    parameters: dict[str, nn.Parameter]
    settings: dict[str, Any]
    rules: tuple[int, ...]
    """Which rules of the recipe set something here, by their place under ``groups``."""
    schedule: RuleId | None = None
    """The rule that gives it a schedule of its own."""
    freeze: RuleId | None = None
    """The rule that leaves it as it is for a time."""

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
        said = {"schedule": self.schedule, "freeze": self.freeze}
        return {
            "params": list(self.parameters.values()),
            "param_names": list(self.parameters),
            "name": self.name,
            **{key: rule.path for key, rule in said.items() if rule is not None},
            **self.settings,
        }


@dataclass(frozen=True)
class Vote:
    """What a rule says for one key of one parameter, and by which of its names."""

    value: Any
    rule: int
    names: frozenset[str]
    by: str
    """The rule's own key that says so: ``no_decay`` says ``weight_decay: 0``."""


@dataclass(frozen=True)
class ParameterVotes:
    """A parameter of the model, and all that was said of it."""

    parameter: nn.Parameter
    names: tuple[str, ...]
    """All its names, if it is tied; by the first it stands in its group."""
    votes: Mapping[str, Sequence[Vote]]
    """For each key what every rule said, in their order; the last one counts."""
    distance: int
    """How many layers it is from the top; 0 where no rule asks for depth."""


@dataclass(frozen=True)
class Grouping:
    """What the rules make of a model: groups to train, and parameters left as they are."""

    groups: tuple[Group, ...]
    frozen: dict[str, nn.Parameter]
    parameters: dict[str, ParameterVotes]
    """Every parameter, frozen ones too, by the first of its names."""

    def freeze(self) -> None:
        """Let those that are left as they are require no gradients."""
        for parameter in self.frozen.values():
            parameter.requires_grad_(False)


@dataclass(frozen=True)
class _Statement:
    """What a rule says of the parameters for which its condition holds."""

    rule: int
    holds: Condition
    says: Mapping[str, Any]
    missed: Callable[[], Problem]
    """Tells what is wrong if it holds for none."""
    by: str | None = None
    """The rule's key that says so, where it is another than those of ``says``."""


_Votes = dict[str, list[Vote]]


def group_parameters(
    model: nn.Module,
    defaults: Mapping[str, Any],
    rules: Sequence[RuleSpec],
    values: Sequence[Mapping[str, Any]],
) -> Grouping:
    """Apply every rule to every parameter and put those that end up equal together.

    Args:
        model: whose parameters are grouped; it is not changed.
        defaults: the optimizer's hyperparameters, where no rule says otherwise.
        rules: the recipe's rules, in order.
        values: the hyperparameters that each rule sets.

    Raises:
        RecipeError: a rule matches nothing, depth cannot be found, names of a tied parameter pull
            in different directions, or nothing is left to train.
    """
    wrong: list[Problem] = []
    _check_trainable(model)
    everywhere = places(model, _depths(model, rules, wrong))
    statements = _statements(model, rules, values, skip_depth=bool(wrong))
    ballots = _vote(statements, everywhere, wrong)
    frozen: dict[str, nn.Parameter] = {}
    members: dict[str, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    settings: dict[str, dict[str, Any]] = {}
    winners: dict[str, set[int]] = defaultdict(set)
    everyone: dict[str, ParameterVotes] = {}
    for named, votes in zip(everywhere, ballots, strict=True):
        place = named[0]
        distance = place.depth.below_top if place.depth else 0
        names = tuple(place.name for place in named)
        everyone[place.name] = ParameterVotes(place.parameter, names, votes, distance)
        said = {key: voted[-1].value for key, voted in votes.items()}
        if said.get("freeze") is True or not place.parameter.requires_grad:
            frozen[place.name] = place.parameter
            continue
        rate = _rate(said, defaults, distance)
        if not math.isfinite(rate) and not wrong:  # one line, not one for each parameter
            message = f"lr of {place.name} comes to {rate}; it must be finite"
            wrong.append(Problem("groups", message))
        said = {k: v for k, v in said.items() if k not in defaults or v != defaults[k]}
        if said.get("freeze") is False:
            del said["freeze"]
        said["lr"] = rate
        key = repr(sorted((name, _comparable(value)) for name, value in said.items()))
        members[key].append((place.name, place.parameter))
        settings[key] = said
        winners[key] |= {voted[-1].rule for voted in votes.values()}
    if not members and not wrong:
        wrong.append(Problem("groups", "no parameter is left to train: all are frozen"))
    if wrong:
        raise RecipeError(wrong)
    group_names = _group_names({key: [n for n, _ in members[key]] for key in members}, settings)
    return Grouping(
        tuple(
            _group(group_names[key], dict(members[key]), settings[key], tuple(sorted(winners[key])))
            for key in members
        ),
        frozen,
        everyone,
    )


def _group(
    name: str, members: dict[str, nn.Parameter], said: Mapping[str, Any], rules: tuple[int, ...]
) -> Group:
    """Tell what is for the optimizer from what is for the scheduler."""
    settings = {k: v for k, v in said.items() if k not in ("schedule", "freeze")}
    return Group(name, members, settings, rules, said.get("schedule"), said.get("freeze"))


def _check_trainable(model: nn.Module) -> None:
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise RecipeError.at("", f"{lazy[0]} has no shape yet; run the model on one batch first")
    if next(model.parameters(), None) is None:
        raise RecipeError.at("", f"{type(model).__name__} has no parameters to train")


def _depths(
    model: nn.Module, rules: Sequence[RuleSpec], wrong: list[Problem]
) -> dict[str, Depth] | None:
    """Return every parameter's depth, if a rule needs it."""
    asking = [
        f"groups[{i}].{'match' if asks_depth(rule.match) else 'layer_decay'}"
        for i, rule in enumerate(rules)
        if rule.layer_decay is not None or asks_depth(rule.match)
    ]
    if not asking:
        return None
    try:
        return find_depths(model)
    except ValueError as error:
        wrong.append(Problem(asking[0], str(error)))
        return None


def _statements(
    model: nn.Module,
    rules: Sequence[RuleSpec],
    values: Sequence[Mapping[str, Any]],
    skip_depth: bool,
) -> Iterator[_Statement]:
    """Give what the rules say, in order; those that ask for a depth only if there is one."""
    for i, (rule, hyper) in enumerate(zip(rules, values, strict=True)):
        if skip_depth and asks_depth(rule.match):
            continue
        holds = condition(rule.match)
        own = {key: getattr(rule, key) for key in ("layer_decay", "lr_scale")}
        says = {key: value for key, value in own.items() if value is not None}
        says |= {} if rule.schedule is None else {"schedule": RuleId(i)}
        if rule.freeze is not None:
            says["freeze"] = rule.freeze if isinstance(rule.freeze, bool) else RuleId(i)
        missed = partial(_missed, f"groups[{i}].match", f"{rule.match}", rule.match, model)
        yield _Statement(i, holds, {**says, **hyper}, missed)
        for word in rule.no_decay or ():
            what, guess = repr(word), None
            if rule.match is not None:
                what += f" within {rule.match}"
            elif word not in FAMILY_WORDS:
                guess = Match.model_validate(word)
            missed = partial(_missed, f"groups[{i}].no_decay", what, guess, model)
            both = _both(holds, family_or_glob(word))
            yield _Statement(i, both, {"weight_decay": 0}, missed, by="no_decay")


def _missed(path: str, what: str, guess: Match | None, model: nn.Module) -> Problem:
    return Problem(path, f"{what} matches no parameter{suggestion(guess, model)}")


def _both(one: Condition, other: Condition) -> Condition:
    return lambda place, tied: one(place, tied) and other(place, tied)


def _vote(
    statements: Iterable[_Statement], everywhere: Sequence[Sequence[Place]], wrong: list[Problem]
) -> list[_Votes]:
    """Let every statement that holds for one of a parameter's names speak; the last one wins."""
    ballots: list[_Votes] = [defaultdict(list) for _ in everywhere]
    for statement in statements:
        held = False
        for named, ballot in zip(everywhere, ballots, strict=True):
            names = frozenset(place.name for place in named if statement.holds(place, named))
            held = held or bool(names)
            for key, value in statement.says.items() if names else ():
                _add(ballot[key], Vote(value, statement.rule, names, statement.by or key))
        if not held:
            wrong.append(statement.missed())
    for ballot in ballots:
        wrong += _contradictions(ballot)
    return ballots


def _add(said: list[Vote], vote: Vote) -> None:
    """Add a vote; what a rule says twice, as of a norm's bias, it has said once."""
    if said and (said[-1].rule, said[-1].by) == (vote.rule, vote.by):
        vote = replace(vote, names=said.pop().names | vote.names)
    said.append(vote)


def _contradictions(ballot: _Votes) -> Iterator[Problem]:
    """Find rules that pull a tied parameter by two names in two directions."""
    for *before, winner in ballot.values():
        for vote in before:
            if vote.value != winner.value and vote.names.isdisjoint(winner.names):
                yield Problem(
                    f"groups[{winner.rule}].{winner.by}",
                    f"{winner.value!r} for {min(winner.names)} contradicts {vote.value!r} of "
                    f"groups[{vote.rule}] for {min(vote.names)}: they are one tied parameter; "
                    "let a single rule speak for it",
                )


def _rate(said: dict[str, Any], defaults: Mapping[str, Any], distance: int) -> float:
    """Take what scales the rate out of what is said, and return the rate."""
    decay, scale = said.pop("layer_decay", 1.0), said.pop("lr_scale", 1.0)
    if not isinstance(decay, LayerDecay):
        decay = LayerDecay.model_validate({"rate": decay})
    factor = max(math.prod([decay.rate] * distance), decay.min)
    return math.prod([said.get("lr", defaults["lr"]), scale, factor])


def _comparable(value: object) -> object:
    """Return a value such that equal ones look equal: 0 as 0.0, lists as tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(_comparable, value))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _group_names(
    members: Mapping[str, Sequence[str]], settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Name each group after what its parameters share; add settings where that is not enough."""
    base = {key: _shared_prefix(names) for key, names in members.items()}
    found = {}
    for key, prefix in base.items():
        rivals = [settings[other] for other in base if base[other] == prefix]
        options = sorted({option for rival in rivals for option in rival})
        differing = [o for o in options if len({repr(rival.get(o)) for rival in rivals}) > 1]
        suffix = ",".join(
            f"{o}={_short(settings[key][o])}" for o in differing if o in settings[key]
        )
        found[key] = f"{prefix}/{suffix}" if suffix else prefix
    return found


def _shared_prefix(names: Sequence[str]) -> str:
    columns = zip(*(name.split(".") for name in names), strict=False)
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    return ".".join(column[0] for column in shared) or "model"


def _short(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value).replace(" ", "")
