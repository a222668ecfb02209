"""How much memory weights, gradients and an optimizer's state take, known before there is any."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rules.lbfgs import LBFGS
from optimplug._core.optim.shards import local
from optimplug._core.optim.step.counters import CountOn
from optimplug._core.optim.step.layout import Layout
from optimplug._core.optim.step.members import State

__all__ = ["Memory", "memory_of", "state_bytes", "state_bytes_of_groups"]


class Memory(NamedTuple):
    """The bytes of some parameters, and of what training them needs beside them."""

    weights: int
    gradients: int
    """Those of one update, dense ones."""
    state: int | None
    """The optimizer's, which it has after its first step; None where it is not known."""

    @property
    def together(self) -> int | None:
        """All of it; None where a part is not known."""
        return None if self.state is None else self.weights + self.gradients + self.state


def memory_of(params: Iterable[Tensor], state: int | None) -> Memory:
    """Return the bytes of parameters that are trained; of a DTensor, of the shard that is here.

    Args:
        params: each of them once.
        state: the bytes of their state.

    Example:
        >>> memory_of([torch.zeros(10, dtype=torch.bfloat16)], state=84).together
        124
    """
    trained = list(params)
    gradients = sum(local(p).numel() * _gradient_dtype(p).itemsize for p in trained)
    return Memory(sum(local(p).nbytes for p in trained), gradients, state)


def _gradient_dtype(p: Tensor) -> torch.dtype:
    # Newer releases of torch let a parameter have gradients of another type than its own.
    return getattr(p, "grad_dtype", None) or p.dtype


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of state after a first step in which every parameter has a gradient.

    LBFGS needs as much as this only once its history is full.

    Example:
        >>> from optimplug.optim import AdamW
        >>> state_bytes(AdamW([torch.zeros(10, requires_grad=True)]))  # two moments and a count
        84
    """
    return sum(state_bytes_of_groups(optimizer))


def state_bytes_of_groups(optimizer: Optimizer) -> list[int]:
    """Return the same for each of its groups.

    The state is laid out for stand-ins of the parameters on the meta device, which hold no memory,
    by what lays it out for the parameters themselves. So it has whatever the rules say that they
    keep, in any storage. Of a DTensor the shard that is here counts.
    """
    if isinstance(optimizer, LBFGS):  # its state is no parameter's own, and it has one group
        return [optimizer.state_bytes()]
    groups: list[dict[str, Any]] = [
        {**group, "params": [_stand_in(p) for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    state: State = defaultdict(dict)
    grads = [p for group in groups for p in group["params"]]
    rules = [optimizer.stored_rule(group) for group in groups]
    Layout(groups, grads, rules, state, count_on=CountOn())
    kept = {id(p): sum(local(t).nbytes for t in own.values()) for p, own in state.items()}
    return [sum(kept.get(id(p), 0) for p in group["params"]) for group in groups]


def _stand_in(p: Tensor) -> Tensor:
    # Of a DTensor one that is cut as it is: what is kept may depend on the size of the whole.
    return torch.empty_like(p, device="meta")
