"""The two modes of rules that average: weights to train with, and weights to validate and save."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor

from optimplug._core.internals import foreach_operator
from optimplug._core.optim.batch import Batch
from optimplug._core.optim.counts import Count
from optimplug._core.optim.executions.foreach import Foreach
from optimplug._core.optim.executions.loop import Loop
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.shards import is_sharded, local
from optimplug._core.optim.step.counters import CountOn
from optimplug._core.optim.step.layout import Layout
from optimplug._core.optim.step.members import State
from optimplug._core.optim.storage.stored import stored
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
    state: State,
    training: bool,
) -> None:
    r"""Put the weights of a mode in place, in each group that is in the other one.

    The weights to train with are :math:`y = \beta x + (1 - \beta) z`, so either of :math:`x` and
    :math:`y` is found from the other one and the state :math:`z`. A parameter that has not stepped
    has no :math:`z` yet, and the same weights in both modes.
    """
    turned = [
        i
        for i, group in enumerate(groups)
        if bool(group.get("train_mode", training)) is not training
        and _mixing(group, rule_of) is not None
    ]
    apart = [i for i in turned if _is_stored(groups[i], rule_of)]
    if apart:
        moves = [_Move(rule_of(group), training) for group in groups]
        _move_stored(groups, moves, state, apart)
    for i in turned:
        group = groups[i]
        stepped = [p for p in group["params"] if _has_end(p, state)]
        if stepped and i not in apart:
            part = _part(rule_of(group).mixing(group), training)
            _move(stepped, [state[p]["z"] for p in stepped], part)
        group["train_mode"] = training


def _is_stored(group: Hyper, rule_of: RuleOf) -> bool:
    """Tell whether a group asks for a storage of its own."""
    rule = rule_of(group)
    return stored(rule, group) is not rule


def _has_end(p: Tensor, state: State) -> bool:
    return state.get(p, {}).get("z") is not None


def _part(beta: Any, training: bool) -> float:
    """Return how far it is to the weights of a mode, as a part of the way to ``z``."""
    share = float(beta)
    return 1 - share if training else 1 - 1 / share


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


@dataclass(frozen=True)
class _Move(Rule):
    """The way to the weights of a mode, as a rule: so it has every storage that updates have."""

    of: Rule
    """Whose weights they are."""
    training: bool

    counts_steps: ClassVar = False
    temporaries: ClassVar = 1

    @cached_property
    def state(self) -> tuple[StateSpec, ...]:
        return tuple(spec for spec in self.of.state if spec.name == "z")

    def coefficients(self, hyper: Hyper, t: Count) -> dict[str, Any]:
        return {"part": _part(self.of.mixing(hyper), self.training)}

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        p.lerp_(state["z"], k["part"])


# What begins here must also go on where autograd may flow.
@torch.inference_mode(False)
@torch.no_grad()
def _move_stored(
    groups: Sequence[dict[str, Any]],
    moves: Sequence[_Move],
    state: State,
    places: Collection[int],
) -> None:
    """Move the parameters of the groups at these places, as their storage asks for."""
    rules: list[Rule] = list(moves)
    for i in places:
        rules[i] = stored(moves[i], groups[i])
    # A parameter stands for its gradient, which nobody asks for.
    goes = [
        p if i in places and _has_end(p, state) else None
        for i, group in enumerate(groups)
        for p in group["params"]
    ]
    layout = Layout(groups, goes, rules, state, count_on=CountOn())
    for batch in cast("list[Batch]", layout.batches(groups, goes, state)):
        _run(batch)
    for i, changed in layout.next_settings(groups, state, {}).items():
        groups[i].update(changed)


def _run(batch: Batch) -> None:
    """Update a batch through torch's operators, as :func:`_move` does."""
    ready = Foreach().prepare(batch) or Loop().prepare(batch)
    ready.run(None, None)
    if batch.is_sharded:
        torch.autograd.graph.increment_version(batch.owners)


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
