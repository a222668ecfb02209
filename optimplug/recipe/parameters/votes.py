"""What each rule says of each parameter. Of several rules the last one wins, key by key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from optimplug.errors import Problem
from optimplug.recipe.parameters.dead_words import DeadWord, absent_family, dead_words
from optimplug.recipe.parameters.depth.depth import Layout, find_layout
from optimplug.recipe.parameters.frozen import require_gradients
from optimplug.recipe.parameters.hidden import is_hidden_matrix
from optimplug.recipe.parameters.kinds import is_transposed
from optimplug.recipe.parameters.match import (
    FAMILY_WORDS,
    Condition,
    Place,
    asks_depth,
    asks_layers,
    condition,
    family_or_glob,
    nearest_family,
    places,
    suggestion,
)
from optimplug.recipe.parameters.wrappers import without_wrappers
from optimplug.recipe.text.problems import Problems
from optimplug.recipe.text.rule_id import RuleId
from optimplug.recipe.text.schema.match import Match
from optimplug.recipe.text.schema.rules import RuleSpec

__all__ = ["ParameterVotes", "Vote", "collect_votes"]


@dataclass(frozen=True)
class Vote:
    """The value that one rule gives to one key of one parameter."""

    value: Any
    rule: int
    """The rule's place under ``groups``."""
    names: frozenset[str]
    """The names of the parameter for which the rule holds: several, perhaps, if it is tied."""
    by: str
    """The rule's own key. It may be another than the vote's: ``no_decay`` sets ``weight_decay``."""


@dataclass(frozen=True)
class ParameterVotes:
    """A parameter of the model, and all votes on its settings."""

    parameter: nn.Parameter
    names: tuple[str, ...]
    """All its names. A tied one has several; its group lists it by the first."""
    votes: Mapping[str, Sequence[Vote]]
    """By key, in the order of the rules; the last vote wins."""
    distance: int
    """How many layers it is below the top; 0 where no rule asks for depth."""
    requires_grad: bool
    """Whether it is trained unless a rule freezes it; what an earlier recipe froze, is."""
    is_hidden_matrix: bool = False
    """See :mod:`.hidden`; False where no optimizer asks."""
    is_transposed: bool = False
    """Whether it is a matrix of (in, out): see :func:`.kinds.is_transposed`."""

    @property
    def values(self) -> dict[str, Any]:
        """The value that wins, for each key that any rule gives."""
        return {key: votes[-1].value for key, votes in self.votes.items()}

    @property
    def is_frozen(self) -> bool:
        """Whether a rule or the model itself keeps it from being trained."""
        return self.values.get("freeze") is True or not self.requires_grad


@dataclass(frozen=True)
class _Clause:
    """A part of a rule: for which parameters it holds, and the values that it gives to them.

    The rule's hyperparameters are one clause, each word of its ``no_decay`` is another.
    """

    rule: int
    holds: Condition
    values: Mapping[str, Any]
    unmatched: Callable[[], DeadWord] | None = None
    """Returns what is said if it holds for no parameter; None where its match is looked at."""
    by: str | None = None
    """The rule's key, where it is another than those of ``values``."""


_Votes = dict[str, list[Vote]]


def collect_votes(
    model: nn.Module,
    rules: Sequence[RuleSpec],
    rule_settings: Sequence[Mapping[str, Any]],
    layers: Sequence[str] | None = None,
    asking: Mapping[str, str] | None = None,
) -> tuple[list[ParameterVotes], list[Problem], Layout | None]:
    """Let every rule vote on every parameter for which it holds.

    Args:
        model: whose parameters these are.
        rules: the recipe's rules, in order.
        rule_settings: the hyperparameters that each rule sets.
        layers: globs on the modules that are the model's layers; None to find them.
        asking: the optimizers that are made for what is in layers, by their paths in the recipe.

    Returns:
        Every parameter, in the model's order; which families the rules name that the model has none
        of; and the model's layers, if a rule asks for depth.

    Raises:
        RecipeError: a word of a rule holds for no parameter, depth cannot be found, or rules give
            different values to a tied parameter under different names.
    """
    wrong = Problems()
    bare = without_wrappers(model)
    layout = _layout(bare, rules, layers, asking or {}, wrong)
    everywhere = places(bare, layout.depths if layout else None)
    all_votes: list[_Votes] = [defaultdict(list) for _ in everywhere]
    skip_depth, dead = bool(wrong), list[DeadWord]()
    for i, (rule, settings) in enumerate(zip(rules, rule_settings, strict=True)):
        # Depth was not found, which is reported already: a rule that asks for it matches nothing.
        if not (skip_depth and asks_depth(rule.match)):
            dead += dead_words(rule.match, f"groups[{i}].match", everywhere, bare)
            for clause in _clauses(i, rule, settings, bare):
                if not _vote(clause, everywhere, all_votes) and clause.unmatched is not None:
                    dead.append(clause.unmatched())
    wrong.extend(word.problem for word in dead if word.is_error)
    # After all rules, because a later one may settle what two before it contradict each other in.
    for votes in all_votes:
        wrong.extend(_contradictions(votes))
    wrong.raise_if_any()
    trained = require_gradients(model)
    return (
        [
            _parameter_votes(*each, trained, layout.hidden if layout and asking else ())
            for each in zip(everywhere, all_votes, strict=True)
        ],
        [word.problem for word in dead if not word.is_error],
        layout,
    )


