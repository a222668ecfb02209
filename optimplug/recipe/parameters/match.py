"""Does a rule's ``match`` hold for a parameter?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from torch import nn

from optimplug.errors import nearest
from optimplug.recipe.parameters.kinds import FAMILIES, is_bias, is_norm
from optimplug.recipe.text.levels import Depth
from optimplug.recipe.text.schema import Match

__all__ = [
    "FAMILY_WORDS",
    "Condition",
    "Place",
    "asks_depth",
    "condition",
    "family_or_glob",
    "places",
    "suggestion",
]

FAMILY_WORDS = ("norm", "bias", "embedding")
"""What ``no_decay`` may name besides globs."""


@dataclass(frozen=True)
class Place:
    """One name of a parameter, with the modules around it, innermost first."""

    name: str
    parameter: nn.Parameter
    modules: tuple[nn.Module, ...]
    own_name: str
    """The parameter's name in the module that owns it, the first of ``modules``."""
    classes: frozenset[str]
    """The names of the classes of all modules around, and of their bases."""
    families: frozenset[str]
    """The families of its owner; ``bias`` is one too."""
    depth: Depth | None = None
    """Known if it was asked for."""


Condition = Callable[[Place, Sequence[Place]], bool]
"""Whether a condition holds for a name of a parameter, given all names of that parameter."""


def places(model: nn.Module, depths: Mapping[str, Depth] | None = None) -> list[list[Place]]:
    """Walk the parameters; each comes with all its names, a tied one with several.

    Args:
        model: whose parameters these are.
        depths: what :func:`.depth.find_depths` finds. A tied parameter has the depth of its
            first name.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[nn.Parameter, list[Place]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # A parametrized weight is its layer's, not its parametrization's.
        path, _, inner = name.partition(".parametrizations.")
        path, _, own_name = (path, "", inner.split(".")[0]) if inner else name.rpartition(".")
        parts = path.split(".") if path else []
        around = tuple(modules[".".join(parts[:n])] for n in range(len(parts), -1, -1))
        named = found.setdefault(parameter, [])
        depth = (named[0].depth if named else depths.get(name)) if depths else None
        kinds = map(type, around)
        classes = frozenset(n for kind in kinds for n in _class_names(kind))
        families = frozenset(_families(around[0], own_name, parameter))
        named.append(Place(name, parameter, around, own_name, classes, families, depth))
    return list(found.values())


def _families(owner: nn.Module, name: str, parameter: nn.Parameter) -> Iterator[str]:
    yield from (family for family, types in FAMILIES.items() if isinstance(owner, types))
    if is_norm(owner):
        yield "norm"
    if is_bias(name, parameter, owner):
        yield "bias"


@lru_cache(maxsize=1024)
def _class_names(cls: type) -> frozenset[str]:
    return frozenset(base.__name__ for base in cls.__mro__)


def condition(match: Match | None) -> Condition:
    """Return whether all that ``match`` says holds; without one, it does everywhere.

    It takes a name of a parameter, and all the names of that parameter: ``not`` holds only if its
    part does for none of them.
    """
    if match is None:
        return lambda place, tied: True
    parts = list(_conditions(match))
    return lambda place, tied: all(part(place, tied) for part in parts)


def _conditions(match: Match) -> Iterator[Condition]:
    # One pattern for all globs: `(?s:a.*)\\Z|(?s:b)\\Z`, compiled once.
    if match.name is not None:
        globs = re.compile("|".join(map(translate, match.name)))
        yield lambda place, tied: globs.match(place.name) is not None
    if match.regex is not None:
        regex = re.compile(match.regex)
        yield lambda place, tied: regex.search(place.name) is not None
    if match.type is not None:
        words = match.type
        yield lambda place, tied: any(_is_type(place, word) for word in words)
    if match.ndim is not None:
        yield lambda place, tied: place.parameter.ndim == match.ndim
    if match.depth is not None:
        levels = match.depth
        yield (
            lambda place, tied: (
                place.depth is not None and any(level.holds(place.depth) for level in levels)
            )
        )
    if match.any_ is not None:
        choices = [condition(part) for part in match.any_]
        yield lambda place, tied: any(part(place, tied) for part in choices)
    if match.all_ is not None:
        parts = [condition(part) for part in match.all_]
        yield lambda place, tied: all(part(place, tied) for part in parts)
    if match.not_ is not None:
        excluded = condition(match.not_)
        yield lambda place, tied: not any(excluded(other, tied) for other in tied)


def family_or_glob(word: str) -> Condition:
    """Return the condition for a member of ``no_decay``: norm, bias, embedding, or a glob."""
    if word in FAMILY_WORDS:
        return lambda place, tied: word in place.families
    return condition(Match.model_validate(word))


def asks_depth(match: Match | None) -> bool:
    """Tell whether a match needs to know how deep a parameter lies."""
    if match is None:
        return False
    parts = [*(match.any_ or ()), *(match.all_ or ()), match.not_]
    return match.depth is not None or any(map(asks_depth, parts))


def _is_type(place: Place, word: str) -> bool:
    """Tell whether the owning module is of a family, or a module around is of a class so named."""
    return word in (place.families if word in FAMILIES else place.classes)


def suggestion(match: Match | None, model: nn.Module) -> str:
    """Return "; did you mean ...?" for a match that holds nowhere, or an empty string."""
    if match is None:
        return ""
    if match.name is not None:
        return _quoted(nearest(match.name[0], _globs(model)))
    if match.type is not None:
        classes = {base.__name__ for m in model.modules() for base in type(m).__mro__[:-2]}
        return _quoted(nearest(match.type[0], sorted(classes | FAMILIES.keys())))
    return ""


def _globs(model: nn.Module) -> list[str]:
    """Return globs that someone may have meant."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    paths = [name.split(".") for name in names]
    prefixes = {".".join(path[:n]) for path in paths for n in range(1, len(path))}
    globs = [*names, *(f"{prefix}.*" for prefix in prefixes)]
    globs += [f"*.{last}" for last in {path[-1] for path in paths if len(path) > 1}]
    globs += [f"*{part}*" for part in {part for path in paths for part in path}]
    return sorted(globs)


def _quoted(word: str | None) -> str:
    return f"; did you mean {word!r}?" if word else ""
