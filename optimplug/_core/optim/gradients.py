"""The global norm of gradients, and clipping folded into the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from optimplug._core.arguments import as_number
from optimplug._core.internals import foreach_operator, is_flattened
from optimplug._core.optim.executions.execution import Ready
from optimplug.errors import ArgumentError

__all__ = [
    "check_clipping",
    "clip_coefficient",
    "global_norm",
    "prepared_norm",
    "refuse_flattened",
    "scale_",
]


def check_clipping(max_grad_norm: Any, skip_nonfinite: Any) -> None:
    """Raise ArgumentError unless these are what an optimizer takes under these names."""
    number = as_number(max_grad_norm)
    if max_grad_norm is not None and (number is None or not number > 0):
        raise ArgumentError(
            f"Invalid max_grad_norm: {max_grad_norm!r}; must be > 0, or None for no clipping"
        )
    if not isinstance(skip_nonfinite, bool):
        raise ArgumentError(f"skip_nonfinite must be True or False (got {skip_nonfinite!r})")


def refuse_flattened(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a norm over parameters of which the other processes have the rest, unnoticeably.

    FSDP's first version leaves plain tensors, each with this process's shard: every process would
    clip by the norm of its own shards, and their weights would no longer fit together.

    Raises:
        ArgumentError: there are such parameters.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    if any(is_flattened(p) for group in groups for p in group["params"]):
        raise ArgumentError(
            "max_grad_norm and skip_nonfinite need the norm of all gradients, but of parameters "
            "under FullyShardedDataParallel only this process's shards can be seen; shard with "
            "torch.distributed.fsdp.fully_shard (FSDP2), or leave both out and call the model's "
            "own clip_grad_norm_ before step()"
        )


def prepared_norm(ready: Sequence[Ready], grads: Sequence[Tensor | None]) -> Tensor | None:
    """Return the norm of all gradients as the executions that will use them compute it.

    None where one of them has no quick way, or the gradients are of several types, or of narrow
    ones: sums of their squares would be of another precision than torch's.
    """
    found = {g.dtype for g in grads if g is not None}
    dtypes = {dtype.to_real() if dtype.is_complex else dtype for dtype in found}
    if dtypes not in ({torch.float32}, {torch.float64}):
        return None
    total = 0.0
    for batch in ready:
        squares = batch.squares()
        if squares is None:
            return None
        total += squares
    return torch.tensor(math.sqrt(total), dtype=dtypes.pop(), device="cpu")


def global_norm(grads: Sequence[Tensor]) -> Tensor:
    r"""Return :math:`\lVert g \rVert_2` over all gradients as if they were one vector.

    The result is a zero-dimensional tensor: reading its value is what waits for the device.
    """
    by_mesh: dict[Any, list[Tensor]] = {}
    for g in grads:
        if g.is_sparse:
            g = g.coalesce().values()  # the same row may stand in it more than once
        by_mesh.setdefault(getattr(g, "device_mesh", None), []).append(g)
    # torch's function lets no autograd through, which a differentiable step asks for.
    of_all = _total_norm if torch.is_grad_enabled() else torch.nn.utils.get_total_norm
    norms: list[Tensor] = [_whole(of_all(group)) for group in by_mesh.values()]
    if len(norms) == 1:
        return norms[0]
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    return total


def _total_norm(grads: Sequence[Tensor]) -> Tensor:
    total: Tensor = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g).to(grads[0].device) for g in grads])
    )
    return total


def _whole(norm: Any) -> Tensor:
    """Return a norm of sharded gradients, which is in parts until it is asked for, as one."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[no-any-return]


def clip_coefficient(norm: Tensor, max_norm: float) -> Tensor:
    r"""Return :math:`\min(1, c / (\lVert g \rVert_2 + 10^{-6}))`, for :math:`c` = ``max_norm``.

    The factor of :func:`torch.nn.utils.clip_grad_norm_`, its small constant included.
    """
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def scale_(grads: Sequence[Tensor], coefficient: Tensor) -> None:
    """Multiply gradients in place, wherever they are, by one number."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for g in grads:
        by_device.setdefault(g.device, []).append(g)
    for device, there in by_device.items():
        foreach_operator("mul_")(there, coefficient.to(device))
