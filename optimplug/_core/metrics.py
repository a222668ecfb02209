"""A metric by its name, which trainers write with prefixes of their own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from optimplug.errors import ArgumentError

__all__ = ["bare_name", "name_among", "require_metric"]

_PREFIXES = ("eval_", "val_")
"""Those of the Hugging Face Trainer, and of most modules of Lightning."""
_OF_TRAINING = ("train_",)
"""That of most modules of Lightning; the Trainer has none."""


def bare_name(name: str, prefixes: Iterable[str] = _PREFIXES) -> str:
    """Return the name of a metric without the prefix of a trainer."""
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return name[len(prefix) :]


def name_among(name: str, metrics: Iterable[str], of_training: bool = False) -> str | None:
    """Return under which name a metric is there: as it is said, or as another trainer would say it.

    Args:
        name: as it is said.
        metrics: the names that there are.
        of_training: whether they are those that the training has reported, and no validation.

    Example:
        >>> [name_among(name, ["loss", "val_loss"]) for name in ("loss", "eval_loss", "val_f1")]
        ['loss', 'val_loss', None]
        >>> name_among("loss", ["train_loss"], of_training=True)
        'train_loss'
    """
    prefixes = _OF_TRAINING if of_training else _PREFIXES
    bare = bare_name(name, (*_OF_TRAINING, *_PREFIXES) if of_training else _PREFIXES)
    there = set(metrics)
    # Without a prefix it may be that of the training.
    tried = (name, *(prefix + bare for prefix in prefixes), bare)
    return next((found for found in tried if found in there), None)


def require_metric(name: str, metrics: Mapping[str, Any], of_training: bool = False) -> Any:
    """Return the metric of this name, as :func:`name_among` finds it.

    Raises:
        ArgumentError: there is none; it lists those that there are, the nearest first.
    """
    found = name_among(name, metrics, of_training)
    if found is None:
        there = ", ".join(_nearest_first(name, map(str, metrics))) or "none"
        raise ArgumentError(f"the metric {name!r} is missing; there are: {there}")
    return metrics[found]


def _nearest_first(name: str, metrics: Iterable[str]) -> list[str]:
    """Return all names in their order, but first those that are spelt much like this one."""
    names = sorted(metrics)
    near = difflib.get_close_matches(
        bare_name(name), [bare_name(other) for other in names], cutoff=0.6
    )
    return sorted(
        names, key=lambda n: near.index(bare_name(n)) if bare_name(n) in near else len(near)
    )
