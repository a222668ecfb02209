"""Sums over the parameters of a group, for rules whose groups learn from all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from optimplug._core.optim.batch import Batch, are_plain

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

    The numbers of all groups are read at once, so that a GPU is waited for once a batch.
    """
    result: dict[int, dict[str, float]] = {}
    for batch, found in zip(batches, measured, strict=True):
        if found is None:
            continue
        some = next(iter(found.values()))
        if some.is_meta or not are_plain([some]):
            continue  # these only have a shape: nothing can be learnt from them
        groups = sorted({cell.group for cell in batch.cells})
        rows = [groups.index(c.group) for c in batch.cells for _ in batch.params[c.part]]
        sums = torch.zeros(len(groups), len(found), dtype=torch.float64, device="cpu")
        columns = torch.stack([values.double() for values in found.values()], 1)
        places = torch.tensor(rows, device=columns.device)
        sums = sums.to(columns.device).index_add_(0, places, columns)
        for group, row in zip(groups, sums.tolist(), strict=True):
            own = result.setdefault(group, dict.fromkeys(found, 0.0))
            for name, number in zip(found, row, strict=True):
                own[name] += number
    return dict(result)
