"""A recipe that goes on from another one: ``extends: base.yaml``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimplug.errors import RecipeError
from optimplug.recipe.text.written import Written

__all__ = ["EXTENDS", "OWN_KEYS", "whole"]

EXTENDS = "extends"
OWN_KEYS = "x-"
"""How the keys begin that are the user's own, as places for YAML's anchors."""


def whole(
    content: Mapping[str, Any],
    source: str | None,
    read_file: Callable[[str], Mapping[str, Any]],
    before: tuple[str, ...] = (),
) -> Written:
    """Return a recipe with what it extends, and without the user's own keys.

    Maps are merged key by key, the rules of ``groups`` come after those of what is extended, and
    all else, a schedule say, is replaced.

    Args:
        content: what one source says.
        source: the file that it came from. What it extends lies beside it; for a recipe that came
            from none, in the working directory.
        read_file: returns the content of another file.
        before: the files that extend this one.

    Raises:
        RecipeError: what it extends is no path, cannot be read, or extends it in turn.
    """
    own = {key: value for key, value in content.items() if not key.startswith(OWN_KEYS)}
    if EXTENDS not in own:
        return Written(own, source)
    given = own.pop(EXTENDS)
    if not isinstance(given, str) or not given or "\0" in given:
        message = f"must be the path of a recipe, from the folder of this one (got {given!r})"
        raise RecipeError.at(EXTENDS, message)
    name = _beside(source, given)
    chain = (*before, *([os.path.realpath(source)] if source else []))
    if os.path.realpath(name) in chain:
        raise RecipeError.at(EXTENDS, f"{given} extends this recipe in turn; leave out one of two")
    try:
        base = whole(read_file(name), name, read_file, chain)
    except RecipeError as error:
        told = "; ".join(str(problem) for problem in error.problems)
        raise RecipeError.at(EXTENDS, f"{name}: {told}") from None
    return Written(_merged(base.content, own), source, own, base)


def _beside(source: str | None, given: str) -> str:
    """Return a path that begins in the folder of a file, without the detours in it."""
    path = Path(source or "").parent / given
    short = os.path.normpath(path)
    # Behind a link to a folder, ".." is above where that leads to, which normpath does not know.
    return short if os.path.realpath(short) == os.path.realpath(path) else str(path)


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    found = {**base, **own}
    for key in base.keys() & own.keys():
        if isinstance(base[key], Mapping) and isinstance(own[key], Mapping) and key != "schedule":
            found[key] = _merged(base[key], own[key])
    if "groups" in base and "groups" in own:
        found["groups"] = [*_listed(base["groups"]), *_listed(own["groups"])]
    return found


def _listed(rules: Any) -> list[Any]:
    return rules if isinstance(rules, list) else [rules]
