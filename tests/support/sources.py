"""The source of the package, for tests of what the code must hold to."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "optimplug"


class Source(NamedTuple):
    """One module: its path below the package, with ``/``, and its syntax tree."""

    path: str
    tree: ast.Module


def parse(path, text):
    return Source(path, ast.parse(text))


@cache
def sources():
    """All modules of the package."""
    files = sorted(PACKAGE.rglob("*.py"))
    return tuple(parse(file.relative_to(PACKAGE).as_posix(), file.read_text()) for file in files)
