"""Changes to single values of a recipe, as a command line has them: ``optimizer.lr=1e-4``."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from optimplug.errors import RecipeError
from optimplug.recipe.text.extends import EXTENDS, OWN_KEYS
from optimplug.recipe.text.reader import value_of

__all__ = ["override"]


def override(content: Mapping[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of a recipe's content with single values changed.

    Args:
        content: the recipe, as it is written.
        changes: the new values, as YAML, by their paths. A path has keys between dots, and the
            number of a rule or phase as ``groups[1]`` or ``groups.1``.

    Raises:
        RecipeError: a path leads into something that has no such part, or is of a key that is read
            with the file and is gone by now; or a value is not YAML.

    Example:
        >>> recipe = {"optimizer": {"name": "AdamW"}, "groups": [{"layer_decay": 0.8}]}
        >>> override(recipe, {"optimizer.lr": "1e-4", "groups[0].layer_decay": "0.9"})
        {'optimizer': {'name': 'AdamW', 'lr': 0.0001}, 'groups': [{'layer_decay': 0.9}]}
    """
    changed = copy.deepcopy(dict(content))
    for path, text in changes.items():
        *parents, last = re.findall(r"[^.\[\]]+", path) or [""]
        _refuse_read_before([*parents, last][0], path)
        node: Any = changed
        for key in parents:
            # Keys may be new, as `optimizer.betas` may. Rules and phases must be there: the number
            # of a new one would decide where in their order it comes.
            node = node.setdefault(key, {}) if _is_map(node, key, path) else _item(node, key, path)
        if _is_map(node, last, path):
            node[last] = value_of(text, path)
        else:
            _item(node, last, path)
            node[int(last)] = value_of(text, path)
    return changed


def _refuse_read_before(key: str, path: str) -> None:
    """Refuse what acts as the file is read, and could change nothing after that."""
    if key == EXTENDS:
        message = "is read before single values are set; give the recipe that extends it instead"
        raise RecipeError.at(path, message)
    if key.startswith(OWN_KEYS):
        message = (
            "would change nothing: what stands at an anchor is copied to its aliases as the recipe "
            "is read; set the keys themselves, such as optimizer.lr"
        )
        raise RecipeError.at(path, message)


def _is_map(node: Any, key: str, path: str) -> bool:
    """Tell whether a key can be set in a part; a number is none, but that of an item of a list."""
    if isinstance(node, dict) and key.isdecimal():
        message = f"{key!r} must be the number of an item, but there is no list (got {node!r})"
        raise RecipeError.at(path, message)
    return isinstance(node, dict)


def _item(node: Any, key: str, path: str) -> Any:
    """Return an item of a list, by its number."""
    if not isinstance(node, list):
        raise RecipeError.at(path, f"{key!r} cannot be set in {node!r}")
    if not (key.isdecimal() and int(key) < len(node)):
        raise RecipeError.at(path, f"must name one of {len(node)}, from 0 (got {key!r})")
    return node[int(key)]
