"""The ways to run a rule over a batch. Each does the whole update, in place."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from optimplug._core.optim.batch import Batch
from optimplug._core.optim.tensorlist import TensorList

__all__ = ["SCRATCH_BYTES", "Execution", "foreach", "single"]

SCRATCH_BYTES = 64 * 2**20
"""Parameters are walked in parts of this size: each temporary of a foreach step is as large."""


class Execution(Protocol):
    """Update a batch; ``scale`` multiplies every gradient first and leaves it as it is."""

    def __call__(self, batch: Batch, scale: Tensor | None) -> None: ...


def single(batch: Batch, scale: Tensor | None) -> None:
    """One tensor after the other: the reference, bit for bit what torch's loop does."""
    for p, g, state, k in zip(
        batch.params, batch.grads, batch.states, batch.coefficients, strict=True
    ):
        batch.rule.update(p, g if scale is None else g.mul(scale.to(g.device)), state, k)


def foreach(batch: Batch, scale: Tensor | None) -> None:
    """All tensors of a part together, through TensorList."""
    for part in batch.slices(SCRATCH_BYTES):
        g = TensorList(part.grads)
        part.rule.update(
            TensorList(part.params),
            g if scale is None else g.mul(scale.to(part.grads[0].device)),
            {name: TensorList([s[name] for s in part.states]) for name in part.rule.state},
            part.scalars(),
        )
