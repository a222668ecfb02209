"""Sums over the parameters of a group, for rules whose groups learn from all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch

__all__ = ["Measured", "Totals", "joined", "totals"]

Measured: TypeAlias = Mapping[str, Tensor]
"""What :attr:`Rule.measures` names: one number for each tensor of a batch, in its order."""

Totals: TypeAlias = Mapping[str, float]
"""The sums over a group, by the same names."""


def joined(parts: Sequence[Measured]) -> Measured | None:
    """Return what the parts of a batch have measured as that of the whole batch."""
    if not parts:
        return None
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def totals(batches: Sequence[Batch], measured: Sequence[Measured | None]) -> dict[int, Totals]:
    """Return the sums of each group that has measured something, by the group's position.

    The numbers of all groups are read at once, so that a GPU is waited for once.
    """
    sums: dict[tuple[int, str], Tensor] = {}
    for batch, found in zip(batches, measured, strict=True):
        for cell in batch.cells if found is not None else ():
            for name, values in (found or {}).items():
                key = (cell.group, name)
                sums[key] = sums.get(key, 0.0) + values[cell.part].sum().cpu()
    numbers = torch.stack(list(sums.values())).tolist() if sums else []
    result: dict[int, dict[str, float]] = {}
    for (group, name), number in zip(sums, numbers, strict=True):
        result.setdefault(group, {})[name] = number
    return dict(result)
