"""Loading a state that was saved under another storage: the optimizer's own storage stays."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from optimplug._core.optim.rule import Hyper, Rule
from optimplug._core.optim.storage.arguments import STORAGE
from optimplug._core.optim.storage.stored import LOW_BITS

__all__ = ["converted", "differs", "own_storage", "tell"]

_logger = logging.getLogger("optimplug")
_KINDS = ("rounding", "state_dtype")


def own_storage(theirs: Hyper, ours: Hyper) -> dict[str, Any]:
    """Return the settings of storage that a loaded group goes on with.

    How something is stored is the optimizer's own choice, as is the way in which it is run. What
    random numbers depend on goes on as it was saved.
    """
    found = {key: ours[key] for key in STORAGE if key in ours}
    if ours.get("rounding") in ("stochastic", "kahan") or ours.get("state_dtype") == "8bit":
        of = theirs if "rounding_step" in theirs else ours
        found.update({key: of[key] for key in ("rounding_seed", "rounding_step") if key in of})
    return found


def differs(theirs: Hyper, ours: Hyper) -> bool:
    """Tell whether a group was saved under another storage."""
    return _kinds(theirs) != _kinds(ours)


def converted(kept: Mapping[str, Any], p: Tensor, rule: Rule) -> dict[str, Any]:
    """Return a parameter's state, saved under another storage, as this one keeps it.

    What another rounding kept beside the weight is left out: less than the weight can show.
    """
    gone = {spec.name for spec in LOW_BITS.values()} - {spec.name for spec in rule.saved}
    found = {key: value for key, value in kept.items() if key not in gone}
    for spec in rule.saved:
        if spec.dtype is None and isinstance(found.get(spec.name), Tensor):
            found[spec.name] = found[spec.name].to(p.dtype)
    return found


def tell(i: int, theirs: Hyper, ours: Hyper) -> None:
    """Log that a group's state was converted."""
    _logger.warning(
        "param_groups[%d] was saved with %s and goes on with %s: its state was converted",
        *(i, _words(theirs), _words(ours)),
    )


def _kinds(group: Hyper) -> list[Any]:
    return [group.get(key, STORAGE[key]) for key in _KINDS]


def _words(group: Hyper) -> str:
    return ", ".join(f"{key}={v!r}" for key, v in zip(_KINDS, _kinds(group), strict=True))
