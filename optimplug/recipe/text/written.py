"""A recipe as it was written, which is what error messages point into."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from optimplug.errors import Problem, RecipeError

__all__ = ["Written", "path_of", "within"]

_ABSENT = object()
_DEFAULT_KEYS = ("name", "preset")  # what a text alone stands for: a glob's, or a schedule's


@dataclass(frozen=True)
class Written:
    """What someone wrote, and where.

    A recipe may be written shorter than it is understood: ``schedule: cosine`` is a list of one
    phase with a preset. Checks speak of what is understood, by paths such as
    ``schedule[0].preset``. Here those paths become the ones that a reader finds in the file.

    Args:
        content: the recipe, as plain values.
        source: the file that it came from, if it came from one.
        own: what stands in this file alone, where it extends another recipe.
        base: that one.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    base: Written | None = None

    @contextmanager
    def located(self) -> Iterator[None]:
        """Let every RecipeError name the file, and its keys as they are written there."""
        try:
            yield
        except RecipeError as error:
            found = [self.problem(path, message) for path, message in error.problems]
            raise RecipeError(found, self.source) from error.__cause__

    def problem(self, path: str, message: str) -> Problem:
        """Return a problem with its path as it is written, in the file where that is.

        Example:
            >>> base = Written({"groups": [{"lr": -1}]}, "base.yaml")
            >>> own = {"groups": [{"lr": -2}]}
            >>> written = Written({"groups": [{"lr": -1}, {"lr": -2}]}, "own.yaml", own, base)
            >>> print(written.problem("groups[0].lr", "must be positive"))
            groups[0].lr: must be positive (in base.yaml)
            >>> print(written.problem("groups[1].lr", "must be positive"))
            groups[0].lr: must be positive
        """
        found, source = self._where(path)
        return Problem(found, message if source == self.source else f"{message} (in {source})")

    def _where(self, path: str) -> tuple[str, str | None]:
        """Return a path as it is written in the file where that is, and that file."""
        if self.base is None:
            return self.path(path), self.source
        parts = [*_parts(path)]
        rules = self.base.content.get("groups", [])
        count = len(rules) if isinstance(rules, list) else 1
        number = parts[1] if parts[:1] == ["groups"] and len(parts) > 1 else None
        if isinstance(number, int):
            in_base = number < count
            parts[1] = number if in_base else number - count
        else:
            in_base = _known(parts, self.base.content) > _known(parts, self.own)
        if in_base:
            return self.base._where(path)
        return Written(self.own).path(path_of(parts)), self.source

    def path(self, path: str) -> str:
        """Return a path without the parts that the content leaves out.

        Example:
            >>> Written({"schedule": "cosin"}).path("schedule[0].preset")
            'schedule'
            >>> recipe = Written({"groups": [{}, {"match": ["*.bias"]}]})
            >>> recipe.path("groups[1].match.name[0]")
            'groups[1].match[0]'
        """
        node: Any = self.content
        found: list[str | int] = []
        for part in _parts(path):
            if node is not _ABSENT and _is_left_out(part, node):
                continue
            found.append(part)
            try:
                node = node[part]
            except (KeyError, IndexError, TypeError):
                # A missing key, say. There is nothing to compare the rest of the path with.
                node = _ABSENT
        return path_of(found)


def _known(parts: Iterable[str | int], content: Any) -> int:
    """Return how many parts of a path there are in some content."""
    for count, part in enumerate(parts):
        if _is_left_out(part, content):
            continue
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            return count
    return len([*parts])


def _is_left_out(part: str | int, node: object) -> bool:
    """Tell whether the content goes on without this part: no list around a single item, say."""
    if isinstance(part, int):
        return part == 0 and not isinstance(node, list)
    return part in _DEFAULT_KEYS and not isinstance(node, Mapping)


def path_of(parts: Iterable[int | str]) -> str:
    """Write a path as in code.

    Example:
        >>> path_of(("groups", 2, "match"))
        'groups[2].match'
        >>> path_of(("optimizer", "lr["))
        "optimizer['lr[']"
    """
    return reduce(within, parts, "")


def within(path: str, part: int | str) -> str:
    """Return the path of a key, or of an item by its number, in what is at a path."""
    if isinstance(part, int) or not re.fullmatch(r"[^.\[\]'\"]+", part):
        return f"{path}[{part!r}]"  # a key that would be taken for a path itself is in quotes
    return f"{path}.{part}" if path else part


def _parts(path: str) -> Iterator[int | str]:
    quoted = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
    for key, item in re.findall(rf"([^.\[\]]+)|\[(\d+|{quoted})\]", path):
        yield key or ast.literal_eval(item)
