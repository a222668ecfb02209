"""The norm of all gradients by one launch, which leaves on the device what the updates read there.

Nobody waits for it: the norm, the factor by which gradients are clipped and unscaled, and whether
the step is to be skipped are tensors on the device.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimplug._core.optim.executions.capture import refuse_in_capture
from optimplug._core.optim.executions.execution import Ready
from optimplug._core.optim.executions.triton import kernels
from optimplug._core.optim.executions.triton.columns import work_type
from optimplug._core.optim.executions.triton.execution import ReadyTriton
from optimplug._core.optim.executions.triton.tables import (
    Addresses,
    Constants,
    Tables,
    chunks_of,
    upload,
)

__all__ = ["DeviceNorm", "norm_on_device"]

_BLOCK = 4096
"""The elements that a program adds up at once."""
_PROGRAMS = 1024
"""How many there are at most; a power of two, as the last of them adds up what they have found."""


class DeviceNorm(NamedTuple):
    """What one launch has found; each a tensor without dimension, on the device."""

    norm: Tensor
    """Of the gradients, unscaled; of their type, or float32 if that is narrow."""
    scale: Tensor
    """What every gradient is to be multiplied by."""
    skip: Tensor | None
    """1 where the step is to be skipped; None where nothing asks for that."""


@dataclass
class _NormTables:
    of: tuple[Tables, ...]
    """Of the batches whose gradients these are."""
    grads: Addresses
    sizes: Tensor
    chunks: Tensor
    programs: int
    partial: Tensor
    arrived: Tensor
    constants: Constants
    limit: float | None = None
    limit_there: Tensor | None = None

    def uploaded_limit(self, limit: float | None) -> Tensor | None:
        """Return what norms are clipped to, on the device; uploaded when it has changed."""
        if limit != self.limit:
            self.limit, self.limit_there = limit, None
            if limit is not None:
                host = torch.tensor(float(limit), dtype=torch.float64, device="cpu")
                self.limit_there = upload(host, self.sizes.device)
        return self.limit_there

    def recorded_limit(self, limit: float | None, held: list[Any]) -> Tensor | None:
        """Return the same in a step that a graph may record; ``held`` gets what that then reads."""
        if limit is None:
            return None
        return self.constants.there("limit", [float(limit)], held)[0]


def norm_on_device(
    ready: Sequence[Ready],
    limit: float | None,
    scale: Tensor | None,
    found_inf: Tensor | None,
    skips: bool,
) -> DeviceNorm | None:
    """Return the norm of all gradients, and what follows from it.

    None where not all of them are at hand on one device and in one type. Of narrow gradients it is
    in float32: a norm that is rounded to 8 bits, as torch's, clips by up to half a percent less.

    Args:
        ready: the batches.
        limit: what the norm is clipped to; None for no clipping.
        scale: what a GradScaler has multiplied all gradients by.
        found_inf: 1 where the step is to be skipped anyhow.
        skips: whether a norm that is not finite is a reason to skip.
    """
    batches = [each for each in ready if isinstance(each, ReadyTriton)]
    if len(batches) < len(ready) or not batches or any(b.batch.is_sharded for b in batches):
        return None
    places = {(each.batch.grads[0].dtype, each.device) for each in batches}
    if len(places) > 1:
        return None
    dtype, device = places.pop()
    tables, addresses = _tables(batches), _addresses(batches)
    if all(each.is_capturable for each in batches):
        held = batches[0].held
        held.append(tables)
        grads, most = tables.grads.recorded(addresses, held), tables.recorded_limit(limit, held)
    else:
        grads, most = tables.grads.uploaded(addresses), tables.uploaded_limit(limit)
    result = torch.empty(3, dtype=work_type([dtype]), device=device)
    outside = [None if each is None else upload(each, device) for each in (scale, found_inf)]
    kernels.launch(
        kernels.norm_kernel(),
        tables.programs,
        device,
        *(grads, tables.sizes, tables.chunks),
        *(len(tables.chunks), most, *outside),
        *(tables.partial, tables.arrived, result),
        PROGRAMS=tables.programs,
        BLOCK=_BLOCK,
        SKIPS=skips,
        **kernels.triton_types(dtype),
    )
    norm, factor, skip = result.unbind()
    return DeviceNorm(norm, factor, skip if skips or found_inf is not None else None)


def _addresses(batches: Sequence[ReadyTriton]) -> array[int]:
    return reduce(lambda some, more: some + more, [each.grads for each in batches])


def _tables(batches: Sequence[ReadyTriton]) -> _NormTables:
    """Return the tables of these batches, which the first of them keeps."""
    of = tuple(each.tables for each in batches)
    memo = batches[0].batch.memo
    known: _NormTables | None = memo.get("norm")
    if known is None or len(known.of) != len(of) or any(map(_differ, known.of, of)):
        if batches[0].is_capturable:
            refuse_in_capture("what the norm of all gradients is computed with")
        known = memo["norm"] = _new_tables(of, batches[0].device)
    return known


def _differ(some: Tables, others: Tables) -> bool:
    return some is not others


def _new_tables(of: tuple[Tables, ...], device: torch.device) -> _NormTables:
    every = list(chain.from_iterable(tables.memory.sizes for tables in of))
    sizes = torch.tensor(every, dtype=torch.int64, device="cpu")
    chunks = chunks_of(sizes, _BLOCK)
    programs = min(_PROGRAMS, 1 << max(0, len(chunks) - 1).bit_length())
    return _NormTables(
        of,
        Addresses(device),
        upload(sizes, device),
        upload(chunks, device),
        programs,
        torch.empty(programs, dtype=torch.float64, device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
        Constants(device),
    )
