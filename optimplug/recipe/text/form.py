"""Whether a recipe has the right form, and what pydantic finds wrong, by the recipe's own keys."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from optimplug.errors import Problem, RecipeError, did_you_mean, nearest
from optimplug.recipe.text.extends import EXTENDS
from optimplug.recipe.text.schema.recipe import RecipeSpec
from optimplug.recipe.text.schema.spec import FORMS, HAVE_FORMS, PartError
from optimplug.recipe.text.written import path_of

__all__ = ["validated"]

_Model = TypeVar("_Model", bound=BaseModel)
_Location = tuple[int | str, ...]


def validated(model: type[_Model], content: Mapping[str, Any]) -> _Model:
    """Return the content as a model.

    Raises:
        RecipeError: everything that is wrong with its form.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise RecipeError(_problems(error)) from None


def _problems(error: ValidationError) -> Iterator[Problem]:
    errors: list[dict[str, Any]] = [
        {**found, "loc": _without_forms(found["loc"])} for found in error.errors()
    ]
    unknown = [found["loc"] for found in errors if found["type"] == "extra_forbidden"]
    meant = {(*loc[:-1], nearest(loc[-1], _keys_at(loc[:-1]))) for loc in unknown}
    for found in errors:
        # A key that is missing because it is misspelt is reported once, as the misspelling.
        if not (found["type"] == "missing" and found["loc"] in meant):
            loc, message = _in_words(found)
            yield Problem(path_of(loc), message)


def _without_forms(loc: _Location) -> _Location:
    """Return a location without the name of a form, which pydantic puts after a key that has two.

    It is no key, but somebody may have one of the same name.
    """
    return tuple(
        part
        for part, key in zip(loc, (None, *loc), strict=False)
        if not (part in FORMS and key in HAVE_FORMS)
    )


def _in_words(found: Mapping[str, Any]) -> tuple[_Location, str]:
    """Return where an error of pydantic is, and what it comes to."""
    kind, loc, given = found["type"], found["loc"], found["input"]
    if kind == "extra_forbidden":
        return loc, f"unknown key{did_you_mean(loc[-1], _keys_at(loc[:-1]))}"
    if kind == "missing":
        # Where any key is allowed, as a misspelt one may be a hyperparameter, none was forbidden.
        close = nearest(loc[-1], map(str, given))
        if close:
            return (*loc[:-1], close), f"unknown key; did you mean {loc[-1]!r}?"
        return loc, "is required, but missing"
    if kind == "value_error":
        cause = found["ctx"]["error"]
        return (*loc, *cause.part) if isinstance(cause, PartError) else loc, str(cause)
    if kind == "list_type":
        return loc, f"must be a list, with a dash before each item (got {given!r})"
    if kind == "too_short":
        least = found["ctx"]["min_length"]
        return loc, f"must have at least {least} item{'s' * (least > 1)} (got {given!r})"
    if kind == "string_type":
        return loc, f"must be a text (got {given!r})"
    if kind.startswith("model_"):
        return loc, f"must be a mapping (got {given!r})"
    message = found["msg"]
    return loc, f"{message[:1].lower()}{message[1:]} (got {given!r})"


def _keys_at(loc: Iterable[int | str]) -> list[str]:
    """Return the keys that the model at a location knows."""
    model: type[BaseModel] = RecipeSpec
    for part in loc:
        if isinstance(part, str):
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            model = next(_models_in(fields[part].annotation))
    beside = [EXTENDS] if model is RecipeSpec else []
    return [*(field.alias or name for name, field in model.model_fields.items()), *beside]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Walk the models in a type: Match in ``list[Match] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
