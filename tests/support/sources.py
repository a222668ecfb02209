"""The source of the package, for tests of what the code must hold to."""

import ast
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "optimplug"


class Source(NamedTuple):
    """One module: its path below the package, with ``/``, and its syntax tree."""

    path: str
    tree: ast.Module


def parse(path, text):
    return Source(path, ast.parse(text))


def sources():
    """All modules of the package.

    Whoever asks lets go of them again: half a million objects that stay would make each of the
    collections of garbage that the Trainer asks for take half a second.
    """
    files = sorted(PACKAGE.rglob("*.py"))
    return tuple(parse(file.relative_to(PACKAGE).as_posix(), file.read_text()) for file in files)
