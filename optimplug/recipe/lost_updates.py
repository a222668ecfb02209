"""Warnings of updates that bfloat16 weights cannot take: they round to nothing, at every step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from optimplug._core.optim.optimizer import Optimizer
from optimplug.errors import Problem
from optimplug.recipe.parameters.groups import Group, Grouping
from optimplug.recipe.resolve import settable_per_group

__all__ = ["lost_decay_warnings"]

_HALF_A_UNIT = 2**-9
"""The largest part of a bfloat16 by which it may change and round back, whatever it is."""


def lost_decay_warnings(grouping: Grouping) -> Iterator[Problem]:
    """Find weight decay that moves no weight by itself, where ``rounding`` could keep it.

    Args:
        grouping: what the rules make of the model.
    """
    lost = {group.name: _decay(group) for group in grouping.groups}
    found = [group for group in grouping.groups if 0 < lost[group.name] < _HALF_A_UNIT]
    share = sum(map(_narrow, found)) / max(1, sum(group.numel for group in grouping.groups))
    if not share:
        return
    least, most = min(lost[g.name] for g in found), max(lost[g.name] for g in found)
    decay = f"{most:.2g}" if least == most else f"{least:.2g} to {most:.2g}"
    yield Problem(
        f"{found[0].optimizer.path}.weight_decay",
        f"takes {decay} of a weight in a step, which rounds to nothing in bfloat16 (under 1/512), "
        f"for {share:.0%} of the weights: set rounding to exact, kahan or stochastic",
    )


def _decay(group: Group) -> float:
    """Return which part of a bfloat16 weight a step takes away without a gradient; 0 for none.

    It is tried on two weights of float32: what an optimizer does with ``weight_decay`` is its own.
    Where both lose the same, decay is a step like any other, as in Adam, and no part of the weight.
    One that finds its rate by itself, as Prodigy, does not tell it beforehand.
    """
    choice = group.optimizer
    cls = choice.optimizer_class
    settings = {**choice.hyperparameters, **group.settings}
    if not (issubclass(cls, Optimizer) and "rounding" in settings):
        return 0.0
    decays = settings.get("weight_decay") and settings["rounding"] == "nearest"
    if not decays or not _narrow(group):
        return 0.0
    # Whatever torch's defaults are: on another device, or in bfloat16, nothing could be told.
    weights = torch.nn.Parameter(torch.tensor([[1.0, 2.0]], dtype=torch.float32, device="cpu"))
    weights.grad = torch.zeros_like(weights)
    # How long the run is, and how a matrix is cut, is no matter.
    apart = settings.keys() - choice.known.keys() | {*cls.lengths, "split"}
    own = {key: settings[key] for key in settable_per_group(settings) if key not in apart}
    own["foreach"] = False  # nothing is compiled for it
    optimizer = cls([weights], **own)
    if cls.rule(optimizer.param_groups[0]).measures:
        return 0.0
    optimizer.train()
    optimizer.step()
    one, two = 1.0 - weights[0, 0].item(), 1.0 - weights[0, 1].item() / 2
    return one if abs(one - two) <= 0.1 * one else 0.0


def _narrow(group: Group) -> int:
    return sum(p.numel() for p in group.parameters.values() if p.dtype == torch.bfloat16)
