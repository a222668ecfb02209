"""Which updates really happened: under AMP, some are skipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Updates", "is_preparing"]


class Updates:
    """Counts the updates of an optimizer, without those that a GradScaler skipped.

    A ``step`` that calls that of its base class is one update, though torch's hooks hear of two.
    Neither is it one to step for the state alone, with rates and gradients of 0, as
    torch.distributed.checkpoint does.

    Args:
        optimizer: what is listened to.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._done = self._taken = 0
        self._within = 0
        self._hooks = [
            optimizer.register_step_pre_hook(self._begin),
            optimizer.register_step_post_hook(self._end),
        ]

    def _begin(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._within == 0:
            self._prepares = is_preparing(optimizer)
        self._within += 1

    def _end(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._within -= 1
        # Where the optimizer unscales by itself, it is called for a skipped update as well.
        skipped = getattr(optimizer, "found_inf", None)
        if self._within == 0 and not self._prepares:
            self._done += skipped is None or not skipped

    def take(self) -> int:
        """Return how many there were since the last call."""
        new, self._taken = self._done - self._taken, self._done
        self._within = 0  # a step that has raised is over, too
        return new

    def close(self) -> None:
        """Listen no longer."""
        for hook in self._hooks:
            hook.remove()


def is_preparing(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether this step is made for the state alone, to have what a checkpoint is loaded into.

    torch.distributed.checkpoint steps once with gradients and rates of 0. It needs all the state,
    that of frozen groups too.
    """
    groups = optimizer.param_groups
    if optimizer.state or not all(_is_zero(group["lr"]) for group in groups):
        return False
    held = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return bool(held) and not any(map(_has_values, held))


def _is_zero(rate: float | Tensor) -> bool:
    # One on an accelerator is not what torch.distributed.checkpoint sets, and to read it would wait
    # for the device at every step of an optimizer without state.
    return not (isinstance(rate, Tensor) and rate.device.type != "cpu") and bool(rate == 0)


def _has_values(gradient: Tensor) -> bool:
    own = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    if own.is_meta:
        return True
    return bool((own.coalesce().values() if own.is_sparse else own).any())
