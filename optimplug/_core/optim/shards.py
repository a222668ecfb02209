"""Tensors of which a part is here and the rest with other processes, as FSDP2 leaves them.

An element-wise rule works on the part that is here. A rule with norms, means or whole matrices asks
:class:`Shards` for what the other processes have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Shards", "is_sharded", "local", "reduced_zeros", "shard_like"]


def is_sharded(p: Tensor) -> bool:
    """Tell whether only a part of a tensor is here, the rest with other processes."""
    return hasattr(p, "to_local")  # a DTensor, known without importing torch.distributed.tensor


def local(p: Any) -> Tensor:
    """Return the part of a tensor that is here: all of it, where it is not sharded."""
    return p.to_local() if is_sharded(p) else p  # type: ignore[no-any-return]


def shard_like(part: Tensor, whole: Any) -> Tensor:
    """Return what is here of a tensor as one that is sharded like another of its shape."""
    if not is_sharded(whole):
        return part
    from torch.distributed.tensor import DTensor

    form = whole.device_mesh, whole.placements
    return DTensor.from_local(
        part, *form, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def reduced_zeros(p: Any, shape: Sequence[int], axis: int, dtype: torch.dtype) -> Tensor:
    """Return zeros of a shape in which one axis of ``p`` has gone, or has one element.

    Of a DTensor it is one too, cut along the axes that are left as the parameter is.

    Args:
        p: the parameter.
        shape: of the whole result.
        axis: which axis of the parameter has gone, counted from the end.
        dtype: of the result.
    """
    found: Tensor
    if not is_sharded(p):
        found = p.new_zeros(shape, dtype=dtype)
        return found
    from torch.distributed.tensor import Replicate, Shard, zeros

    gone = p.dim() + axis
    removed = len(shape) < p.dim()
    placements: list[Any] = []
    for placement in p.placements:
        if not placement.is_shard() or placement.dim == gone:
            placements.append(Replicate())
        else:
            placements.append(Shard(placement.dim - (removed and placement.dim > gone)))
    found = zeros(*shape, dtype=dtype, device_mesh=p.device_mesh, placements=placements)
    return found


@dataclass(frozen=True)
class Shards:
    """How tensors that lie on one mesh in one way are cut.

    Example:
        >>> Shards.of([torch.ones(2, 3)]).shapes
        [torch.Size([2, 3])]
    """

    mesh: Any
    """The device mesh; None where nothing is cut."""
    placements: tuple[Any, ...]
    """For each dimension of the mesh, how the tensors lie along it."""
    shapes: list[torch.Size]
    """The whole shape of each tensor."""

    @classmethod
    def of(cls, params: Sequence[Any]) -> Shards:
        """Return how these parameters are cut."""
        p, shapes = params[0], [p.shape for p in params]
        if not is_sharded(p):
            return cls(None, (), shapes)
        return cls(p.device_mesh, tuple(p.placements), shapes)

    @property
    def lies(self) -> Any:
        """What tensors have in common that can be reduced together."""
        return id(self.mesh), self.placements

    def total(
        self, parts: Sequence[Tensor], axis: int | None, gone: frozenset[int]
    ) -> list[Tensor]:
        """Return for each tensor the sum over all processes that have a part of it.

        Args:
            parts: for each tensor what is summed over the part that is here.
            axis: along which it was summed, counted from the end; None for all.
            gone: the axes along which it is not cut because they have been summed before.
        """
        found = list(parts)
        for along, placement in enumerate(self.placements):
            cut = [i for i in range(len(found)) if self._is_cut(i, placement, axis, gone)]
            if not cut:
                continue
            joined = torch.cat([found[i].reshape(-1) for i in cut])
            dist.all_reduce(joined, group=self.mesh.get_group(along))
            pieces = torch.split(joined, [found[i].numel() for i in cut])
            for i, piece in zip(cut, pieces, strict=True):
                found[i] = piece.view_as(found[i])
        return found

    def _is_cut(self, i: int, placement: Any, axis: int | None, gone: frozenset[int]) -> bool:
        if not placement.is_shard():
            return False
        at = placement.dim - len(self.shapes[i])
        return at not in gone and (axis is None or at == axis)

    def whole(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return the whole tensors, the same in every process."""
        if self.mesh is None:
            return list(parts)
        return [self._sharded(i, part).full_tensor() for i, part in enumerate(parts)]

    def part(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return of whole tensors, the same in every process, what belongs here."""
        if self.mesh is None:
            return list(tensors)
        from torch.distributed.tensor import DTensor, Replicate

        everywhere = [Replicate()] * len(self.placements)
        return [
            DTensor.from_local(tensor, self.mesh, everywhere, run_check=False)
            .redistribute(placements=self.placements)
            .to_local()
            for tensor in tensors
        ]

    def _sharded(self, i: int, part: Tensor) -> Any:
        from torch.distributed.tensor import DTensor

        shape = self.shapes[i]
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            part, self.mesh, self.placements, run_check=False, shape=shape, stride=stride
        )
