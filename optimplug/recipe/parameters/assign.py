"""Which optimizer each parameter has: its rule's, else the recipe's, or what that falls back to."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from optimplug.errors import Problem, listed
from optimplug.recipe.keywords import takes
from optimplug.recipe.parameters.votes import ParameterVotes, Vote
from optimplug.recipe.resolve import Choice, Optimizers
from optimplug.recipe.text.problems import Problems
from optimplug.recipe.text.schema.rules import RuleSpec
from optimplug.recipe.text.written import within

__all__ = ["NO_HYPERPARAMETERS", "assign"]

NO_HYPERPARAMETERS = ("schedule", "freeze", "layer_decay", "lr_scale", "optimizer")
"""What rules set besides hyperparameters of an optimizer."""


def assign(
    parameters: Mapping[str, ParameterVotes], optimizers: Optimizers, rules: Sequence[RuleSpec]
) -> dict[str, Choice]:
    """Return the optimizer of each parameter that is trained, by its name.

    Args:
        parameters: those that are trained, by their names.
        optimizers: of the recipe.
        rules: the recipe's rules, in order.

    Raises:
        RecipeError: an optimizer is not made for some of its parameters and has nothing to fall
            back to, or a rule sets or schedules a hyperparameter that the optimizer of some
            parameter lacks.
    """
    found: dict[str, Choice] = {}
    unfit: dict[str, tuple[Choice, list[str]]] = {}
    for name, parameter in parameters.items():
        votes = parameter.votes.get("optimizer")
        choice = optimizers.of_rules[votes[-1].rule] if votes else optimizers.main
        fits = choice.made_for is None or parameter.is_hidden_matrix
        if not fits and choice.fallback is None:
            unfit.setdefault(choice.path, (choice, []))[1].append(name)
        found[name] = choice if fits else choice.fallback or choice
    wrong = Problems()
    wrong.extend(_unfit_problem(choice, names) for choice, names in unfit.values())
    wrong.raise_if_any()
    wrong.extend(_lacking(parameters, found, rules) if optimizers.are_several else ())
    wrong.raise_if_any()
    return found


def _unfit_problem(choice: Choice, names: Sequence[str]) -> Problem:
    return Problem(
        choice.path,
        f"{choice.name} is made for {choice.made_for} alone (no embeddings, heads, norms or "
        f"biases), and not for these: {listed(names)}; give them another optimizer, beside its "
        "name: fallback: {name: AdamW, lr: 3e-4}",
    )


def _lacking(
    parameters: Mapping[str, ParameterVotes],
    chosen: Mapping[str, Choice],
    rules: Sequence[RuleSpec],
) -> Iterator[Problem]:
    """Find hyperparameters of rules that the optimizer of some parameter does not have."""
    found: dict[tuple[int, str, str, str], list[str]] = defaultdict(list)
    for name, choice in chosen.items():
        for vote in itertools.chain.from_iterable(parameters[name].votes.values()):
            for path, key in _hyperparameters(vote, rules[vote.rule]):
                if not takes(choice.optimizer_class, key):
                    found[vote.rule, path, key, choice.name].append(name)
    for (_, path, key, optimizer), names in sorted(found.items()):
        message = (
            f"{optimizer} has no {key!r}, and is the optimizer of {listed(names)}; let the rule "
            "match only parameters whose optimizer has it"
        )
        yield Problem(path, message)


def _hyperparameters(vote: Vote, rule: RuleSpec) -> Iterator[tuple[str, str]]:
    """Return which hyperparameters a vote of a rule is about, each with where that stands."""
    path = f"groups[{vote.rule}]"
    if vote.by == "schedule":
        for i, phase in enumerate(rule.schedule or ()):
            if phase.of is not None:
                yield f"{path}.schedule[{i}].of", phase.of
    elif vote.by not in ("no_decay", *NO_HYPERPARAMETERS):  # there may be no decay to begin with
        yield within(path, vote.by), vote.by
