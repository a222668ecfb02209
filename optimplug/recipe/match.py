"""Does a rule's ``match`` hold for a parameter?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from optimplug.errors import nearest
from optimplug.recipe.schema import Match

__all__ = ["Place", "matches", "places", "suggestion"]

_FAMILIES: dict[str, tuple[type[nn.Module], ...]] = {
    "norm": (
        nn.LayerNorm,
        nn.RMSNorm,
        nn.GroupNorm,
        nn.modules.batchnorm._NormBase,  # every batch and instance norm
    ),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "linear": (nn.Linear, nn.Bilinear),
    "conv": (nn.modules.conv._ConvNd,),  # every one, transposed ones too
}


@dataclass(frozen=True)
class Place:
    """One name of a parameter, with the modules around it, innermost first."""

    name: str
    parameter: nn.Parameter
    modules: tuple[nn.Module, ...]


def places(model: nn.Module) -> Iterator[Place]:
    """Walk every name of every parameter; a tied parameter has several."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parts = name.split(".")[:-1]
        around = [modules[".".join(parts[:n])] for n in range(len(parts), -1, -1)]
        yield Place(name, parameter, tuple(around))


def matches(match: Match | None, place: Place, tied: Sequence[Place] = ()) -> bool:
    """Tell whether every condition that ``match`` gives holds; without one, all do.

    Args:
        match: what a rule says.
        place: the name of a parameter that is asked for.
        tied: all the names of that parameter; ``not`` holds only if its part does for none of them.
    """
    if match is None:
        return True
    return all(
        (
            match.name is None or any(fnmatchcase(place.name, glob) for glob in match.name),
            match.regex is None or re.search(match.regex, place.name) is not None,
            match.type is None or any(_is_type(place, word) for word in match.type),
            match.ndim is None or place.parameter.ndim == match.ndim,
            match.any_ is None or any(matches(part, place, tied) for part in match.any_),
            match.all_ is None or all(matches(part, place, tied) for part in match.all_),
            match.not_ is None or not any(matches(match.not_, p, tied) for p in tied or (place,)),
        )
    )


def _is_type(place: Place, word: str) -> bool:
    """Tell whether the owning module is of a family, or a module around is of a class so named."""
    owner = place.modules[0]
    if word == "norm" and re.search(r"norm\d*d?$", type(owner).__name__, re.IGNORECASE):
        return True  # models define norms of their own: LlamaRMSNorm, T5LayerNorm
    if word in _FAMILIES:
        return isinstance(owner, _FAMILIES[word])
    return any(word == base.__name__ for m in place.modules for base in type(m).__mro__)


def suggestion(match: Match | None, model: nn.Module) -> str:
    """Return "; did you mean ...?" for a match that holds nowhere, or an empty string."""
    if match is None:
        return ""
    if match.name is not None:
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        paths = [name.split(".") for name in names]
        prefixes = {".".join(path[:n]) for path in paths for n in range(1, len(path))}
        globs = [*names, *(f"{prefix}.*" for prefix in prefixes)]
        globs += [f"*.{last}" for last in {path[-1] for path in paths}]
        globs += [f"*{part}*" for part in {part for path in paths for part in path}]
        return _quoted(nearest(match.name[0], sorted(globs)))
    if match.type is not None:
        classes = {base.__name__ for m in model.modules() for base in type(m).__mro__[:-2]}
        return _quoted(nearest(match.type[0], sorted(classes | _FAMILIES.keys())))
    return ""


def _quoted(word: str | None) -> str:
    return f"; did you mean {word!r}?" if word else ""
