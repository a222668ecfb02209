"""Parameters of all groups, laid out as few batches.

The cost of a step must not grow with the number of groups, so a batch holds tensors of every group
that shares its rule, device and dtype; hyperparameters that differ go in as one scalar per tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.rule import Rule, Scalar
from optimplug.errors import GradientError

__all__ = ["Batch", "gather"]


@dataclass
class Batch:
    """Tensors that one call can update: same rule, device and dtype, whatever their groups.

    ``coefficients`` holds, for each tensor, the scalars of its group at its own step count. Tensors
    of the same group and count share one dict.
    """

    rule: Rule
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    coefficients: list[dict[str, float]] = field(default_factory=list)

    def scalars(self) -> dict[str, Scalar]:
        """Return each coefficient as one number if all tensors share it, else one per tensor."""
        distinct = list({id(k): k for k in self.coefficients}.values())
        shared = {n for n, first in distinct[0].items() if all(k[n] == first for k in distinct)}
        return {
            name: value if name in shared else [k[name] for k in self.coefficients]
            for name, value in distinct[0].items()
        }

    def slices(self, scratch_bytes: int) -> Iterator[Batch]:
        """Walk the batch in parts of at most ``scratch_bytes`` of parameters, or one tensor."""
        start = size = 0
        for i, p in enumerate(self.params):
            if i > start and size + p.nbytes > scratch_bytes:
                yield self._part(slice(start, i))
                start, size = i, 0
            size += p.nbytes
        yield self._part(slice(start, None))

    def _part(self, s: slice) -> Batch:
        return Batch(self.rule, self.params[s], self.grads[s], self.states[s], self.coefficients[s])


def gather(
    groups: Sequence[dict[str, Any]],
    rules: Sequence[Rule],
    state: MutableMapping[Tensor, dict[str, Any]],
) -> list[Batch]:
    """Count one step for every parameter that has a gradient, and batch them.

    Args:
        groups: the optimizer's param_groups.
        rules: the rule of each group.
        state: the optimizer's state; parameters new to it start from zeros. The state of a
            parameter without gradient is not touched.

    Raises:
        GradientError: a gradient is sparse. Nothing has changed then.
    """
    active = [
        [(i, p) for i, p in enumerate(group["params"]) if p.grad is not None] for group in groups
    ]
    for group, members in zip(groups, active, strict=True):
        for i, p in members:
            if p.grad.is_sparse:
                raise GradientError(_sparse_message(group, i, p))

    batches: dict[Any, Batch] = {}
    for group, rule, members in zip(groups, rules, active, strict=True):
        by_step: dict[float, dict[str, float]] = {}
        for _, p in members:
            kept = _ensure_state(p, rule, state[p])
            kept["step"] += 1
            t = float(kept["step"])
            batch = batches.setdefault((rule, p.device, p.dtype), Batch(rule))
            batch.params.append(_real(p))
            batch.grads.append(_real(p.grad))
            batch.states.append({name: _real(kept[name]) for name in rule.state})
            if t not in by_step:
                by_step[t] = rule.coefficients(group, t)
            batch.coefficients.append(by_step[t])
    return list(batches.values())


def _ensure_state(p: Tensor, rule: Rule, kept: dict[str, Any]) -> dict[str, Any]:
    if "step" not in kept:
        # As in torch: on the CPU, where reading it is free, in float32 unless the default is wider.
        wide = torch.get_default_dtype() == torch.float64
        kept["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32, device="cpu")
    for name in rule.state:
        if name not in kept:
            kept[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
    return kept


def _real(tensor: Tensor) -> Tensor:
    # Rules treat a complex number as two real ones, as torch does.
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _sparse_message(group: dict[str, Any], i: int, p: Tensor) -> str:
    name = group.get("param_names", {i: f"of shape {tuple(p.shape)}"})[i]
    return (
        f"gradients must be dense, but that of parameter {name} is sparse; "
        "build its embedding with sparse=False, or give it to torch.optim.SparseAdam"
    )
