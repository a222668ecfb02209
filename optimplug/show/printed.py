"""What rich prints, as plain text."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

__all__ = ["printed"]

_WIDTH = 10_000  # as text, a table is as wide as it needs: files and pipes have no width


def printed(what: RenderableType) -> str:
    """Return it without colours, and without the blanks that fill up lines."""
    file = io.StringIO()
    Console(file=file, width=_WIDTH, color_system=None).print(what)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n")
