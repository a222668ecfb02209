"""Why a parameter has its settings: what each rule says of it, and which rule wins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

from optimplug.errors import ArgumentError, did_you_mean
from optimplug.recipe.parameters.groups import Group, Grouping
from optimplug.recipe.parameters.match import nearest_glob
from optimplug.recipe.parameters.votes import ParameterVotes
from optimplug.recipe.text.schema.rules import FreezeSpec, LayerDecay, RuleSpec

__all__ = ["Explanation", "Statement", "explain", "explain_all", "plain"]


@dataclass(frozen=True)
class Statement:
    """What one rule says for one key of a parameter."""

    rule: int
    match: str
    """The condition of the rule, in words; empty where it is for every parameter."""
    key: str
    value: Any
    names: tuple[str, ...]
    """The names of the parameter for which the rule holds."""
    overridden_by: int | None
    """The rule whose value for this key wins; None if it is this one."""

    def to_dict(self) -> dict[str, Any]:
        """Return the statement as plain values."""
        winner = self.overridden_by
        return {
            "rule": f"groups[{self.rule}]",
            "match": self.match,
            "key": self.key,
            "value": plain(self.value),
            "names": list(self.names),
            "overridden_by": None if winner is None else f"groups[{winner}]",
        }

    def __str__(self) -> str:
        match = f" ({self.match})" if self.match else ""
        end = "" if self.overridden_by is None else f", overridden by groups[{self.overridden_by}]"
        return f"groups[{self.rule}]{match}: {self.key} = {self.value}{end}"


@dataclass(frozen=True)
class Explanation:
    """A parameter: what the rules say of it, in their order, its group, and its rate.

    Print it for a few lines of text; :meth:`to_dict` gives it to a program.
    """

    name: str
    names: tuple[str, ...]
    """All its names: more than one if it is tied."""
    shape: tuple[int, ...]
    dtype: str
    statements: tuple[Statement, ...]
    group: str | None
    """The name of its group; None if it is frozen."""
    settings: Mapping[str, Any]
    """Every hyperparameter of its group, the optimizer's own defaults included."""
    lr: str
    """The product that its rate is, before the schedule."""
    frozen_by: str | None
    """What freezes it: a rule, or the model itself (``requires_grad=False``)."""

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as plain values."""
        return {
            "name": self.name,
            "names": list(self.names),
            "shape": list(self.shape),
            "dtype": self.dtype,
            "rules": [statement.to_dict() for statement in self.statements],
            "group": self.group,
            "settings": plain(self.settings),
            "lr": self.lr if self.group is not None else None,
            "frozen_by": self.frozen_by,
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.name} ({self.dtype}, {'x'.join(map(str, self.shape)) or 'a number'})"
        if len(self.names) > 1:
            yield f"  tied, one tensor under {len(self.names)} names: {', '.join(self.names)}"
        for statement in self.statements:
            yield f"  {statement}"
        if not self.statements:
            yield "  no rule speaks of it"
        if self.group is None:
            yield f"  frozen by {self.frozen_by}; it is in no group"
            return
        yield f"  group: {self.group}"
        yield f"  lr: {self.lr}"
        rest = {key: value for key, value in self.settings.items() if key != "lr"}
        yield f"  others: {', '.join(f'{key}={value}' for key, value in rest.items())}"


def explain(name: str, grouping: Grouping, rules: Sequence[RuleSpec]) -> Explanation:
    """Explain the settings of one parameter.

    Args:
        name: any of the parameter's names.
        grouping: what the rules have made of the model.
        rules: the recipe's rules, in order.

    Raises:
        ArgumentError: the model has no parameter of that name.
    """
    found = _find(name, grouping)
    group = next((each for each in grouping.groups if found.names[0] in each.parameters), None)
    return Explanation(
        name=name,
        names=found.names,
        shape=tuple(found.parameter.shape),
        dtype=str(found.parameter.dtype).removeprefix("torch."),
        statements=tuple(_statements(found, rules)),
        group=group.name if group else None,
        settings={**group.optimizer.hyperparameters, **group.settings} if group else {},
        lr=_rate(found, group) if group else "",
        frozen_by=None if group else _frozen_by(found),
    )


def explain_all(
    patterns: Iterable[str], grouping: Grouping, rules: Sequence[RuleSpec]
) -> list[Explanation]:
    """Explain parameters by their names, or by globs on them as in ``match``.

    Each parameter is explained once, in the order of the patterns and then of the model; a tied one
    by the first of its names that a pattern holds for.

    Raises:
        ArgumentError: a pattern is for no parameter of the model.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        for name in _matching(pattern, grouping):
            found.setdefault(_find(name, grouping).names[0], name)
    return [explain(name, grouping, rules) for name in found.values()]


