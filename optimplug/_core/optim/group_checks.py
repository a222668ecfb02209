"""What is refused of a group before it is added to an optimizer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import required

from optimplug._core.optim.executions.choice import CHOICES, devices_asked_for
from optimplug._core.optim.shards import is_sharded
from optimplug._core.optim.storage.arguments import STORAGE, check_storage
from optimplug.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from optimplug._core.optim.optimizer import Optimizer

__all__ = ["StandIn", "check_group", "speaks_of"]


class StandIn(torch.nn.Parameter):
    """What settings are checked with before there is a model; nothing is judged by its shape.

    Example:
        >>> from optimplug.optim import Muon
        >>> len(Muon([StandIn(torch.zeros(1, 1))], split=3).param_groups)
        1
    """


def check_group(optimizer: Optimizer, group: dict[str, Any], where: str) -> None:
    """Refuse a group that is about to be added, if it could not be stepped as it says.

    Its parameters, which may be an iterator, become a list. Torch's own checks come after.

    Args:
        optimizer: that it is added to.
        group: its parameters and settings.
        where: how errors name it.

    Raises:
        ArgumentError: a value breaks its rule, a key nearly spells a hyperparameter, the group asks
            for an execution of its own, or the rule cannot be run on a parameter.
    """
    known = {**STORAGE, **optimizer.defaults}
    for key in group.keys() - known.keys() - {"params"}:
        meant = nearest(key, known, cutoff=0.85)
        if meant is not None and not speaks_of(key, meant):
            raise ArgumentError(f"{where}: unknown key {key!r}; did you mean {meant!r}?")
    for key in ("max_grad_norm", "skip_nonfinite", "compact_state"):
        if key in group:
            raise ArgumentError(f"{where}: {key} is for the whole optimizer, not for a group")
    hyper = {**optimizer.defaults, **group}
    for key in CHOICES:
        if key in group and group[key] != optimizer.defaults.get(key):
            raise ArgumentError(
                f"{where}: {key} is a choice for all groups together (got {group[key]}, but "
                f"the optimizer has {optimizer.defaults.get(key)})"
            )
    if hyper.get("lr") is required:
        raise ArgumentError(f"{where}: lr is required: give it to the optimizer or to every group")
    try:
        optimizer.check(hyper)
        check_storage(optimizer.rule(hyper), hyper, type(optimizer).__name__)
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error}") from None
    if optimizer.defaults.get("capturable") and not optimizer.rule(hyper).fused_dtypes:
        raise ArgumentError(
            f"{where}: capturable=True needs an operator of torch's that does the whole update "
            f"of {type(optimizer).__name__}, and there is none; leave it out"
        )
    rule, found = optimizer.stored_rule(hyper), devices_asked_for(optimizer.defaults)
    for p in _parameters(group):
        problem = None if isinstance(p, StandIn) else rule.refusal(p)
        if problem is not None:
            raise ArgumentError(f"{where}: {problem}")
        if optimizer.compact_state and is_sharded(p):
            raise ArgumentError(
                f"{where}: compact_state=True is not for sharded parameters: codes are of the "
                "shard that is here, and others could not go on from them; leave it out"
            )
        if found is not None:
            _check_device(p, where, *found)


def _parameters(group: dict[str, Any]) -> list[Tensor]:
    """Return the tensors of a group, whose own entry may be an iterator or hold names too."""
    params = group["params"]
    if isinstance(params, set):
        return []  # torch refuses it
    group["params"] = params = [params] if isinstance(params, Tensor) else list(params)
    given = (p[1] if isinstance(p, tuple) and len(p) == 2 else p for p in params)
    return [p for p in given if isinstance(p, Tensor)]  # torch's own checks refuse the others


def _check_device(p: Tensor, where: str, asked: str, devices: tuple[str, ...]) -> None:
    """Refuse at once what the execution that was asked for could not do at a step."""
    if not (torch.is_floating_point(p) and p.device.type in devices):
        raise ArgumentError(
            f"{where}: {asked}=True needs floating point parameters on "
            f"{' or '.join(devices)} (got {p.dtype} on {p.device.type})"
        )


def speaks_of(key: object, name: str) -> bool:
    """Tell whether a key holds a hyperparameter's name as words among others: no_weight_decay."""
    return re.search(rf"(?<![^\W_]){name}(?![^\W_])", str(key)) is not None
