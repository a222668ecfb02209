"""What a recipe has written into an optimizer's groups, kept there as a state is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

__all__ = ["MARKS", "keep_marks"]

MARKS = ("name", "schedule", "freeze")
"""A group's own name; the rule whose schedule it follows, and the one that freezes it."""


def keep_marks(optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """Let groups keep their marks, whatever state the optimizer loads.

    They are of the recipe at work. A state that was saved without one has none, and a group without
    them would follow the shared schedule and be frozen no more, silently.

    Returns:
        What undoes it.

    Example:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> plain = torch.optim.SGD([weight], lr=0.1)
        >>> marked = torch.optim.SGD([{"params": [weight], "freeze": "groups[0]"}], lr=0.1)
        >>> _ = keep_marks(marked)
        >>> marked.load_state_dict(plain.state_dict())
        >>> marked.param_groups[0]["freeze"]
        'groups[0]'
    """
    return optimizer.register_load_state_dict_pre_hook(_with_own_marks)


def _with_own_marks(
    optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
) -> dict[str, Any] | None:
    saved, groups = state_dict.get("param_groups"), optimizer.param_groups
    if not isinstance(saved, list | tuple) or len(saved) != len(groups):
        return None  # which is for the optimizer to refuse
    if not all(isinstance(group, Mapping) for group in saved):
        return None
    pairs = zip(saved, groups, strict=True)
    return {**state_dict, "param_groups": [_marked(theirs, ours) for theirs, ours in pairs]}


def _marked(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    own = {mark: ours[mark] for mark in MARKS if mark in ours}
    # A name that was saved is as good, where this group has none.
    kept = {k: own.get(k, v) for k, v in theirs.items() if k in own or k not in MARKS[1:]}
    return {**kept, **own}
