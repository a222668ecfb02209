"""How much memory an optimizer's state takes, known before there is any."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.executions.choice import may_fuse
from optimplug._core.optim.layout import Layout, State
from optimplug._core.optim.optimizer import Optimizer

__all__ = ["state_bytes"]


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of state after a first step in which every parameter has a gradient.

    The state is laid out for stand-ins of the parameters on the meta device, which hold no memory,
    by what lays it out for the parameters themselves. Of a DTensor the shard that is here counts.

    Example:
        >>> from optimplug.optim import AdamW
        >>> state_bytes(AdamW([torch.zeros(10, requires_grad=True)]))  # two moments and a count
        84
    """
    counts_there = may_fuse(optimizer.defaults)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    # Parameters share a counter, wherever they are counted.
    places = {p.device for p in params} if counts_there else {None}
    return sum(_laid_out(optimizer, place) for place in places)


def _laid_out(optimizer: Optimizer, device: torch.device | None) -> int:
    """Return the bytes for the parameters on one device, or for all of them."""
    groups: list[dict[str, Any]] = [
        {**group, "params": [_stand_in(p) for p in group["params"] if device in (None, p.device)]}
        for group in optimizer.param_groups
    ]
    state: State = defaultdict(dict)
    grads = [p for group in groups for p in group["params"]]
    rules = [optimizer.rule(group) for group in groups]
    Layout(groups, grads, rules, state, count_on_device=False)
    tensors = {id(tensor): tensor for kept in state.values() for tensor in kept.values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _stand_in(p: Tensor) -> Tensor:
    return torch.empty_like(p.to_local() if hasattr(p, "to_local") else p, device="meta")
