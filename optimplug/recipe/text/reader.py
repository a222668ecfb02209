"""A recipe's source -> plain dicts and lists. Reading a file runs no code from it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeGuard

import yaml

from optimplug.errors import RecipeError
from optimplug.recipe.text.extends import whole
from optimplug.recipe.text.plain import plain
from optimplug.recipe.text.written import Written

__all__ = ["YAML_FORMS", "Source", "is_text", "read", "value_of", "written"]

_REPLACED = ("int", "float", "timestamp")  # PyYAML reads these otherwise than YAML 1.2 has them

_MOST_KEYS = 10_000

Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"
"""A path to a YAML file, YAML itself, or a mapping: a dict, an OmegaConf node, ...

A string with a line break or ``": "`` in it, or with ``{`` at its start, is YAML itself; any other
is a path. A path of such a form is given as a :class:`pathlib.Path`.
"""


def read(source: Source) -> tuple[dict[str, Any], str | None]:
    """Return the recipe as a dict of plain values, and the file that it came from.

    Raises:
        RecipeError: as :func:`written`.
    """
    found = written(source)
    return dict(found.content), found.source


def written(source: Source) -> Written:
    """Return the recipe as it is written, whole: with what it extends.

    Raises:
        RecipeError: the file is missing, it or the text is not YAML, repeats a key, or is not a
            mapping; or that is so of what it extends.
    """
    content, name = _read_one(source)
    with Written(source=name).located():
        return whole(content, name, lambda base: _parsed(_text_of(base)))


def _read_one(source: Source) -> tuple[dict[str, Any], str | None]:
    """Return what one source says."""
    if isinstance(source, Mapping):
        try:
            return plain(source), None
        except RecipeError:
            raise
        except Exception as error:  # a mapping runs code of its own: OmegaConf interpolates
            message = f"cannot read the mapping: {type(error).__name__}: {error}"
            raise RecipeError.at("", message) from error
    if not isinstance(source, str | os.PathLike):
        message = "a recipe must be a path to a YAML file, YAML itself, or a mapping"
        raise RecipeError.at("", f"{message} (got {source!r})")
    if is_text(source):
        return _parsed(source), None
    name = os.fspath(source)
    with Written(source=name).located():
        return _parsed(_text_of(name)), name


def _text_of(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a path with a 0 in it is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason
        raise RecipeError.at("", f"cannot read the recipe: {reason}") from None


def is_text(source: object) -> TypeGuard[str]:
    """Tell whether a source is YAML itself, and not the path to it.

    Example:
        >>> is_text("{optimizer: {name: AdamW, lr: 1e-3}}"), is_text("recipes/adamw.yaml")
        (True, False)
    """
    if not isinstance(source, str):
        return False
    return "\n" in source or ": " in source or source.lstrip().startswith("{")


def _parsed(text: str) -> dict[str, Any]:
    try:
        loaded = yaml.load(text, Loader=_Loader)  # noqa: S506 (_Loader is a SafeLoader)
    except yaml.YAMLError as error:
        raise RecipeError.at("", _yaml_message(error)) from None
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        # PyYAML lets these through: for a tag that does not fit its value, for endless nesting.
        message = f"not valid YAML: {type(error).__name__}: {error}"
        raise RecipeError.at("", message) from None
    if not isinstance(loaded, dict):
        given = "nothing" if loaded is None else f"a {type(loaded).__name__}"
        message = f"a recipe must be a mapping with the key 'optimizer' (got {given})"
        raise RecipeError.at("", message)
    return dict(plain(loaded))


def value_of(text: str, path: str) -> Any:
    """Return a single value of a recipe, given as YAML.

    Raises:
        RecipeError: it is not YAML.
    """
    try:
        return plain(yaml.load(text, Loader=_Loader))  # noqa: S506 (_Loader is a SafeLoader)
    except RecipeError as error:
        raise RecipeError.at(path, "; ".join(map(str, error.problems))) from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise RecipeError.at(path, f"{text!r} is not valid YAML: {error}") from None


class _Loader(yaml.SafeLoader):
    """The safe loader, with YAML 1.2's numbers, no dates, and no key twice.

    In YAML 1.1, which PyYAML reads, ``1e-3`` is text, ``010`` is 8 and ``1:30`` is 90. Of a key
    given twice, PyYAML takes the last without a word.
    """

    # A dict of this class's own: PyYAML's is shared by all loaders of the process.
    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc] # the stubs have it per instance
        first: [(tag, form) for tag, form in resolvers if tag.rpartition(":")[2] not in _REPLACED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse keys that are not text, and keys given twice."""
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *base` may come twice, and keys may be given again beside it
            key = self.construct_object(key_node, deep=True)
            problem = None
            if not isinstance(key, str):
                problem = f"a key must be text (got {key!r}); put it in quotes"
            elif key in seen:
                problem = f"duplicate key {key!r}, first given on line {seen[key]}"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take in what is merged by ``<<``, which may double from alias to alias."""
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:
            problem = f"more than {_MOST_KEYS:,} keys in one mapping"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Read a number as YAML 1.2 has it."""
        text = self.construct_scalar(node).lower()
        if node.tag.endswith(":int"):
            return int(text) if text.lstrip("+-").isdigit() else int(text, 0)
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _form in (
    ("int", r"[-+]?\d+$|0o[0-7]+$|0x[0-9a-fA-F]+$"),
    ("float", r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_form), list("-+.0123456789")
    )
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


YAML_FORMS = _Loader.yaml_implicit_resolvers
"""By which first character and of which form a text is no text: for whoever writes YAML."""


def _yaml_message(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "not valid YAML"
    if "an alias" in str(getattr(error, "context", "")):  # which is how YAML takes a glob
        problem = "what begins with * must be in quotes"
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)
