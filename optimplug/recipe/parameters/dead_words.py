"""Words of a ``match`` that are for no parameter of the model: errors, wherever they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from optimplug.errors import Problem
from optimplug.recipe.parameters.kinds import FAMILIES
from optimplug.recipe.parameters.match import FAMILY_WORDS, Place, condition, suggestion
from optimplug.recipe.text.schema.match import Match

__all__ = ["DeadWord", "absent_family", "dead_words"]

_LISTS = ("name", "type", "depth")
_Everywhere = Sequence[Sequence[Place]]


class DeadWord(NamedTuple):
    """A part of a match that holds for no parameter."""

    problem: Problem
    is_error: bool
    """False for a family, which a model may lack."""


def dead_words(
    match: Match | None, path: str, everywhere: _Everywhere, model: nn.Module
) -> Iterator[DeadWord]:
    """Find every part of a match that holds for no parameter: words of lists, conditions, all.

    Args:
        match: the condition of a rule.
        path: where it stands in the recipe.
        everywhere: the places of every parameter.
        model: where names are looked for that may be meant.
    """
    if match is None:
        return
    found = [*_of_words(match, path, everywhere, model), *_of_parts(match, path, everywhere, model)]
    yield from found
    # What is made of live words may hold for nothing all the same.
    told = any(dead.is_error for dead in found) or _is_absent(match, everywhere)
    if not (told or _holds(match, everywhere)):
        yield DeadWord(_unmatched(path, match, model), is_error=True)


def absent_family(path: str, family: str, within: Match | None = None) -> DeadWord:
    """Return what is said of a family that the model lacks, or what a match holds for."""
    where = "the model" if within is None else f"what matches {within}"
    return DeadWord(Problem(path, f"{where} has no {family}"), is_error=False)


def _of_words(
    match: Match, path: str, everywhere: _Everywhere, model: nn.Module
) -> Iterator[DeadWord]:
    words = list(_words(match))
    for key, word in words:
        if not _holds(word, everywhere):
            alone = len(words) == 1 and len(match.model_fields_set) == 1
            where = path if alone else f"{path}.{key}"
            if _is_absent(word, everywhere):
                yield absent_family(where, str((word.type or [""])[0]))
            else:
                yield DeadWord(_unmatched(where, word, model), is_error=True)


def _words(match: Match) -> Iterator[tuple[str, Match]]:
    """Walk the smallest parts of a match, each as a match of its own, with its path."""
    for key in _LISTS:
        for i, word in enumerate(getattr(match, key) or ()):
            yield f"{key}[{i}]", Match.model_validate({key: [word]})
    for key in ("regex", "ndim"):
        if getattr(match, key) is not None:
            yield key, Match.model_validate({key: getattr(match, key)})


def _of_parts(
    match: Match, path: str, everywhere: _Everywhere, model: nn.Module
) -> Iterator[DeadWord]:
    for key, parts in (("any", match.any_), ("all", match.all_)):
        for i, part in enumerate(parts or ()):
            yield from dead_words(part, f"{path}.{key}[{i}]", everywhere, model)
    yield from dead_words(match.not_, f"{path}.not", everywhere, model)


def _holds(match: Match, everywhere: _Everywhere) -> bool:
    holds = condition(match)
    return any(holds(place, named) for named in everywhere for place in named)


def _is_absent(match: Match, everywhere: _Everywhere) -> bool:
    """Tell whether a match holds for nothing because it asks for families that the model lacks."""
    of_types = match.type is not None and all(_lacks(word, everywhere) for word in match.type)
    return (
        of_types
        or any(_is_absent(part, everywhere) for part in match.all_ or ())
        or (match.any_ is not None and all(_is_absent(part, everywhere) for part in match.any_))
    )


def _lacks(word: str, everywhere: _Everywhere) -> bool:
    return (
        word in FAMILIES
        and word in FAMILY_WORDS
        and not any(word in place.families for named in everywhere for place in named)
    )


def _unmatched(path: str, match: Match, model: nn.Module) -> Problem:
    return Problem(path, f"{match} matches no parameter{suggestion(match, model)}")
