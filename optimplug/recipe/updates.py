"""Which updates really happened: under AMP, some are skipped."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Updates"]


class Updates:
    """Counts the updates of an optimizer, without those that a GradScaler skipped.

    Args:
        optimizer: what is listened to.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._done = self._taken = 0
        self._hook = optimizer.register_step_post_hook(self._count)

    def _count(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # Where the optimizer unscales by itself, it is called for a skipped update as well.
        skipped = getattr(optimizer, "found_inf", None)
        self._done += skipped is None or not skipped

    def take(self) -> int:
        """Return how many there were since the last call."""
        new, self._taken = self._done - self._taken, self._done
        return new

    def close(self) -> None:
        """Listen no longer."""
        self._hook.remove()
