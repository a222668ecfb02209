"""The JSON Schema of a recipe, by which editors complete and check one.

It says what can be said without a model and without importing anything: forms, names and kinds of
values. What else must hold, :meth:`optimplug.Recipe.load` tells.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from torch.optim.optimizer import required

from optimplug import optim
from optimplug.optim import lr_scheduler
from optimplug.recipe.durations import Duration
from optimplug.recipe.match import _FAMILIES
from optimplug.recipe.resolve import (
    expected,
    of_group,
    optimizer_names,
    parameters_of,
    scheduler_names,
)
from optimplug.recipe.schema import RecipeSpec

__all__ = ["json_schema"]

_TEXT: dict[str, Any] = {"type": "string"}
_NAMES = {"type": "array", "items": _TEXT, "minItems": 1}
# What a validator takes for the real form, by the validator's name.
_SHORTHANDS = {"_as_list": [_TEXT], "_name_alone": [_TEXT, _NAMES]}
_DURATION = {
    "description": "a number of steps, '500 steps', '2 epochs', '6%' of the run, or 'rest'",
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": r"^(rest|\s*\d+(\.\d+)?\s*(%|steps?|epochs?)?\s*)$"},
    ],
    "examples": ["6%", "500 steps", "2 epochs", "rest"],
}


def json_schema() -> dict[str, Any]:
    """Return the schema as plain values, in the dialect of 2020-12.

    Example:
        >>> json_schema()["required"]
        ['optimizer']
    """
    found = RecipeSpec.model_json_schema(by_alias=True, schema_generator=_Generator)
    schema: dict[str, Any] = _tidy(found)
    parts = schema["$defs"]
    known = {name: getattr(optim, name) for name in optimizer_names()}
    parts["OptimizerSpec"] |= _by_name(
        known, ("params",), others=True, also=parts["OptimizerSpec"]["properties"]
    )
    parts["PhaseSpec"] |= _by_name(
        {name: getattr(lr_scheduler, name) for name in scheduler_names()},
        ("optimizer", "last_epoch", "verbose"),
        others=False,
        also=parts["PhaseSpec"]["properties"],
    )
    said = parts["RuleSpec"]["properties"]
    parts["RuleSpec"]["properties"] = {**said, **_merged(map(_group_forms, known.values()))}
    parts["RuleSpec"]["minProperties"] = 1
    conditions = parts["Match"]["anyOf"][-1]
    conditions["additionalProperties"] = parts["Match"].pop("additionalProperties")
    conditions["minProperties"] = 1
    conditions["properties"]["type"]["anyOf"].insert(0, {"enum": list(_FAMILIES)})
    # Which hyperparameters a rule may set, the optimizer's name tells.
    schema["allOf"] = [
        _when_named(
            name,
            {"groups": {"items": {"propertyNames": {"enum": [*said, *_group_forms(cls)]}}}},
            within="optimizer",
        )
        for name, cls in known.items()
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Recipe", **schema}


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, with the forms that validators take besides the real one."""

    def function_before_schema(self, schema: Any) -> JsonSchemaValue:
        inner = super().function_before_schema(schema)
        name = getattr(schema["function"]["function"], "__name__", "")
        return {"anyOf": [*_SHORTHANDS[name], inner]} if name in _SHORTHANDS else inner

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        return _DURATION if schema["cls"] is Duration else super().dataclass_schema(schema)


def _tidy(schema: Any) -> Any:
    """Leave out titles, and null, which pydantic has where a key may be left out."""
    if isinstance(schema, list):
        return [_tidy(part) for part in schema if part != {"type": "null"}]
    if not isinstance(schema, Mapping):
        return schema
    found = {
        key: {name: _tidy(form) for name, form in value.items()}
        if key in ("properties", "$defs")
        else _tidy(value)
        for key, value in schema.items()
        if not (key == "title" or (key == "default" and value is None))
    }
    if len(found.get("anyOf", ())) == 1:
        (only,) = found.pop("anyOf")
        found = {**only, **found}
    text = found.get("description")
    return {**found, "description": " ".join(text.split())} if isinstance(text, str) else found


def _by_name(
    known: Mapping[str, type], without: tuple[str, ...], others: bool, also: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a mapping may hold, by the class that its ``name`` says.

    Args:
        known: the classes.
        without: their arguments that are not for a recipe.
        others: whether the import path of another class will do.
        also: what the mapping may hold besides arguments, whatever the class; ``name`` among it.
    """
    names: dict[str, Any] = {"enum": list(known)}
    if others:
        path = {"type": "string", "pattern": r"^[^.].*\.[^.]+$"}
        names = {"anyOf": [names, path]}
    names["description"] = also["name"]["description"]
    cases = []
    for name, cls in known.items():
        forms = _forms(cls, without)
        case: dict[str, Any] = {
            "properties": forms,
            "propertyNames": {"enum": [*also, *forms]},
        }
        needed = [k for k, p in parameters_of(cls, without).items() if p.default is required]
        cases.append(_when_named(name, {}, then={**case, "required": ["name", *needed]}))
    everything = _merged(_forms(cls, without) for cls in known.values())
    return {"properties": {**everything, **also, "name": names}, "allOf": cases}


def _merged(forms: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what any of several classes takes, for a reader who has not named one yet."""
    found: dict[str, Any] = {}
    for own in forms:
        for key, form in own.items():
            # Defaults differ, and so may kinds; the description is what helps here.
            found.setdefault(key, {k: v for k, v in form.items() if k == "description"})
    return found


def _when_named(
    name: str,
    properties: Mapping[str, Any],
    within: str | None = None,
    then: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a rule for the case that ``name`` says this."""
    condition: dict[str, Any] = {"properties": {"name": {"const": name}}, "required": ["name"]}
    if within is not None:
        condition = {"properties": {within: condition}, "required": [within]}
    return {"if": condition, "then": then or {"properties": properties}}


def _group_forms(cls: type) -> dict[str, Any]:
    forms = _forms(cls, ("params",))
    return {key: forms[key] for key in of_group(forms)}


def _forms(cls: type, without: tuple[str, ...]) -> dict[str, Any]:
    """Return the form of every argument of a class."""
    said = _descriptions(cls)
    return {
        key: {**_form(key, p), **({"description": said[key]} if key in said else {})}
        for key, p in parameters_of(cls, without).items()
    }


def _form(key: str, parameter: inspect.Parameter) -> dict[str, Any]:
    kind = expected(key, parameter.default)
    number = {"type": "number"}
    if kind is None:
        return {}
    if kind.startswith("a list"):
        size = len(parameter.default)
        form = {"type": "array", "items": number, "minItems": size, "maxItems": size}
    else:
        form = {"type": "boolean" if kind == "true or false" else "number"}
    if parameter.default is None:
        return {**form, "type": [form["type"], "null"]}
    if parameter.default in (required, inspect.Parameter.empty):
        return form
    default = parameter.default
    return {**form, "default": list(default) if isinstance(default, tuple) else default}


def _descriptions(cls: type) -> dict[str, str]:
    """Read what docstrings say of the arguments; ``as in ...`` is what the class before it says."""
    found: dict[str, str] = {}
    for base in cls.__mro__:
        section = re.search(r"\n +Args:\n(.*?)(?:\n\n|\Z)", base.__doc__ or "", re.DOTALL)
        for key, text in re.findall(
            r"^ {8}(\w+): (.*?)(?=^ {8}\w|\Z)", section[1] if section else "", re.M | re.DOTALL
        ):
            if not text.startswith("as "):
                found.setdefault(key, " ".join(text.replace("``", "").split()))
    return found
