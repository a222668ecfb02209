"""What stays of steps that CUDA graphs have recorded, and what the device counts in them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.executions.capture import refuse_in_capture
from optimplug._core.optim.executions.execution import Ready
from optimplug._core.optim.executions.triton.execution import ReadyTriton
from optimplug._core.optim.step.layout import Layout

__all__ = ["Recording"]


class Recording:
    """Of an optimizer with ``capturable=True``; it lives as long as the optimizer does."""

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._left_out: Tensor | None = None
        self._counts: set[int] = set()
        """Where graphs count."""

    def hold(self, layout: Layout, ready: Sequence[Ready]) -> None:
        """Keep what a graph reads, beside parameters, gradients and states, that records a step."""
        counted = [counters.there for counters in layout.counters]
        self._counts |= {each[0].data_ptr() for each in counted if each}
        self._held += counted
        self._held += [each.held for each in ready if isinstance(each, ReadyTriton)]

    def follow(self, layout: Layout) -> None:
        """Warn where parameters are laid out anew, so that graphs count elsewhere from now on."""
        now = {counters.there[0].data_ptr() for counters in layout.counters if counters.there}
        if self._counts - now:
            self._counts = set()
            warnings.warn(
                "parameters and their step counts were laid out anew, as other parameters have "
                "gradients or a state was loaded: CUDA graphs that recorded step() before go on "
                "from the counts that they know; capture again",
                RuntimeWarning,
                stacklevel=2,
            )

    def count(self, norm: Tensor, device: torch.device) -> None:
        """Count a step where ``norm`` is not finite, by which the device leaves it out."""
        if self._left_out is None:
            refuse_in_capture("the count of steps that are left out")
            self._left_out = torch.zeros((), dtype=torch.int64, device=device)
        self._left_out += (~torch.isfinite(norm)).to(device)

    @property
    def left_out(self) -> int:
        """How many steps were; to read it waits for the device."""
        return 0 if self._left_out is None else int(self._left_out)

    def forget_left_out(self) -> None:
        """Begin to count anew, where a graph goes on counting."""
        if self._left_out is not None:
            self._left_out.zero_()