def _matching(pattern: str, grouping: Grouping) -> list[str]:
    """Return the names that a pattern holds for; a plain name is left to :func:`_find`."""
    names = [name for each in grouping.parameters.values() for name in each.names]
    if pattern in names or not set("*?[") & set(pattern):
        return [pattern]
    found = list(filter(re.compile(translate(pattern)).match, names))
    if not found:
        raise ArgumentError(f"{pattern!r} matches no parameter{nearest_glob(pattern, names)}")
    return found


def plain(value: Any) -> Any:
    """Return a value as JSON has it: lists for tuples, text for what it does not know."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _find(name: str, grouping: Grouping) -> ParameterVotes:
    by_name = {alias: each for each in grouping.parameters.values() for alias in each.names}
    if name in by_name:
        return by_name[name]
    known = list(by_name)
    hint = did_you_mean(name, known)
    # Without a near name it would list all there are, which may be thousands.
    hint = hint if "did you mean" in hint else f"; the model's first is {known[0]!r}"
    raise ArgumentError(f"no parameter {name!r}{hint}")


def _statements(parameter: ParameterVotes, rules: Sequence[RuleSpec]) -> list[Statement]:
    # Votes are kept by key; people read a recipe rule by rule.
    found = [
        Statement(
            vote.rule,
            str(rules[vote.rule].match or ""),
            key,
            _in_words(key, vote.value, rules[vote.rule]),
            tuple(sorted(vote.names)),
            None if vote is votes[-1] else votes[-1].rule,
        )
        for key, votes in parameter.votes.items()
        for vote in votes
    ]
    return sorted(found, key=lambda statement: statement.rule)


def _in_words(key: str, value: Any, rule: RuleSpec) -> Any:
    """Return the value of a vote, or words where that is only the number of a rule."""
    if isinstance(rule.freeze, FreezeSpec) and key == "freeze":
        return f"until {rule.freeze.until}"
    if rule.optimizer is not None and key == "optimizer":
        return rule.optimizer.name
    return "of its own" if key == "schedule" else value


def _rate(parameter: ParameterVotes, group: Group) -> str:
    """Write the product that makes the rate, each factor with where it comes from."""
    winners = {key: votes[-1] for key, votes in parameter.votes.items()}
    base, scale, decay = (winners.get(key) for key in ("lr", "lr_scale", "layer_decay"))
    own = group.optimizer
    begun = f"{own.hyperparameters['lr']} ({own.path})"
    factors = [f"{base.value} (groups[{base.rule}])" if base else begun]
    if scale:
        factors.append(f"{scale.value} (lr_scale of groups[{scale.rule}])")
    if decay:
        power, layers = (
            _power(decay.value, parameter.distance),
            f"{parameter.distance} below the top",
        )
        factors.append(f"{power} (groups[{decay.rule}], {layers})")
    product = " x ".join(factors)
    return f"{group.lr:.6g} = {product}" if len(factors) > 1 else product


def _power(decay: float | LayerDecay, distance: int) -> str:
    if not isinstance(decay, LayerDecay):
        return f"{decay}^{distance}"
    is_least = decay.min > decay.rate**distance
    return f"{decay.min}" if is_least else f"{decay.rate}^{distance}"


def _frozen_by(parameter: ParameterVotes) -> str:
    votes = parameter.votes.get("freeze", ())
    if votes and votes[-1].value is True:
        return f"groups[{votes[-1].rule}]"
    return "the model (requires_grad=False)"
