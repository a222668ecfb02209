"""Rules -> parameter groups, and why each parameter is where it is."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from optimplug.errors import Problem, RecipeError
from optimplug.recipe.depth import depths
from optimplug.recipe.match import Place, matches, places, suggestion
from optimplug.recipe.schema import RuleSpec

__all__ = ["Group", "Grouping", "Member", "Vote", "group_parameters"]


@dataclass(frozen=True)
class Group:
    """Parameters whose final settings are equal."""

    name: str
    parameters: dict[str, nn.Parameter]
    settings: dict[str, Any]
    rules: tuple[int, ...]
    """Which rules of the recipe set something here, by their place under ``groups``."""
    schedule: str | None = None
    """The rule that gives it a schedule of its own: ``groups[2]``."""
    freeze: str | None = None
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
            **{key: rule for key, rule in said.items() if rule is not None},
            **self.settings,
        }


@dataclass(frozen=True)
class Vote:
    """What a rule says for one key of one parameter, and by which of its names."""

    value: Any
    rule: int
    names: frozenset[str]


@dataclass(frozen=True)
class Member:
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
    members: dict[str, Member]
    """Every parameter, frozen ones too, by the first of its names."""


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
    by_parameter: dict[nn.Parameter, list[Place]] = {}
    for place in places(model):
        by_parameter.setdefault(place.parameter, []).append(place)

    if not by_parameter:
        raise RecipeError.at("", f"{type(model).__name__} has no parameters to train")
    for parameter, named in by_parameter.items():
        if nn.parameter.is_lazy(parameter):
            message = f"{named[0].name} has no shape yet; run the model on one batch first"
            raise RecipeError.at("", message)
    wrong = _unmatched(model, rules, [p for named in by_parameter.values() for p in named])
    depth = _depths(model, rules, wrong)
    frozen: dict[str, nn.Parameter] = {}
    members: dict[str, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    settings: dict[str, dict[str, Any]] = {}
    winners: dict[str, set[int]] = defaultdict(set)
    everyone: dict[str, Member] = {}
    for parameter, named in by_parameter.items():
        name = named[0].name
        votes = _vote(rules, values, named, wrong)
        distance = depth.get("", 0) - depth.get(name, 0)
        everyone[name] = Member(parameter, tuple(p.name for p in named), votes, distance)
        said = {key: voted[-1].value for key, voted in votes.items()}
        if said.get("freeze") is True or not parameter.requires_grad:
            frozen[name] = parameter
            continue
        decay, scale = said.pop("layer_decay", 1.0), said.pop("lr_scale", 1.0)
        rate = math.prod([said.get("lr", defaults["lr"]), scale, *[decay] * distance])
        if not math.isfinite(rate) and not wrong:  # one line, not one for each parameter
            wrong.append(Problem("groups", f"lr of {name} comes to {rate}; it must be finite"))
        said = {k: v for k, v in said.items() if k not in defaults or v != defaults[k]}
        if said.get("freeze") is False:
            del said["freeze"]
        said["lr"] = rate
        key = repr(sorted((name, _comparable(value)) for name, value in said.items()))
        members[key].append((name, parameter))
        settings[key] = said
        winners[key] |= {voted[-1].rule for voted in votes.values()}
    if not members and not wrong:
        wrong.append(Problem("groups", "no parameter is left to train: all are frozen"))
    if wrong:
        raise RecipeError(wrong)
    names = _group_names({key: [n for n, _ in members[key]] for key in members}, settings)
    return Grouping(
        tuple(
            _group(names[key], dict(members[key]), settings[key], tuple(sorted(winners[key])))
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


def _unmatched(
    model: nn.Module, rules: Sequence[RuleSpec], everywhere: Sequence[Place]
) -> list[Problem]:
    wrong = []
    for i, rule in enumerate(rules):
        if not any(matches(rule.match, place) for place in everywhere):
            hint = suggestion(rule.match, model)
            wrong.append(Problem(f"groups[{i}].match", f"{rule.match} matches no parameter{hint}"))
    return wrong


def _depths(model: nn.Module, rules: Sequence[RuleSpec], wrong: list[Problem]) -> dict[str, int]:
    """Return every parameter's depth, and the top's under the empty name, if a rule needs it."""
    asking = next((i for i, rule in enumerate(rules) if rule.layer_decay is not None), None)
    if asking is None:
        return {}
    try:
        found = depths(model)
    except ValueError as error:
        wrong.append(Problem(f"groups[{asking}].layer_decay", str(error)))
        return {}
    return {**found, "": max(found.values(), default=0)}


def _vote(
    rules: Sequence[RuleSpec],
    values: Sequence[Mapping[str, Any]],
    named: Sequence[Place],
    wrong: list[Problem],
) -> dict[str, list[Vote]]:
    """Let every rule that matches one of a parameter's names speak; later ones win key by key."""
    votes: dict[str, list[Vote]] = {}
    for i, (rule, hyper) in enumerate(zip(rules, values, strict=True)):
        names = frozenset(place.name for place in named if matches(rule.match, place, named))
        own = rule.model_dump(include={"layer_decay", "lr_scale"}, exclude_none=True)
        own |= {} if rule.schedule is None else {"schedule": f"groups[{i}]"}
        if rule.freeze is not None:
            own["freeze"] = rule.freeze if isinstance(rule.freeze, bool) else f"groups[{i}]"
        for key, value in {**own, **hyper}.items() if names else ():
            votes.setdefault(key, []).append(Vote(value, i, names))
    for key, (*before, winner) in votes.items():
        for vote in before:
            if vote.value != winner.value and vote.names.isdisjoint(winner.names):
                wrong.append(
                    Problem(
                        f"groups[{winner.rule}].{key}",
                        f"{winner.value!r} for {min(winner.names)} contradicts {vote.value!r} of "
                        f"groups[{vote.rule}] for {min(vote.names)}: they are one tied parameter; "
                        "let a single rule speak for it",
                    )
                )
    return votes


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
