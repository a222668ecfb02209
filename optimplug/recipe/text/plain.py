"""What someone wrote -> plain dicts, lists, texts and numbers, of a size that can be handled."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimplug.errors import RecipeError
from optimplug.recipe.text.written import path_of

__all__ = ["plain"]

_MOST_NODES = 100_000
_DEEPEST = 60
_LARGEST = sys.float_info.max

_Parts = tuple[int | str, ...]


def plain(value: Any) -> Any:
    """Copy a value into plain dicts and lists; that resolves the interpolations of OmegaConf.

    Raises:
        RecipeError: a key is no text, a number is larger than any float, or it is too large: an
            alias of YAML says in ten lines what would fill the memory if it were written out.

    Example:
        >>> plain({"betas": (0.9, 0.999)})
        {'betas': [0.9, 0.999]}
    """
    _Extent().measure(value)
    return _copied(value, ())


class _Extent:
    """Measures values without writing out what several of them share."""

    def __init__(self) -> None:
        # With the values themselves, so that no other one takes the place of one in the memory.
        self._known: dict[int, tuple[Any, int, int]] = {}

    def measure(self, value: Any, depth: int = 0) -> tuple[int, int]:
        """Return how many values there are in one, and how deep it is."""
        if not _has_parts(value):
            return 1, 0
        if id(value) not in self._known:
            if depth > _DEEPEST:
                raise RecipeError.at("", f"a recipe cannot be nested deeper than {_DEEPEST} levels")
            inner = [self.measure(part, depth + 1) for part in _parts(value)]
            count = 1 + sum(nodes for nodes, _ in inner)
            height = 1 + max((high for _, high in inner), default=0)
            self._known[id(value)] = value, count, height
        _, count, height = self._known[id(value)]
        if count > _MOST_NODES:
            raise RecipeError.at("", f"a recipe cannot have more than {_MOST_NODES:,} values")
        if depth + height > _DEEPEST + 1:
            raise RecipeError.at("", f"a recipe cannot be nested deeper than {_DEEPEST} levels")
        return count, height


def _has_parts(value: Any) -> bool:
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str | bytes)


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value


def _copied(value: Any, where: _Parts) -> Any:
    if isinstance(value, Mapping):
        return {_key(key, where): _copied(item, (*where, key)) for key, item in value.items()}
    if _has_parts(value):
        return [_copied(item, (*where, i)) for i, item in enumerate(value)]
    if isinstance(value, bool | None):
        return value
    if isinstance(value, int) and abs(value) > _LARGEST:
        message = f"must be a finite number (got one of {value.bit_length()} bits)"
        raise RecipeError.at(path_of(where), message)
    # Numbers of numpy and texts of enumerations are of classes that a checkpoint does not hold.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float(value)
    return int(value) if isinstance(value, int) else value


def _key(key: Any, where: _Parts) -> str:
    if not isinstance(key, str):
        raise RecipeError.at(path_of(where), f"a key must be text (got {key!r}); put it in quotes")
    return str.__str__(key)
