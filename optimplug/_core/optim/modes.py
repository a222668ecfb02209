"""The two modes of rules that average: weights to train with, and weights to validate and save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optimplug._core.internals import foreach_operator
from optimplug._core.optim.rule import Hyper, Rule
from optimplug._core.optim.shards import is_sharded, local
from optimplug.errors import ModeError

__all__ = ["check_mode", "have_modes", "join_mode", "set_mode"]


RuleOf: TypeAlias = Callable[[Hyper], Rule]
"""Returns the rule of a group. It is asked only where it matters: loops change modes often."""


def have_modes(groups: Sequence[Hyper], rule_of: RuleOf) -> bool:
    """Tell whether some group validates with other weights than it trains with."""
    return any("train_mode" in group and _mixing(group, rule_of) is not None for group in groups)


def _mixing(group: Hyper, rule_of: RuleOf) -> float | None:
    found = rule_of(group).mixing(group)
    return None if found is None else float(found)


@torch.no_grad()
def set_mode(
    groups: Sequence[dict[str, Any]],
    rule_of: RuleOf,
    state: Mapping[Tensor, Mapping[str, Any]],
    training: bool,
) -> None:
    r"""Put the weights of a mode in place, in each group that is in the other one.

    The weights to train with are :math:`y = \beta x + (1 - \beta) z`, so either of :math:`x` and
    :math:`y` is found from the other one and the state :math:`z`. A parameter that has not stepped
    has no :math:`z` yet, and the same weights in both modes.
    """
    for group in groups:
        if bool(group.get("train_mode", training)) is training:
            continue
        beta = _mixing(group, rule_of)
        if beta is None:
            continue
        stepped = [p for p in group["params"] if state.get(p, {}).get("z") is not None]
        if stepped:
            _move(stepped, [state[p]["z"] for p in stepped], 1 - beta if training else 1 - 1 / beta)
        group["train_mode"] = training


def _move(params: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Move parameters by a part of the way to others, in place."""
    own = [local(p) for p in params]
    # No copy where an end has its parameter's type and device.
    their = [local(end).to(p) for end, p in zip(ends, own, strict=True)]
    foreach_operator("lerp_")(own, their, weight)
    sharded = [p for p in params if is_sharded(p)]
    if sharded and not torch.is_inference_mode_enabled():
        # What worked on the shards has marked those as changed, for autograd.
        torch.autograd.graph.increment_version(sharded)


def check_mode(groups: Sequence[Hyper], rule_of: RuleOf) -> None:
    """Refuse to step where the weights in place are not those to train with.

    Raises:
        ModeError: a group is in eval mode. A step with rates of 0 before the first is let through:
            so torch.distributed.checkpoint makes the state that it loads into.
    """
    for i, group in enumerate(groups):
        if group.get("train_mode", True) or _mixing(group, rule_of) is None:
            continue
        if group["k"] == 0 and float(group["lr"]) == 0:
            continue
        where = f"param_groups[{i}]" + (f" ({group['name']!r})" if "name" in group else "")
        raise ModeError(
            f"{where} is in eval mode, with the weights in place that are validated and saved: as "
            "it begins, after optimizer.eval(), and after a state that was saved in it; call "
            "optimizer.train() before step(), where model.train() is called, and optimizer.eval() "
            "where model.eval() is and before weights are saved (of a Run: run.train(), run.eval())"
        )


def join_mode(groups: Sequence[dict[str, Any]]) -> None:
    """Let the last group, which has just been added, be in the mode of those before it."""
    *others, added = groups
    modes = [group["train_mode"] for group in others if "train_mode" in group]
    if modes and "train_mode" in added:
        added["train_mode"] = modes[0]
