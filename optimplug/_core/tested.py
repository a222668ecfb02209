"""The newest release of each package that this one was run with."""

from __future__ import annotations

import platform
import re
import sys
import warnings
from functools import cache

__all__ = ["NEWEST", "warn_if_untested"]

NEWEST = {
    "python": "3.13",
    "torch": "2.13",
    "lightning": "2.6",
    "pytorch_lightning": "2.6",
    "transformers": "5.24",
    "accelerate": "1.15",
}
"""By the name of the package. A later patch release of the same minor version counts as run."""


@cache
def warn_if_untested(*packages: str) -> None:
    """Warn, once in a program, of packages that are newer than any that was run.

    It is no bound of the installation: most new releases work, and who has to take one should not
    be kept from it.

    Args:
        packages: keys of :data:`NEWEST`, all of them imported; ``python`` is Python itself.
    """
    here = {name: _release(name) for name in packages}
    newer = [
        f"{name} {found} (newest tested: {NEWEST[name]})"
        for name, found in here.items()
        if _minor(found) > _minor(NEWEST[name])
    ]
    if newer:
        warnings.warn(
            f"optimplug was not tested with {', '.join(newer)}; if something breaks, look for a "
            "newer optimplug first",
            UserWarning,
            stacklevel=2,
        )


def _release(name: str) -> str:
    return platform.python_version() if name == "python" else str(sys.modules[name].__version__)


def _minor(release: str) -> tuple[int, ...]:
    """Return the first two numbers of a version: ``2.14.0+cpu`` and ``2.14.1.dev3`` are alike.

    Example:
        >>> _minor("2.14.0+cpu"), _minor("3")
        ((2, 14), (3,))
    """
    return tuple(map(int, re.findall(r"\d+", release.partition("+")[0])[:2]))
