"""The learning rates that a run really used."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

__all__ = ["LearningRateTrace"]


class LearningRateTrace:
    """Records the learning rate of every group at every update, as the optimizer used it.

    It listens to the optimizer itself, so it sees the same in every runtime: skipped updates are
    not in it, and an update of several micro-batches is in it once.

    Attributes:
        rates: by group name (or its number, for a group without one), one rate per update.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> trace = LearningRateTrace()
        >>> handle = trace.attach(optimizer)
        >>> optimizer.step()
        >>> trace.rates
        {'0': [0.1]}
    """

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = {}

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Listen to an optimizer (accelerate's wrapper is looked through).

        Returns:
            A handle whose ``remove()`` ends the listening.
        """
        # A wrapper need not be an Optimizer itself to hold one.
        owner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        return owner.register_step_pre_hook(self._record)

    def _record(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for i, group in enumerate(optimizer.param_groups):
            self.rates.setdefault(group.get("name", str(i)), []).append(float(group["lr"]))