def _parameter_votes(
    named: Sequence[Place],
    votes: _Votes,
    trained: Collection[nn.Parameter],
    layers: Collection[str],
) -> ParameterVotes:
    parameter, depth = named[0].parameter, named[0].depth
    names = tuple(place.name for place in named)
    distance = depth.below_top if depth else 0
    is_trained, is_hidden = parameter in trained, is_hidden_matrix(named, layers)
    on_its_side = parameter.ndim == 2 and all(is_transposed(place.modules[0]) for place in named)
    return ParameterVotes(parameter, names, votes, distance, is_trained, is_hidden, on_its_side)


def _layout(
    model: nn.Module,
    rules: Sequence[RuleSpec],
    layers: Sequence[str] | None,
    optimizers: Mapping[str, str],
    wrong: Problems,
) -> Layout | None:
    """Return the model's layers, if a rule or an optimizer needs them, or the recipe names them."""
    asking = [
        f"groups[{i}].{'match' if asks_depth(rule.match) else 'layer_decay'}"
        for i, rule in enumerate(rules)
        if asks_layers(rule)
    ]
    if asking or layers is not None:
        with wrong.caught(asking[0] if asking else "layers"):
            return find_layout(model, layers)
    if not optimizers:
        return None
    try:
        return find_layout(model)
    except ValueError as error:
        names, reason = dict.fromkeys(optimizers.values()), str(error).partition(";")[0]
        verb = "needs" if len(names) == 1 else "need"
        message = f"{' and '.join(names)} {verb} to know what is in layers, but {reason}"
        wrong.add(next(iter(optimizers)), f"{message}; say what they are under 'layers'")
        return None


def _clauses(
    i: int, rule: RuleSpec, settings: Mapping[str, Any], model: nn.Module
) -> Iterator[_Clause]:
    """Give the clauses of a rule, in order."""
    holds = condition(rule.match)
    yield _own_clause(i, rule, holds, settings)
    yield from _no_decay_clauses(i, rule, holds, model)


def _own_clause(i: int, rule: RuleSpec, holds: Condition, settings: Mapping[str, Any]) -> _Clause:
    scales = {"layer_decay": rule.layer_decay, "lr_scale": rule.lr_scale}
    values: dict[str, Any] = {key: value for key, value in scales.items() if value is not None}
    # Of these a group only learns which rule it is: the scheduler holds the curves and times.
    if rule.schedule is not None:
        values["schedule"] = RuleId(i)
    if rule.optimizer is not None:
        values["optimizer"] = RuleId(i)
    if rule.freeze is not None:
        values["freeze"] = rule.freeze if isinstance(rule.freeze, bool) else RuleId(i)
    return _Clause(i, holds, {**values, **settings})


def _no_decay_clauses(
    i: int, rule: RuleSpec, holds: Condition, model: nn.Module
) -> Iterator[_Clause]:
    for word in rule.no_decay or ():
        # Whether the guess is needed is known later, and to guess a name takes a while.
        unmatched = partial(_unmatched, f"groups[{i}].no_decay", word, rule.match, model)
        both = _both(holds, family_or_glob(word))
        yield _Clause(i, both, {"weight_decay": 0}, unmatched, by="no_decay")


def _unmatched(path: str, word: str, within: Match | None, model: nn.Module) -> DeadWord:
    if word in FAMILY_WORDS:
        return absent_family(path, word, within)
    if within is not None:
        problem = Problem(path, f"{word!r} within {within} matches no parameter")
    else:
        hint = nearest_family(word) or suggestion(Match.model_validate(word), model)
        problem = Problem(path, f"{word!r} matches no parameter{hint}")
    return DeadWord(problem, is_error=True)


def _both(one: Condition, other: Condition) -> Condition:
    return lambda place, tied: one(place, tied) and other(place, tied)


def _vote(
    clause: _Clause, everywhere: Sequence[Sequence[Place]], all_votes: Sequence[_Votes]
) -> bool:
    """Add the votes of a clause; return whether it holds for any parameter."""
    held = False
    for named, votes in zip(everywhere, all_votes, strict=True):
        # For a tied parameter, it is enough that it holds for one of the names.
        names = frozenset(place.name for place in named if clause.holds(place, named))
        if names:
            held = True
            for key, value in clause.values.items():
                _add(votes[key], Vote(value, clause.rule, names, clause.by or key))
    return held


def _add(votes: list[Vote], vote: Vote) -> None:
    """Add a vote; two of one key, as ``no_decay: [norm, bias]`` gives to a norm's bias, are one."""
    if votes and (votes[-1].rule, votes[-1].by) == (vote.rule, vote.by):
        vote = replace(vote, names=votes.pop().names | vote.names)
    votes.append(vote)


def _contradictions(all_votes: _Votes) -> Iterator[Problem]:
    """Find rules that give a tied parameter two values, each by another of its names.

    Then the later rule does not override the earlier one knowingly: who wrote them took the names
    for two parameters.
    """
    for *before, winner in all_votes.values():
        for vote in before:
            if vote.value != winner.value and vote.names.isdisjoint(winner.names):
                # min, because a set has another order in every process.
                yield Problem(
                    f"groups[{winner.rule}].{winner.by}",
                    f"{winner.value!r} for {min(winner.names)} contradicts {vote.value!r} of "
                    f"groups[{vote.rule}] for {min(vote.names)}: they are one tied parameter; "
                    "let a single rule speak for it",
                )
