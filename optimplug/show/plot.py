"""Drawing, with the ``plot`` extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

from optimplug.errors import MissingExtraError

__all__ = ["draw_curves"]

_MOST_NAMED = 24  # more names than this would not fit beside the picture


def draw_curves(
    path: str | PathLike[str],
    steps: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    phases: Sequence[tuple[str, int]],
    shades: Mapping[str, float],
) -> None:
    """Draw lr over time, from the bottom of the model (dark) to its top (bright).

    Groups whose rates are the same share a line, and its label says how many they are.

    Args:
        path: the file to write; its ending says the format.
        steps: where the curves were computed.
        curves: the learning rates of each group at these steps.
        phases: the name and first step of each phase, marked in the picture.
        shades: each group's place between the bottom (0) and the top (1).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("drawing a plan", "plot") from None
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="optimizer step", ylabel="learning rate", xlim=(0, steps[-1]))
    colors = colormaps["viridis"]
    lines = _distinct(curves)
    for i, names in enumerate(lines):
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        shown = f"{names[0]}{more}" if i < _MOST_NAMED else None
        shade = sum(shades[name] for name in names) / len(names)
        axes.plot(steps, curves[names[0]], label=shown, color=colors(0.9 * shade))
    for name, start in phases:
        axes.axvline(start, color="0.6", linewidth=0.8, linestyle=":")
        axes.annotate(
            name,
            (start, 1.0),
            (4, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color="0.35",
        )
    peaks = [max(values) for values in curves.values() if max(values) > 0]
    if peaks and max(peaks) > 30 * min(peaks):
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    hidden = len(lines) - _MOST_NAMED
    title = f"and {hidden} more" if hidden > 0 else None
    figure.legend(loc="outside right upper", fontsize=7, frameon=False, title=title)
    figure.savefig(path, dpi=150)


def _distinct(curves: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Return the names of the groups on each curve."""
    names: dict[tuple[float, ...], list[str]] = {}
    for name, values in curves.items():
        names.setdefault(tuple(values), []).append(name)
    return list(names.values())
