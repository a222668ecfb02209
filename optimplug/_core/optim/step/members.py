"""Who steps, and with what state: the parameters that have a gradient, one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optimplug._core.optim.rule import Hyper, Rule, coded_names
from optimplug._core.optim.step.counters import CountOn, Place, gather
from optimplug._core.optim.storage.coded_state import with_codes, with_numbers
from optimplug._core.optim.storage.stored import LOW_BITS

__all__ = ["Member", "State", "ensure_state", "forget", "gather_numbers", "has_all", "stepping"]

State: TypeAlias = MutableMapping[Tensor, dict[str, Any]]

_LOW_BIT_NAMES = frozenset(spec.name for spec in LOW_BITS.values())


@dataclass
class Member:
    """A parameter that steps, while the layout is being made."""

    group: int
    place: int
    p: Tensor
    rule: Rule
    kept: dict[str, Any] = field(default_factory=dict)
    begun: tuple[str, ...] = ()
    """The names of its state that begin with this update."""
    number: Place | None = None
    """Where its count and other numbers are kept; None where its rule does not count."""

    @property
    def is_first(self) -> bool:
        """Whether some of its state, other than of the weight itself, begins with this update."""
        return any(spec.name in self.begun for spec in self.rule.state if not spec.is_weight)


def stepping(
    groups: Sequence[dict[str, Any]],
    grads: Sequence[Tensor | None],
    rules: Sequence[Rule],
    beside: Collection[int] = (),
) -> Iterator[Member]:
    """Walk the parameters that have a gradient, and those at the places ``beside``."""
    place = -1
    for i, (group, rule) in enumerate(zip(groups, rules, strict=True)):
        for p in group["params"]:
            place += 1
            if grads[place] is not None or place in beside:
                yield Member(i, place, p, rule.suited(p))


def gather_numbers(members: Sequence[Member], count_on: CountOn) -> None:
    """Gather the numbers of those whose rule counts."""
    counting = [member for member in members if member.rule.counts_steps]
    places = gather(
        (m.kept, _counts_on(m.p, m.rule, count_on), m.rule.number_names) for m in counting
    )
    for member, place in zip(counting, places, strict=True):
        member.number = place


def _counts_on(p: Tensor, rule: Rule, count_on: CountOn) -> torch.device:
    """Return where a parameter's updates are counted."""
    # Only an operator of torch's reads the count where it runs, and a step that may be captured.
    reads = count_on.every_rule or rule.fused_dtypes
    return p.device if reads and p.device.type in count_on.devices else torch.device("cpu")


def forget(p: Tensor, names: Sequence[str], state: State) -> None:
    for name in names:
        state[p].pop(name, None)
    if not state[p]:
        del state[p]


def has_all(p: Tensor, rule: Rule, state: State) -> bool:
    """Tell whether a parameter's state lacks nothing, so that there is nothing to begin."""
    kept = state.get(p) or {}
    return all(kept.get(name) is not None for name in (*rule.number_names, *rule.state_names))


def ensure_state(
    p: Tensor, rule: Rule, state: State, hyper: Hyper
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fill in what the state lacks; return it with the names of what begins with this update."""
    _forget_low_bits(p, rule, state)
    if not rule.counts_steps and not rule.state:
        return {}, ()
    kept, before = state[p], set(state[p])
    if rule.counts_steps and "step" not in kept:
        # In float32, as in torch, unless the default is wider.
        wide = torch.get_default_dtype() == torch.float64
        # Not zeros(): of a fake tensor only tensor() knows the value.
        dtype = torch.float64 if wide else torch.float32
        kept["step"] = torch.tensor(0.0, dtype=dtype, device="cpu")
        for scalar in rule.scalars:
            kept[scalar.name] = torch.tensor(scalar.first(hyper), dtype=dtype, device="cpu")
    _change_codes(kept, rule)
    missing = [spec for spec in rule.state if kept.get(spec.name) is None]
    for spec in missing:
        kept[spec.name] = spec.create(p, hyper)
    for spec in rule.state:
        # A group may have been given another storage between two steps.
        if spec.dtype not in (None, kept[spec.name].dtype):
            kept[spec.name] = kept[spec.name].to(spec.dtype)
    return kept, tuple({*kept} - before | {spec.name for spec in missing})


def _forget_low_bits(p: Tensor, rule: Rule, state: State) -> None:
    """Let go what another rounding has kept beside the weight.

    Whoever came back to that rounding would else go on from the bits of a weight long past.
    """
    kept = state.get(p) or {}
    if not kept.keys().isdisjoint(_LOW_BIT_NAMES):
        forget(p, sorted(_LOW_BIT_NAMES - rule.saved_as.keys()), state)


def _change_codes(kept: dict[str, Any], rule: Rule) -> None:
    """Keep moments in codes or as numbers, where a group was told so between two steps."""
    if not kept or all(name in kept for name in rule.state_names):
        return
    in_codes = [spec.name for spec in rule.saved if coded_names(spec.name)[0] in kept]
    if set(in_codes) - rule.codes.keys() or any(name in kept for name in rule.codes):
        changed = with_codes(with_numbers(kept), rule)
        kept.clear()
        kept.update(changed)
