"""What pydantic finds wrong with a recipe, by the reader's own key paths."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ValidationError

from optimplug.errors import Problem, RecipeError, did_you_mean, nearest
from optimplug.recipe.text.schema import FORMS, MisspeltError, RecipeSpec

__all__ = ["as_in", "as_written", "path_of", "problems"]


def as_written(path: str, content: Mapping[str, Any]) -> str:
    """Return the path as the recipe has it, where it leaves out what goes without saying.

    Example:
        >>> as_written("schedule[0].preset", {"schedule": "cosin"})
        'schedule'
        >>> as_written("groups[1].match.name[0]", {"groups": [{}, {"match": ["*.bias"]}]})
        'groups[1].match[0]'
    """
    node: Any = content
    found: list[str | int] = []
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        part = key or int(index)
        implied = part == 0 if isinstance(part, int) else part in ("name", "preset")
        if implied and node is not _MISSING and not _has_form_of(node, part):
            continue
        found.append(part)
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = _MISSING  # it is not there, so nothing is to be said of its form
    return path_of(found)


@contextmanager
def as_in(content: Mapping[str, Any]) -> Iterator[None]:
    """Write the paths of problems as the recipe has them."""
    try:
        yield
    except RecipeError as error:
        found = [Problem(as_written(p.path, content), p.message) for p in error.problems]
        raise RecipeError(found, error.source) from None


_MISSING = object()


def _has_form_of(node: object, part: str | int) -> bool:
    return isinstance(node, list) if isinstance(part, int) else isinstance(node, Mapping)


def problems(error: ValidationError) -> Iterable[Problem]:
    """Turn what pydantic found into one line each, by the path of the recipe's own keys."""
    errors: list[dict[str, Any]] = [
        {**found, "loc": tuple(part for part in found["loc"] if part not in FORMS)}
        for found in error.errors()
    ]
    misspelt = {
        (*loc[:-1], nearest(loc[-1], _keys_at(loc[:-1])))
        for loc in (found["loc"] for found in errors if found["type"] == "extra_forbidden")
    }
    for found in errors:
        kind, loc = found["type"], found["loc"]
        if kind == "extra_forbidden":
            message = f"unknown key{did_you_mean(loc[-1], _keys_at(loc[:-1]))}"
        elif kind == "missing":
            if loc in misspelt:
                continue  # its misspelling is reported already
            close = nearest(loc[-1], map(str, found["input"]))
            if close:  # taken for a hyperparameter
                yield Problem(
                    path_of((*loc[:-1], close)), f"unknown key; did you mean {loc[-1]!r}?"
                )
                continue
            message = "is required, but missing"
        elif kind == "value_error":
            cause = found["ctx"]["error"]
            message = str(cause)
            loc = (*loc, cause.key) if isinstance(cause, MisspeltError) else loc
        elif kind.startswith("model_"):
            message = f"must be a mapping (got {found['input']!r})"
        else:
            message = f"{_lower_first(found['msg'])} (got {found['input']!r})"
        yield Problem(path_of(loc), message)


def path_of(loc: Iterable[int | str]) -> str:
    """Write a location as in code.

    Example:
        >>> path_of(("groups", 2, "match"))
        'groups[2].match'
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".")


def _keys_at(loc: Iterable[int | str]) -> list[str]:
    """Return the keys that the model at a location knows."""
    model: type[BaseModel] = RecipeSpec
    for part in loc:
        if isinstance(part, str):
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            model = next(_models_in(fields[part].annotation))
    return [field.alias or name for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
