"""Which optimizer a state is of: whose moments mean the same."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Set
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.optim.optimizer import required

from optimplug import optim
from optimplug._core.optim.executions.choice import CHOICES
from optimplug._core.optim.group_checks import StandIn
from optimplug._core.optim.multi import optimizer_named
from optimplug._core.optim.storage.arguments import STORAGE
from optimplug._core.optim.storage.stored import LOW_BITS
from optimplug.recipe.checkpoint.saved import Saved, SavedGroup
from optimplug.recipe.clipped import CLIPPING, class_of
from optimplug.recipe.provenance import class_path
from optimplug.recipe.resolve import optimizer_names
from optimplug.recipe.schedule.marks import MARKS

__all__ = [
    "class_in_group",
    "is_bookkeeping",
    "kind_of",
    "likely_class",
    "means_the_same",
    "saved_class",
]

_SAME = {"AdamW": "Adam"}
"""Optimizers whose moments mean the same as those of another."""

_BOOKKEEPING = {*MARKS, *CHOICES, *CLIPPING, *STORAGE, "params", "param_names", "optimizer"}
_SINCE = ("decoupled_weight_decay", "rounding_step")
"""Keys that only some versions of a class have, and so tell nothing."""


def is_bookkeeping(key: str) -> bool:
    """Tell whether a group's key is none of its optimizer's: a mark, an own value, a choice."""
    return key in _BOOKKEEPING or key.startswith(("initial_", "written_"))


def class_in_group(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any]
) -> type[torch.optim.Optimizer]:
    """Return the class that moves a group of an optimizer, which may be several."""
    if isinstance(optimizer, optim.MultiOptimizer):
        return optimizer_named(group["optimizer"])
    return class_of(optimizer)


def saved_class(saved: Saved, group: SavedGroup) -> str | None:
    """Return which class has moved a group, as :func:`class_path` has it; None if it is not said.

    What a checkpoint names is not imported: it may come from anywhere.
    """
    said = group.settings.get("optimizer", saved.provenance.get("optimizer"))
    return said if isinstance(said, str) and said != "MultiOptimizer" else None


def kind_of(path: str) -> str:
    """Return by which name optimizers go whose moments mean the same.

    Example:
        >>> kind_of("torch.optim.AdamW"), kind_of("Adam"), kind_of("lion_pytorch.Lion")
        ('Adam', 'Adam', 'lion_pytorch.Lion')
    """
    name = path.removeprefix("torch.optim.").rpartition(".")
    known = name[2] if not name[0] or path.startswith("torch.optim.") else path
    return _SAME.get(known, known)


def means_the_same(
    saved: Saved, theirs: SavedGroup, cls: type[torch.optim.Optimizer], own: Mapping[str, Any]
) -> bool:
    """Tell whether the moments of a saved group are such as an optimizer keeps.

    Where it is not said of whose they are, it is told from the group's hyperparameters, and from
    what is kept of its parameters.

    Args:
        saved: the checkpoint.
        theirs: a group of it.
        cls: the class of the optimizer.
        own: a group of that.
    """
    path, ours = saved_class(saved, theirs), class_path(cls)
    if path is not None:
        return kind_of(path) == kind_of(ours)
    return kind_of(ours) in _nearest(
        saved, theirs, {ours: _Keeps(own.keys(), _states_of(cls, own))}
    )


def likely_class(saved: Saved, theirs: SavedGroup) -> str:
    """Return of which optimizer the state of a group seems to be, in words."""
    path = saved_class(saved, theirs)
    found = sorted(_nearest(saved, theirs, {})) if path is None else [path]
    return found[0] if path or len(found) == 1 else "another optimizer"


def _nearest(saved: Saved, theirs: SavedGroup, others: Mapping[str, _Keeps]) -> Set[str]:
    """Return the kinds of optimizers, ours and others, whose groups and states are most alike."""
    kept = {
        str(key).removesuffix("_codes").removesuffix("_scales")  # of what is saved in 8 bits
        for number in theirs.numbers
        for key in saved.state.get(number, {})
    }
    candidates = {**_known(), **others}
    # Those that keep something else are none; of a class of others, it is not known what it keeps.
    able = {p: c for p, c in candidates.items() if c.states is None or kept <= c.states}
    far = {path: _distance(theirs.settings.keys(), c.keys) for path, c in able.items()}
    nearest = min(far.values(), default=(0, 0))
    return {kind_of(p) for p, distance in far.items() if distance == nearest}


def _distance(one: Set[str], other: Set[str]) -> tuple[int, int]:
    """Return how many hyperparameters only one has; then, of what some versions of a class have."""
    unlike = {key for key in one ^ other if not is_bookkeeping(key)}
    choices = {key for key in one ^ other if key in CHOICES}
    return len(unlike - {*_SINCE}), len(choices) + len(unlike & {*_SINCE})


class _Keeps(NamedTuple):
    """What a class has in its groups, and keeps of a parameter; None where that is not known."""

    keys: Set[str]
    states: Set[str] | None


@cache
def _known() -> Mapping[str, _Keeps]:
    """Return the optimizers of this package, whose states have torch's keys."""
    found = {}
    for name in optimizer_names():
        cls = getattr(optim, name)
        rate = {"lr": 1e-3} if inspect.signature(cls).parameters["lr"].default is required else {}
        group = cls([{"params": [StandIn(torch.zeros(1, 1))], **rate}]).param_groups[0]
        found[name] = _Keeps(group.keys(), _states_of(cls, group))
    return found


def _states_of(cls: type[torch.optim.Optimizer], group: Mapping[str, Any]) -> Set[str] | None:
    if not issubclass(cls, optim.Optimizer):
        path = class_path(cls)
        same = _known().get(path.removeprefix("torch.optim."))
        return same.states if same and path.startswith("torch.optim.") else None
    rule = cls.stored_rule(group)
    if not rule.state and not rule.variant_state:
        return None  # LBFGS keeps it in a way of its own
    beside = {spec.name for spec in LOW_BITS.values()}
    # Of a matrix, some keep rows and columns.
    names = {spec.name for spec in (*rule.saved, *rule.suited(torch.zeros(2, 2)).saved)}
    return {"step", *names, *rule.number_names, *rule.variant_state, *beside}
