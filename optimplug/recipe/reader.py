"""A recipe's source -> plain dicts and lists. Reading runs no code from it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from optimplug.errors import Problem, RecipeError

__all__ = ["Source", "read"]

Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"
"""A path to a YAML file, or a mapping: a dict, an OmegaConf node, ..."""


def read(source: Source) -> tuple[dict[str, Any], str | None]:
    """Return the recipe as a dict of plain values, and the file that it came from.

    Raises:
        RecipeError: the file is missing, is not YAML, repeats a key, or is not a mapping.
    """
    if isinstance(source, Mapping):
        return _plain(source), None
    name = os.fspath(source)
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise RecipeError([Problem("", f"cannot read the recipe: {reason}")], name) from None
    try:
        loaded = yaml.load(text, Loader=_Loader)  # noqa: S506 (_Loader is a SafeLoader)
    except yaml.YAMLError as error:
        raise RecipeError([Problem("", _yaml_message(error))], name) from None
    if not isinstance(loaded, dict):
        given = "nothing" if loaded is None else f"a {type(loaded).__name__}"
        message = f"a recipe must be a mapping with the key 'optimizer' (got {given})"
        raise RecipeError([Problem("", message)], name)
    return loaded, name


def _plain(value: Any) -> Any:
    """Copy a value into plain dicts and lists (an OmegaConf node resolves as it is walked)."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (``1e-3`` is one) on the safe loader, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, str) and key in seen:
                message = f"duplicate key {key!r}, first given on line {seen[key]}"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            if isinstance(key, str):
                seen[key] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _yaml_message(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "not valid YAML"
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)
