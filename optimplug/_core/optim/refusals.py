"""What is refused before a step: gradients and parameters that a rule cannot be run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from optimplug._core.internals import is_flattened
from optimplug._core.optim.batch import is_expanded
from optimplug._core.optim.rule import Rule
from optimplug.errors import ArgumentError, GradientError

__all__ = ["refuse_dense", "refuse_parameter", "refuse_sparse"]


def refuse_sparse(
    groups: Sequence[dict[str, Any]], grads: Sequence[Tensor | None], rules: Sequence[Rule]
) -> None:
    """Refuse sparse gradients where a rule takes none, or takes none with these settings.

    Raises:
        GradientError: there is one.
    """
    found = iter(grads)
    for group, rule in zip(groups, rules, strict=True):
        for i, (p, g) in enumerate(zip(group["params"], found, strict=False)):
            if g is None or not g.is_sparse:
                continue
            if not rule.takes_sparse:
                raise GradientError(_sparse_message(group, i, p))
            if group.get("weight_decay", 0) != 0:
                raise GradientError(_sparse_decay_message(group, i, p))


def refuse_dense(
    groups: Sequence[dict[str, Any]], grads: Sequence[Tensor | None], rules: Sequence[Rule]
) -> None:
    """Refuse dense gradients where a rule updates only what a sparse one holds.

    Raises:
        GradientError: there is one.
    """
    found = iter(grads)
    for group, rule in zip(groups, rules, strict=True):
        for i, (p, g) in enumerate(zip(group["params"], found, strict=False)):
            if rule.only_sparse and g is not None and not g.is_sparse:
                raise GradientError(
                    f"{_optimizer(rule)} does not support dense gradients, "
                    f"please consider Adam instead, for parameter {_name(group, i, p)}; or build "
                    "its embedding with sparse=True"
                )


def refuse_parameter(p: Tensor, rule: Rule) -> None:
    """Refuse a parameter that cannot be updated, or not by this rule.

    Raises:
        GradientError: it is complex, and the rule takes none such.
        ArgumentError: it is a flat shard where the rule must see the whole; or some of its elements
            are one and the same.
    """
    if is_expanded(p):
        raise ArgumentError(
            f"a parameter must have memory for each of its elements, but one of shape "
            f"{tuple(p.shape)} is expanded: several of them stand in one place; give the optimizer "
            "what it was expanded from, or a copy: torch.nn.Parameter(p.detach().clone())"
        )
    if p.is_complex() and not rule.takes_complex:
        raise GradientError(
            f"{_optimizer(rule)} does not support complex parameters, such as one of shape "
            f"{tuple(p.shape)}; give it to an optimizer that does, such as AdamW"
        )
    if rule.scope != "element" and is_flattened(p):
        raise ArgumentError(
            f"{_optimizer(rule)} must see a whole {rule.scope} at once, but a parameter of "
            f"shape {tuple(p.shape)} is a flat shard of FullyShardedDataParallel's; shard with "
            "torch.distributed.fsdp.fully_shard (FSDP2), or use an optimizer that updates each "
            "element by itself, such as AdamW"
        )


def _optimizer(rule: Rule) -> str:
    return rule.kind.__name__.removesuffix("Rule")


def _sparse_message(group: Mapping[str, Any], i: int, p: Tensor) -> str:
    return (
        f"gradients must be dense, but that of parameter {_name(group, i, p)} is sparse; "
        "build its embedding with sparse=False, or give it to SparseAdam"
    )


def _sparse_decay_message(group: Mapping[str, Any], i: int, p: Tensor) -> str:
    return (
        f"weight_decay must be 0 where gradients are sparse, as that of parameter "
        f"{_name(group, i, p)} is (got {group['weight_decay']}): it would move every row; "
        "give this parameter to a group with weight_decay=0, or build its embedding with "
        "sparse=False"
    )


def _name(group: Mapping[str, Any], i: int, p: Tensor) -> str:
    return group["param_names"][i] if "param_names" in group else f"of shape {tuple(p.shape)}"
