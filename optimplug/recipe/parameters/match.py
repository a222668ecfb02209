"""Whether the ``match`` of a rule holds for a parameter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from glob import escape

from torch import nn

from optimplug.errors import nearest
from optimplug.recipe.parameters.kinds import FAMILIES, families, is_bias
from optimplug.recipe.text.depth_range import Depth, DepthRange
from optimplug.recipe.text.schema.match import Match
from optimplug.recipe.text.schema.rules import RuleSpec

__all__ = [
    "FAMILY_WORDS",
    "Condition",
    "Place",
    "asks_depth",
    "asks_layers",
    "asks_norm",
    "condition",
    "family_or_glob",
    "nearest_family",
    "nearest_glob",
    "places",
    "suggestion",
]

FAMILY_WORDS = ("norm", "bias", "embedding")
"""What ``no_decay`` may name besides globs."""


@dataclass(frozen=True)
class Place:
    """One name of a parameter, and what a rule can ask about it there.

    A tied parameter has several names, and so several places.
    """

    name: str
    parameter: nn.Parameter
    modules: tuple[nn.Module, ...]
    """The modules around it, innermost first: its owner, and so on up to the model."""
    own_name: str
    """The parameter's name in its owner."""
    classes: frozenset[str]
    """The names of the classes of all these modules, and of their bases."""
    families: frozenset[str]
    """The families of its owner, and ``bias`` if it is one."""
    depth: Depth | None = None
    """None where no rule asks for depths."""


Condition = Callable[[Place, Sequence[Place]], bool]
"""Tells whether a rule holds for one place of a parameter, given all its places."""


def places(model: nn.Module, depths: Mapping[str, Depth] | None = None) -> list[list[Place]]:
    """Return each parameter as the list of its places, of which a tied one has several.

    Args:
        model: whose parameters these are.
        depths: what :func:`.depth.find_depths` finds. A tied parameter has the depth of its
            first name.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[nn.Parameter, list[Place]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path, own_name = _owner(name)
        parts = path.split(".") if path else []
        around = tuple(modules[".".join(parts[:n])] for n in range(len(parts), -1, -1))
        named = found.setdefault(parameter, [])
        depth = (named[0].depth if named else depths.get(name)) if depths else None
        classes = frozenset(n for kind in map(type, around) for n in _class_names(kind))
        families = frozenset(_families(around[0], own_name, parameter))
        named.append(Place(name, parameter, around, own_name, classes, families, depth))
    return list(found.values())


def _owner(name: str) -> tuple[str, str]:
    """Split a parameter's name into its owner's path and its name there."""
    # torch moves a parametrized weight to `parametrizations.weight.original0` of its layer. For
    # rules it stays the weight of that layer.
    path, _, moved = name.partition(".parametrizations.")
    if moved:
        return path, moved.split(".")[0]
    path, _, own_name = name.rpartition(".")
    return path, own_name


def _families(owner: nn.Module, name: str, parameter: nn.Parameter) -> Iterator[str]:
    yield from families(owner)
    if is_bias(name, parameter, owner):
        yield "bias"


# A large model has thousands of parameters in modules of a few classes.
@lru_cache(maxsize=1024)
def _class_names(cls: type) -> frozenset[str]:
    return frozenset(base.__name__ for base in cls.__mro__)


def condition(match: Match | None) -> Condition:
    """Return a function that tells whether all parts of a match hold; without one, they always do.

    It takes one of a parameter's places, and all of them: ``not`` holds only if its part holds for
    none of a tied parameter's names.
    """
    return _all(_conditions(match)) if match is not None else _all([])


def _all(conditions: Iterable[Condition]) -> Condition:
    parts = list(conditions)
    return lambda place, tied: all(part(place, tied) for part in parts)


def _any(conditions: Iterable[Condition]) -> Condition:
    parts = list(conditions)
    return lambda place, tied: any(part(place, tied) for part in parts)


def _conditions(match: Match) -> Iterator[Condition]:
    yield from _conditions_on_place(match)
    if match.any_ is not None:
        yield _any(map(condition, match.any_))
    if match.all_ is not None:
        yield _all(map(condition, match.all_))
    if match.not_ is not None:
        excluded = condition(match.not_)
        yield lambda place, tied: not any(excluded(other, tied) for other in tied)


def _conditions_on_place(match: Match) -> Iterator[Condition]:
    """Give the parts of a match that look at one place alone."""
    if match.name is not None:
        # All globs in one regular expression: a large model has thousands of names to try.
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
        ranges = match.depth
        yield lambda place, tied: place.depth is not None and _within(place.depth, ranges)


def _within(depth: Depth, ranges: Sequence[DepthRange]) -> bool:
    return any(depth in each for each in ranges)


def family_or_glob(word: str) -> Condition:
    """Return the condition of a word in ``no_decay``: norm, bias, embedding, or a glob."""
    if word in FAMILY_WORDS:
        return lambda place, tied: word in place.families
    return condition(Match.model_validate(word))


def asks_depth(match: Match | None) -> bool:
    """Tell whether a match asks how deep a parameter is."""
    return any(part.depth is not None for part in _parts(match))


def asks_norm(rule: RuleSpec) -> bool:
    """Tell whether a rule depends on which parameters are a norm's."""
    types = [word for part in _parts(rule.match) for word in part.type or ()]
    return "norm" in (*types, *(rule.no_decay or ()))


