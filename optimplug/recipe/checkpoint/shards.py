"""Whole states for parameters of which a part is here: each process takes what it needs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from optimplug import optim
from optimplug._core.optim.shards import is_sharded
from optimplug.recipe.checkpoint.differences import OwnGroup

__all__ = ["parts_here"]


def parts_here(p: Tensor, kept: Mapping[str, Any], own: OwnGroup) -> dict[str, Any]:
    """Return the state of a parameter, with whole tensors cut as the parameter is.

    An optimizer would step its part of the parameter with the first elements of them.

    Args:
        p: the parameter.
        kept: its state, in whole tensors or already in parts.
        own: the group that it is in.
    """
    if not is_sharded(p):
        return dict(kept)
    return {key: _part(p, key, value, own) for key, value in kept.items()}


def _part(p: Tensor, key: str, value: Any, own: OwnGroup) -> Any:
    if not isinstance(value, Tensor) or is_sharded(value) or value.dim() == 0:
        return value
    like: Any = p
    if issubclass(own.cls, optim.Optimizer):
        specs = own.cls.stored_rule(own.group).suited(p).saved
        spec = next((spec for spec in specs if spec.name == key), None)
        if spec is not None and spec.over is not None:
            like = spec.create(p, own.group)
    if value.shape != like.shape:
        return value  # it has one for each block that is here, or the optimizer refuses it
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole: none need be asked.
    return distribute_tensor(
        value.to(p.device), like.device_mesh, like.placements, src_data_rank=None
    )
