"""How much memory an optimizer's state takes, known before there is any."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.layout import Layout
from optimplug._core.optim.members import State
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rules.lbfgs import LBFGS
from optimplug._core.optim.shards import local

__all__ = ["state_bytes"]


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of state after a first step in which every parameter has a gradient.

    The state is laid out for stand-ins of the parameters on the meta device, which hold no memory,
    by what lays it out for the parameters themselves. Of a DTensor the shard that is here counts.
    LBFGS needs as much as this only once its history is full.

    Example:
        >>> from optimplug.optim import AdamW
        >>> state_bytes(AdamW([torch.zeros(10, requires_grad=True)]))  # two moments and a count
        84
    """
    if isinstance(optimizer, LBFGS):  # its state is no parameter's own
        return optimizer.state_bytes()
    groups: list[dict[str, Any]] = [
        {**group, "params": [_stand_in(p) for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    state: State = defaultdict(dict)
    grads = [p for group in groups for p in group["params"]]
    rules = [optimizer.stored_rule(group) for group in groups]
    Layout(groups, grads, rules, state, count_on=())
    tensors = {id(tensor): tensor for kept in state.values() for tensor in kept.values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _stand_in(p: Tensor) -> Tensor:
    return torch.empty_like(local(p), device="meta")