def _parts(match: Match | None) -> Iterator[Match]:
    """Walk a match and the matches in it."""
    if match is not None:
        yield match
        for part in (*(match.any_ or ()), *(match.all_ or ()), match.not_):
            yield from _parts(part)


def asks_layers(rule: RuleSpec) -> bool:
    """Tell whether a rule depends on how deep parameters are."""
    return rule.layer_decay is not None or asks_depth(rule.match)


def _is_type(place: Place, word: str) -> bool:
    """Tell whether the owner is of this family, or any module around of a class of this name."""
    return word in (place.families if word in FAMILIES else place.classes)


def suggestion(match: Match, model: nn.Module) -> str:
    """Return "; did you mean ...?" for a match that holds for no parameter, or an empty text."""
    # Of several conditions, it may be any that was meant otherwise.
    if len(match.model_fields_set) == 1 and match.name is not None:
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        return nearest_glob(match.name[0], names)
    if len(match.model_fields_set) == 1 and match.type is not None:
        # Not nn.Module and object: nobody means these.
        classes = {base.__name__ for m in model.modules() for base in type(m).__mro__[:-2]}
        known = (classes | FAMILIES.keys()) - set(match.type)
        return _quoted(nearest(match.type[0], sorted(known)))
    return ""


def nearest_family(word: str) -> str:
    """Return "; did you mean ...?" for a family misspelt, or an empty text.

    Example:
        >>> nearest_family("norms")
        "; did you mean 'norm'?"
    """
    return _quoted(nearest(word, FAMILY_WORDS, cutoff=0.75))


def nearest_glob(given: str, names: Iterable[str]) -> str:
    """Return "; did you mean ...?" for a glob that is for none of these names, or an empty text."""
    return _quoted(nearest(given, _globs(names)))


def _globs(names: Iterable[str]) -> list[str]:
    """Return globs that match something, and that someone may have meant."""
    paths = [escape(name).split(".") for name in names]  # brackets in a name are no glob's
    prefixes = {".".join(path[:n]) for path in paths for n in range(1, len(path))}
    globs = [*map(".".join, paths), *(f"{prefix}.*" for prefix in prefixes)]
    globs += [f"*.{last}" for last in {path[-1] for path in paths if len(path) > 1}]
    globs += [f"*{part}*" for part in {part for path in paths for part in path}]
    return sorted(globs)


def _quoted(word: str | None) -> str:
    return f"; did you mean {word!r}?" if word else ""
