"""The JSON Schema of a recipe, by which editors complete and check one.

It has forms, names and kinds of values, which an editor can check by itself. What else must hold,
:meth:`optimplug.Recipe.load` checks.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from torch.optim.optimizer import required

from optimplug import optim
from optimplug.optim import lr_scheduler
from optimplug.recipe.keywords import choices_of, keywords_of
from optimplug.recipe.parameters.kinds import FAMILIES
from optimplug.recipe.parameters.match import FAMILY_WORDS
from optimplug.recipe.resolve import optimizer_names, settable_per_group
from optimplug.recipe.schedule.vocabulary import preset_names, scheduler_names, vocabulary
from optimplug.recipe.text.durations import Duration
from optimplug.recipe.text.extends import EXTENDS, OWN_KEYS
from optimplug.recipe.text.schema.phases import PhaseSpec
from optimplug.recipe.text.schema.recipe import RecipeSpec
from optimplug.recipe.values import expected_kind

__all__ = ["argument_descriptions", "json_schema"]

_TEXT: dict[str, Any] = {"type": "string"}
_NAMES = {"type": "array", "items": _TEXT, "minItems": 1}
# The shorter forms that a validator takes besides the real one, by the validator's name.
_SHORTHANDS = {"_as_list": [_TEXT], "_name_alone": [_TEXT, _NAMES]}
# An editor cannot import a class by its path.
_OPTIMIZER_NAMES: list[dict[str, Any]] = [
    {"enum": optimizer_names()},
    {"type": "string", "pattern": r"^[^.].*\.[^.]+$"},
]
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
        >>> json_schema()["then"]["required"]  # of a recipe that extends no other
        ['optimizer']
    """
    found = RecipeSpec.model_json_schema(by_alias=True, schema_generator=_Generator)
    schema: dict[str, Any] = _tidy(found)
    parts = schema["$defs"]
    known = {name: getattr(optim, name) for name in optimizer_names()}
    rule_keys = list(parts["RuleSpec"]["properties"])
    for name in ("OptimizerSpec", "RuleOptimizerSpec", "FallbackSpec"):
        _complete_optimizer(parts[name], known, name)
    _complete_rule(parts["RuleSpec"], known)
    _complete_match(parts["Match"])
    _complete_phase(parts["PhaseSpec"])
    schema["allOf"] = [_rules_of(name, cls, rule_keys) for name, cls in known.items()]
    _complete_sources(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Recipe", **schema}


def _complete_sources(schema: dict[str, Any]) -> None:
    """Let a recipe extend another, which may then say what is required, and have own keys."""
    schema["properties"][EXTENDS] = {
        **_TEXT,
        "description": "the path of a recipe that this one goes on from, from this file's folder",
    }
    schema["patternProperties"] = {f"^{OWN_KEYS}": {}}
    alone = {
        "required": schema.pop("required"),
        "properties": {"optimizer": {"required": schema["$defs"]["OptimizerSpec"].pop("required")}},
    }
    schema |= {"if": {"not": {"required": [EXTENDS]}}, "then": alone}


def _rules_of(name: str, cls: type, rule_keys: Sequence[str]) -> dict[str, Any]:
    """Return which keys a rule may have in a recipe with this optimizer."""
    # With several optimizers, a rule may be for any of them.
    alone = {
        "optimizer": {**_is("name", name), "not": {"required": ["fallback"]}},
        "groups": {"items": {"not": {"required": ["optimizer"]}}},
    }
    forms = _group_forms(cls)
    listed = {key: {"enum": form["enum"]} for key, form in forms.items() if "enum" in form}
    rules = {**_keys([*rule_keys, *forms]), "properties": listed}
    return {
        "if": {"properties": alone, "required": ["optimizer"]},
        "then": {"properties": {"groups": {"items": rules}}},
    }


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, which knows the real form alone, with what validators turn into it."""

    def function_before_schema(self, schema: Any) -> JsonSchemaValue:
        inner = super().function_before_schema(schema)
        name = getattr(schema["function"]["function"], "__name__", "")
        if name == "_as_phases":
            return {"anyOf": [{"enum": preset_names()}, dict(inner["items"]), inner]}
        if name == "as_optimizer":
            return {"anyOf": [*_OPTIMIZER_NAMES, inner]}
        return {"anyOf": [*_SHORTHANDS[name], inner]} if name in _SHORTHANDS else inner

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        return _DURATION if schema["cls"] is Duration else super().dataclass_schema(schema)


def _tidy(schema: Any) -> Any:
    """Leave out titles, and null, which pydantic puts where a key may be left out.

    A recipe with a null there is refused: whoever wrote it left something out by mistake.
    """
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
    if len(found.get("anyOf", ())) == 1:  # the other was null
        (only,) = found.pop("anyOf")
        found = {**only, **found}
    text = found.get("description")
    return {**found, "description": " ".join(text.split())} if isinstance(text, str) else found


def _complete_optimizer(part: dict[str, Any], known: Mapping[str, type], title: str) -> None:
    """Add the hyperparameters of each optimizer, in cases by its name.

    Args:
        part: the schema of an optimizer.
        known: the optimizers, by name.
        title: which it is: the recipe's, a rule's, or what one falls back to.
    """
    keys = list(part["properties"])
    is_whole, is_of_rule = title == "OptimizerSpec", title == "RuleOptimizerSpec"
    own = {n: _forms(c, ("params",)) if is_whole else _group_forms(c) for n, c in known.items()}
    needed = {
        # Under a rule, the rule itself may give what is needed.
        name: [] if is_of_rule else [k for k, p in found.items() if p.default is required]
        for name, found in ((n, keywords_of(c, ("params",))) for n, c in known.items())
    }
    part["properties"]["name"] |= {"anyOf": _OPTIMIZER_NAMES}
    part["properties"] = {**_merged(own.values()), **part["properties"]}
    # One that is named by its path may have any key.
    part["allOf"] = [_case("name", name, keys, forms, needed[name]) for name, forms in own.items()]


def _complete_rule(part: dict[str, Any], known: Mapping[str, type]) -> None:
    """Add the hyperparameters of all optimizers, and the words of ``no_decay``."""
    part["properties"]["no_decay"]["anyOf"].insert(0, {"enum": list(FAMILY_WORDS)})
    merged = _merged(map(_group_forms, known.values()))
    part["properties"] = {**merged, **part["properties"]}
    part["minProperties"] = 1


def _complete_match(part: dict[str, Any]) -> None:
    """Add the families, and move what is about a match's keys to its form that has keys."""
    conditions = part["anyOf"][-1]
    conditions["additionalProperties"] = part.pop("additionalProperties")
    conditions["minProperties"] = 1
    conditions["properties"]["type"]["anyOf"].insert(0, {"enum": list(FAMILIES)})


def _complete_phase(part: dict[str, Any]) -> None:
    """Add the arguments of each scheduler and preset, in cases by its name."""
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
    cases.append(
        {"if": {"required": ["together"]}, "then": _keys(["together", "for", "from", "of"])}
    )
    part["properties"] = {**_merged(merged), **part["properties"]}
    part["oneOf"] = [{"required": [key]} for key in ("name", "preset", "together")]
    part["allOf"] = cases


def _case(
    key: str, name: str, also: Sequence[str], forms: Mapping[str, Any], needed: Sequence[str]
) -> dict[str, Any]:
    """Return what a mapping with this name may have, and what it must have.

    Args:
        key: where the name stands: "name" or "preset".
        name: of a class or a preset.
        also: keys that it may have besides arguments.
        forms: the arguments.
        needed: the keys that it must have.
    """
    then = {"properties": dict(forms), **_keys([*also, *forms]), "required": list(needed)}
    return {"if": _is(key, name), "then": then}


def _is(key: str, name: str) -> dict[str, Any]:
    return {"properties": {key: {"const": name}}, "required": [key]}


def _keys(names: Sequence[str]) -> dict[str, Any]:
    # additionalProperties would forbid what is listed elsewhere in the schema, in another case.
    return {"propertyNames": {"enum": list(names)}}


def _merged(forms: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what any of several classes takes, to be offered before one is named."""
    found: dict[str, Any] = {}
    for own in forms:
        for key, form in own.items():
            # Not the whole form: defaults differ between classes, and kinds may.
            found.setdefault(key, {k: v for k, v in form.items() if k == "description"})
    return found


def _group_forms(cls: type) -> dict[str, Any]:
    forms = _forms(cls, ("params",))
    return {key: forms[key] for key in settable_per_group(forms)}


def _forms(cls: type, without: tuple[str, ...]) -> dict[str, Any]:
    """Return the form of every argument of a class."""
    listed = choices_of(cls)
    found = keywords_of(cls, without)
    return _described({key: _form(key, p, listed.get(key)) for key, p in found.items()}, cls)


def _described(forms: Mapping[str, Any], cls: type | None) -> dict[str, Any]:
    texts = argument_descriptions(cls) if cls else {}
    return {
        key: {**form, **({"description": texts[key]} if key in texts else {})}
        for key, form in forms.items()
    }


def _phase_form(key: str, parameter: inspect.Parameter, durations: Sequence[str]) -> dict[str, Any]:
    if key in durations:
        one = {"$ref": "#/$defs/Duration"}
        return {"type": "array", "items": one} if key == "milestones" else one
    kinds = {bool: "boolean", str: "string"}
    return {"type": kinds.get(type(parameter.default), "number")}


def _form(
    key: str, parameter: inspect.Parameter, listed: Sequence[Any] | None = None
) -> dict[str, Any]:
    """Return the form of an argument.

    Args:
        key: its name.
        parameter: it.
        listed: its values, where it takes a few alone.
    """
    if listed is not None:
        return {"enum": list(listed), "default": parameter.default}
    kind = expected_kind(key, parameter.default)
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
    if isinstance(default, float) and not math.isfinite(default):
        return form  # JSON has no such number
    return {**form, "default": list(default) if isinstance(default, tuple) else default}


def argument_descriptions(cls: type) -> dict[str, str]:
    """Read the descriptions of arguments in the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for base in cls.__mro__:
        section = re.search(r"\n +Args:\n(.*?)(?:\n\n|\Z)", base.__doc__ or "", re.DOTALL)
        for key, text in re.findall(
            r"^ {8}(\w+): (.*?)(?=^ {8}\w|\Z)", section[1] if section else "", re.M | re.DOTALL
        ):
            # "as in Adam" sends a reader to the description of a base, which comes later here.
            if not text.startswith("as "):
                found.setdefault(key, " ".join(text.replace("``", "").split()))
    return found
