"""The JSON Schema of a recipe, by which editors complete and check one.

It says what can be said without a model and without importing anything: forms, names and kinds of
values. What else must hold, :meth:`optimplug.Recipe.load` tells.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from torch.optim.optimizer import required

from optimplug import optim
from optimplug.optim import lr_scheduler
from optimplug.recipe.parameters.kinds import FAMILIES
from optimplug.recipe.parameters.match import FAMILY_WORDS
from optimplug.recipe.resolve import (
    expected,
    of_group,
    optimizer_names,
    parameters_of,
)
from optimplug.recipe.schedule.vocabulary import preset_names, scheduler_names, vocabulary
from optimplug.recipe.text.durations import Duration
from optimplug.recipe.text.schema import PhaseSpec, RecipeSpec

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
    _complete_optimizer(parts["OptimizerSpec"], known)
    _complete_phase(parts["PhaseSpec"])
    said = parts["RuleSpec"]["properties"]
    said["no_decay"]["anyOf"].insert(0, {"enum": list(FAMILY_WORDS)})
    parts["RuleSpec"]["properties"] = {**_merged(map(_group_forms, known.values())), **said}
    parts["RuleSpec"]["minProperties"] = 1
    conditions = parts["Match"]["anyOf"][-1]
    conditions["additionalProperties"] = parts["Match"].pop("additionalProperties")
    conditions["minProperties"] = 1
    conditions["properties"]["type"]["anyOf"].insert(0, {"enum": list(FAMILIES)})
    # Which hyperparameters a rule may set, the optimizer's name tells.
    schema["allOf"] = [
        {
            "if": {"properties": {"optimizer": _is("name", name)}, "required": ["optimizer"]},
            "then": {"properties": {"groups": {"items": _keys([*said, *_group_forms(cls)])}}},
        }
        for name, cls in known.items()
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Recipe", **schema}


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, with the forms that validators take besides the real one."""

    def function_before_schema(self, schema: Any) -> JsonSchemaValue:
        inner = super().function_before_schema(schema)
        name = getattr(schema["function"]["function"], "__name__", "")
        if name == "_as_phases":
            return {"anyOf": [{"enum": preset_names()}, dict(inner["items"]), inner]}
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


def _complete_optimizer(part: dict[str, Any], known: Mapping[str, type]) -> None:
    """Add the hyperparameters of each optimizer, and which it is that needs them."""
    own = {name: _forms(cls, ("params",)) for name, cls in known.items()}
    needed = {
        name: [k for k, p in parameters_of(cls, ("params",)).items() if p.default is required]
        for name, cls in known.items()
    }
    path = {"type": "string", "pattern": r"^[^.].*\.[^.]+$"}
    part["properties"]["name"] |= {"anyOf": [{"enum": list(known)}, path]}
    part["properties"] = {**_merged(own.values()), **part["properties"]}
    part["allOf"] = [
        _case("name", name, ["name"], forms, needed[name]) for name, forms in own.items()
    ]


def _complete_phase(part: dict[str, Any]) -> None:
    """Add the arguments of each scheduler and preset, and which it is that takes them."""
    cases, merged = [], []
    for key, names in (("name", scheduler_names()), ("preset", preset_names())):
        part["properties"][key] = {**part["properties"][key], "enum": names}
        for name in names:
            words = vocabulary(PhaseSpec.model_construct(None, **{key: name}))
            source = getattr(lr_scheduler, name) if key == "name" else None
            forms = _described(
                {k: _phase_form(k, p, words.durations) for k, p in words.arguments.items()}, source
            )
            cases.append(_case(key, name, [key, *words.keys], forms, words.required))
            merged.append(forms)
    cases.append({"if": {"required": ["together"]}, "then": _keys(["together", "for", "of"])})
    part["properties"] = {**_merged(merged), **part["properties"]}
    part["oneOf"] = [{"required": [key]} for key in ("name", "preset", "together")]
    part["allOf"] = cases


def _case(
    key: str, name: str, also: Sequence[str], forms: Mapping[str, Any], needed: Sequence[str]
) -> dict[str, Any]:
    """Return what a mapping may hold if it says this name, and what it must."""
    then = {"properties": dict(forms), **_keys([*also, *forms]), "required": list(needed)}
    return {"if": _is(key, name), "then": then}


def _is(key: str, name: str) -> dict[str, Any]:
    return {"properties": {key: {"const": name}}, "required": [key]}


def _keys(names: Sequence[str]) -> dict[str, Any]:
    return {"propertyNames": {"enum": list(names)}}


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
    return _described({key: _form(key, p) for key, p in parameters_of(cls, without).items()}, cls)


def _described(forms: Mapping[str, Any], cls: type | None) -> dict[str, Any]:
    said = _descriptions(cls) if cls else {}
    return {
        key: {**form, **({"description": said[key]} if key in said else {})}
        for key, form in forms.items()
    }


def _phase_form(key: str, parameter: inspect.Parameter, durations: Sequence[str]) -> dict[str, Any]:
    if key in durations:
        one = {"$ref": "#/$defs/Duration"}
        return {"type": "array", "items": one} if key == "milestones" else one
    kinds = {bool: "boolean", str: "string"}
    return {"type": kinds.get(type(parameter.default), "number")}


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
