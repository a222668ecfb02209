"""Why a parameter has the settings that it has: every rule that spoke, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimplug.errors import ArgumentError, did_you_mean
from optimplug.recipe.parameters.groups import Group, Grouping, ParameterVotes
from optimplug.recipe.text.schema import FreezeSpec, LayerDecay, RuleSpec

__all__ = ["Explanation", "Statement", "explain", "plain"]


@dataclass(frozen=True)
class Statement:
    """What one rule says for one key of a parameter."""

    rule: int
    match: str
    """The condition of the rule, in words; empty where it is for every parameter."""
    key: str
    value: Any
    names: tuple[str, ...]
    """By which names of the parameter the rule reached it."""
    overridden_by: int | None
    """The rule that has the last word on this key; None if it is this one."""

    def __str__(self) -> str:
        match = f" ({self.match})" if self.match else ""
        end = "" if self.overridden_by is None else f", overridden by groups[{self.overridden_by}]"
        return f"groups[{self.rule}]{match}: {self.key} = {self.value}{end}"


@dataclass(frozen=True)
class Explanation:
    """A parameter: the rules that spoke of it in their order, its group, and its rate.

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
    """How its rate, before the schedule, comes about."""
    frozen_by: str | None
    """What freezes it: a rule, or the model itself (``requires_grad=False``)."""

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as plain values."""
        return {
            "name": self.name,
            "names": list(self.names),
            "shape": list(self.shape),
            "dtype": self.dtype,
            "rules": [
                {
                    "rule": f"groups[{s.rule}]",
                    "match": s.match,
                    "key": s.key,
                    "value": plain(s.value),
                    "names": list(s.names),
                    "overridden_by": None
                    if s.overridden_by is None
                    else f"groups[{s.overridden_by}]",
                }
                for s in self.statements
            ],
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


def explain(
    name: str, grouping: Grouping, rules: Sequence[RuleSpec], defaults: Mapping[str, Any]
) -> Explanation:
    """Tell a parameter's story.

    Args:
        name: any of the parameter's names.
        grouping: what the rules have made of the model.
        rules: the recipe's rules, in order.
        defaults: the optimizer's hyperparameters, where no rule says otherwise.

    Raises:
        ArgumentError: the model has no parameter of that name.
    """
    owners = {alias: member for member in grouping.parameters.values() for alias in member.names}
    if name not in owners:
        raise ArgumentError(f"no parameter {name!r}{_hint(name, list(owners))}")
    member = owners[name]
    first = member.names[0]
    group = next((group for group in grouping.groups if first in group.parameters), None)
    return Explanation(
        name=name,
        names=member.names,
        shape=tuple(member.parameter.shape),
        dtype=str(member.parameter.dtype).removeprefix("torch."),
        statements=tuple(_statements(member, rules)),
        group=group.name if group else None,
        settings={**defaults, **group.settings} if group else {},
        lr=_rate(member, group, defaults) if group else "",
        frozen_by=None if group else _freezer(member),
    )


def plain(value: Any) -> Any:
    """Return a value as JSON has it: lists for tuples, text for what it does not know."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _hint(name: str, known: Sequence[str]) -> str:
    """Return the nearest name; not all there are, which may be thousands."""
    hint = did_you_mean(name, known)
    return hint if "did you mean" in hint else f"; the model's first is {known[0]!r}"


def _statements(member: ParameterVotes, rules: Sequence[RuleSpec]) -> Iterator[Statement]:
    spoken = [
        Statement(
            vote.rule,
            str(rules[vote.rule].match or ""),
            key,
            _in_words(key, vote.value, rules[vote.rule]),
            tuple(sorted(vote.names)),
            None if vote is votes[-1] else votes[-1].rule,
        )
        for key, votes in member.votes.items()
        for vote in votes
    ]
    yield from sorted(spoken, key=lambda statement: statement.rule)


def _in_words(key: str, value: Any, rule: RuleSpec) -> Any:
    """Return what a rule says for a key; of what is not a value, what it comes to."""
    if isinstance(rule.freeze, FreezeSpec) and key == "freeze":
        return f"until {rule.freeze.until}"
    return "of its own" if key == "schedule" else value


def _rate(member: ParameterVotes, group: Group, defaults: Mapping[str, Any]) -> str:
    """Write the product that makes the rate, each factor with where it comes from."""
    said = {key: votes[-1] for key, votes in member.votes.items()}
    base = said.get("lr")
    parts = [f"{base.value} (groups[{base.rule}])" if base else f"{defaults['lr']} (optimizer)"]
    if "lr_scale" in said:
        parts.append(f"{said['lr_scale'].value} (lr_scale of groups[{said['lr_scale'].rule}])")
    if "layer_decay" in said:
        vote = said["layer_decay"]
        layers = f"{member.distance} below the top"
        parts.append(f"{_power(vote.value, member.distance)} (groups[{vote.rule}], {layers})")
    product = " x ".join(parts)
    return f"{group.lr:.6g} = {product}" if len(parts) > 1 else product


def _power(decay: float | LayerDecay, distance: int) -> str:
    if not isinstance(decay, LayerDecay):
        return f"{decay}^{distance}"
    least = decay.min > decay.rate**distance
    return f"{decay.min}" if least else f"{decay.rate}^{distance}"


def _freezer(member: ParameterVotes) -> str:
    votes = member.votes.get("freeze", ())
    by_rule = votes[-1] if votes and votes[-1].value is True else None
    return f"groups[{by_rule.rule}]" if by_rule else "the model (requires_grad=False)"
