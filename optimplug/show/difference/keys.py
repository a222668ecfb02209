"""Two recipes, key by key, as they are understood and not as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from pydantic import BaseModel

from optimplug.recipe import Recipe
from optimplug.recipe.text.schema.match import Match
from optimplug.recipe.text.schema.recipe import ResumeSpec
from optimplug.recipe.text.schema.rules import LayerDecay
from optimplug.recipe.text.written import within

__all__ = ["KeyChange", "changed_keys"]


class KeyChange(NamedTuple):
    """A key with another value; of a whole rule or phase, where only one recipe has it."""

    path: str
    """Where it stands: in the second recipe if it is new there, else in the first."""
    before: Any
    """In the first recipe; None where it says nothing."""
    after: Any


def changed_keys(first: Recipe, second: Recipe) -> list[KeyChange]:
    """Return what two recipes say otherwise.

    Short forms are the same as what they stand for: ``schedule: cosine`` as a list of one phase.
    Rules and phases are held against each other in their order, those that are alike first, so that
    one more in between is one change.

    Example:
        >>> first = Recipe({"optimizer": {"name": "AdamW", "lr": 0.1}, "schedule": "cosine"})
        >>> second = Recipe(
        ...     {"optimizer": {"name": "AdamW", "lr": 0.2}, "schedule": [{"preset": "cosine"}]}
        ... )
        >>> changed_keys(first, second)
        [KeyChange(path='optimizer.lr', before=0.1, after=0.2)]
    """
    return list(_changes(_understood(first), _understood(second), ""))


def _understood(recipe: Recipe) -> Any:
    return _plain(recipe.spec)


def _plain(value: Any) -> Any:
    """Return what is given in a part of a recipe, as plain values under the keys of a recipe."""
    if isinstance(value, Match) and value.model_fields_set == {"name"}:
        return value.name[0] if value.name and len(value.name) == 1 else value.name
    if isinstance(value, LayerDecay) and value.model_fields_set == {"rate"}:
        return value.rate
    if isinstance(value, ResumeSpec) and value.rewarm is None:
        return value.policy
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        given = {
            fields[k].alias or k: getattr(value, k) for k in fields if k in value.model_fields_set
        }
        return {key: _plain(item) for key, item in {**given, **(value.model_extra or {})}.items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _changes(first: Any, second: Any, path: str) -> Iterator[KeyChange]:
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            yield from _changes(first.get(key), second.get(key), within(path, key))
    elif _has_items(first) and _has_items(second):
        yield from _changes_of_items(first, second, path)
    elif first != second:
        yield KeyChange(path, first, second)


def _has_items(value: Any) -> bool:
    """Tell whether a value is a list of rules, of phases, or of conditions."""
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _changes_of_items(
    first: Sequence[Any], second: Sequence[Any], path: str
) -> Iterator[KeyChange]:
    matcher = SequenceMatcher(None, list(map(repr, first)), list(map(repr, second)), autojunk=False)
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            continue
        left = list(range(j, j_end))
        for place in range(i, i_end):
            partner = next((k for k in left if _alike(first[place], second[k])), None)
            if partner is None:
                yield KeyChange(within(path, place), first[place], None)
                continue
            # Those before it have no partner any more: order is a part of what a recipe says.
            while left[0] != partner:
                yield KeyChange(within(path, left[0]), None, second[left.pop(0)])
            yield from _changes(first[place], second[left.pop(0)], within(path, place))
        yield from (KeyChange(within(path, k), None, second[k]) for k in left)


def _alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Tell whether two rules are for the same parameters, or two phases have the same name."""
    keys = ("match", "name", "preset", "of")
    if [first.get(key) for key in keys] != [second.get(key) for key in keys]:
        return False
    return bool({*keys} & first.keys()) or bool(first.keys() & second.keys())
