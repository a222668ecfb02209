"""Pictures by matplotlib, as files and in pages, with the ``plot`` extra."""

from __future__ import annotations

import io
import re
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from optimplug.errors import ArgumentError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_svg", "new_figure", "require_drawable"]


def new_figure(what: str, width: float = 9, height: float = 4.5) -> Figure:
    """Return an empty figure, of which pyplot knows nothing: it would keep it, or open a window.

    Args:
        what: what is drawn, for the error.
        width: in inches.
        height: in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(what, "plot") from None
    return Figure(figsize=(width, height), layout="constrained")


def require_drawable(what: str, path: str | PathLike[str]) -> None:
    """Check, before there is anything to draw, that it can be drawn into a file.

    Args:
        what: what is drawn, for the error.
        path: the file; its ending says the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: it knows no such format.
    """
    known = new_figure(what).canvas.get_supported_filetypes()
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending and ending not in known:  # without one it is a PNG
        raise ArgumentError(
            f"{what}: a picture's ending must be one of {', '.join(sorted(known))} (got {ending!r})"
        )


def as_svg(figure: Figure) -> str:
    """Return a figure as an element of a page, the same for the same figure."""
    from matplotlib import rc_context

    file = io.StringIO()
    # Texts as texts, so that they can be searched and copied; ids by what is drawn, not by chance.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "optimplug"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    found = re.search(r"<svg.*</svg>", file.getvalue(), re.DOTALL)
    assert found is not None
    return found[0]
