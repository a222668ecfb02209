"""The layers of a model as a recipe says them: ``layers: ["down_blocks.*", "mid_block"]``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from optimplug.errors import Problem, nearest
from optimplug.recipe.parameters.depth.blocks import Tower
from optimplug.recipe.text.problems import Problems

__all__ = ["layers_by_name"]


def layers_by_name(model: nn.Module, globs: Sequence[str]) -> Tower:
    """Return the layers that globs on the names of modules name, the lowest first.

    The modules that one glob matches are in their numeric order (``blocks.10`` after ``blocks.9``).
    What lies inside a module that it matches too is part of that. Modules without parameters are
    none.

    Raises:
        RecipeError: a glob matches no module, or one that another glob has named already.

    Example:
        >>> blocks = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> model = nn.ModuleDict({"stem": nn.Linear(2, 2), "blocks": blocks})
        >>> layers_by_name(model, ["stem", "blocks.*"])
        (('stem',), ('blocks.0',))
    """
    wrong = Problems()
    paths = [
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if path and next(module.parameters(), None) is not None
    ]
    taken: dict[str, int] = {}
    for i, glob in enumerate(globs):
        matching = [path for path in paths if fnmatchcase(path, glob)]
        found = sorted(_outermost(matching), key=_in_numeric_order)
        if not found:
            wrong.add(f"layers[{i}]", f"{glob!r} matches no module{_guess(glob, paths)}")
        wrong.extend(_overlaps(i, found, taken))
        taken.update(dict.fromkeys(found, i))
    wrong.raise_if_any()
    return tuple((path,) for path in taken)


def _outermost(paths: Iterable[str]) -> Iterator[str]:
    """Leave out what lies in another of them; a module comes before what is in it."""
    last = None
    for path in paths:
        if last is None or not path.startswith(f"{last}."):
            last = path
            yield path


def _in_numeric_order(path: str) -> list[tuple[str, int]]:
    return [(text, int(number or -1)) for text, number in re.findall(r"(\D*)(\d*)", path)]


def _overlaps(i: int, found: Iterable[str], taken: dict[str, int]) -> Iterator[Problem]:
    for path in found:
        for other, number in taken.items():
            if f"{path}.".startswith(f"{other}.") or other.startswith(f"{path}."):
                yield Problem(
                    f"layers[{i}]", f"names {path}, of which layers[{number}] has named {other}"
                )
                break


def _guess(glob: str, known: Sequence[str]) -> str:
    lists = {f"{name.rpartition('.')[0]}.*" for name in known if "." in name}
    close = nearest(glob, [*known, *sorted(lists)])
    return f"; did you mean {close!r}?" if close else ""
