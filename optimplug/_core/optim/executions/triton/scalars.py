"""The scalars of a batch, some of which may be known to the device alone.

A rate that is a tensor on the device is not read on the host: that would wait for all that is still
to be done there. What follows from it is computed there, and put among the others.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.executions.program import Numbers
from optimplug._core.optim.executions.triton.tables import as_tensor, upload

__all__ = ["Scalars"]


@dataclass
class Scalars:
    """Those of each cell of a batch, in the order of the rule's coefficients."""

    cells: Numbers
    """What is known of them on the host; NaN, which is no given number, for the others."""
    numbers: array[float]
    """The same, one after the other."""
    there: Mapping[int, Tensor] = field(default_factory=dict)
    """The others, by their places among all."""

    @classmethod
    def of(cls, cells: Sequence[Mapping[str, Any]], device: torch.device) -> Scalars:
        """Gather them.

        Args:
            cells: numbers, and tensors where a hyperparameter is one.
            device: that of the batch; tensors elsewhere are read.
        """
        values = list(chain.from_iterable(k.values() for k in cells))
        if set(map(type, values)) <= {float, int}:
            return cls(cells, array("d", values))
        there = {
            i: value
            for i, value in enumerate(values)
            if isinstance(value, Tensor) and value.device == device
        }
        numbers = array("d", (math.nan if i in there else v for i, v in enumerate(values)))
        rest = iter(numbers)
        return cls([{name: next(rest) for name in k} for k in cells], numbers, there)

    def uploaded(self, device: torch.device) -> Tensor:
        """Return all of them on the device."""
        found = upload(as_tensor(self.numbers), device)
        if not self.there:
            return found
        places = upload(torch.tensor(list(self.there), device="cpu"), device)
        values = torch.stack([value.detach().reshape(()).double() for value in self.there.values()])
        return found.index_copy_(0, places, values)
