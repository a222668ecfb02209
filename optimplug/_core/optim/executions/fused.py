"""The execution that does a whole rule in one pass over the memory, by an operator of torch's.

It is called once for each cell of a batch. On the CPU these operators read memory in order whatever
the strides, so a gradient laid out unlike its parameter would be applied to the wrong elements,
without a word: :func:`same_strides` is what keeps such a batch away from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.memory_layout import same_strides, without_memory
from optimplug._core.optim.rule import FusedCall

__all__ = ["FUSED_DEVICES", "Fused", "ReadyFused"]

FUSED_DEVICES = ("cpu", "cuda")


class Fused:
    """One operator of torch's for each cell, for rules and types that have one."""

    def prepare(self, batch: Batch) -> ReadyFused | None:
        """Take a batch for which the operator is right."""
        p = batch.params[0]
        has_operator = p.device.type in FUSED_DEVICES and p.dtype in batch.rule.fused_dtypes
        # It reads the counts where it runs.
        counted = not batch.steps or batch.steps[0].device == p.device
        fits = has_operator and counted and batch.goes_together and same_strides(batch)
        if not fits or without_memory(batch.grads, list(map(Tensor.data_ptr, batch.grads))):
            return None
        return ReadyFused(batch)


@dataclass
class ReadyFused:
    """A batch to be updated by one call for each cell."""

    batch: Batch

    def squares(self) -> None:
        """Leave the norm to torch's operators."""

    def run(self, scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Update every cell in place; the operator itself looks at ``found_inf``."""
        batch = self.batch
        device = batch.params[0].device
        # The operators read a float32, whatever the gradients' own type.
        grad_scale = None if scale is None else (1.0 / scale).to(device, torch.float32)
        found = None if found_inf is None else found_inf.to(device)
        for cell, hyper in zip(batch.cells, batch.hypers, strict=True):
            part = cell.part
            states = {name: tensors[part] for name, tensors in batch.states.items()}
            own = batch.params[part], batch.grads[part], states, hyper, batch.steps[part]
            batch.rule.fused(FusedCall(*own, cell.first, grad_scale, found))
