r"""How weights and moments are kept, whatever the rule: its math is done in float32 in between.

A rule is wrapped in a :class:`StoredRule`, which reads the weight, lets the rule update it, and
writes it. So every execution has every storage: what a storage needs are operations of the table.

The arguments, which a group may have of its own:

``rounding`` says how a bfloat16 parameter takes an update. It has 8 bits of precision, so that an
update of less than about 1/500 of a weight rounds to nothing, at every step.

``"nearest"``
    The nearest bfloat16, as in torch.
``"exact"``
    The state ``remainder`` (int16) keeps the 16 bits that a float32 weight has beyond a bfloat16:
    the weights are, together with it, those of a float32 run, bit for bit. The parameter is the
    nearest bfloat16, the one further from zero of two that are equally near; a negative remainder
    tells that it was rounded away from zero. Whatever is beyond the largest bfloat16 is infinite.
``"kahan"``
    The state ``compensation`` (bfloat16) is what the last rounding has left out, and goes into the
    next update: the rule is given :math:`p + k` and makes :math:`w` of it, its weight decay
    included, then :math:`p' = p + (w - p),\; k' = (w - p) + (p - p')`, each sum rounded. The
    compensation counts for no more than 1/128 of the weight, as somebody may have written a smaller
    one. It has 8 bits as well, and is rounded up at some steps and down at others, in proportion
    (the fractions of multiples of the golden ratio); rounded to nearest it would lose or gain a
    sixth of small updates.
``"stochastic"``
    Nothing is kept: the bfloat16 below or above is drawn, the nearer the likelier, so that the mean
    is right. What is drawn depends on the group's ``rounding_seed``, the number of the step (the
    group's ``rounding_step``), the parameter's number in the optimizer and the element's place in
    the whole parameter: it is the same in every execution, in every process that has the parameter,
    and in a run that goes on. (In a flat shard of FSDP's first version, the place is that in the
    shard.)

Infinities and NaN stay what they are. Parameters of float32 and wider take updates as they are, so
that one setting serves models of several types; for float16, only ``"nearest"`` is there.

``state_dtype`` says how the moments that a rule keeps of a parameter's size are kept:
``"float32"``, ``"bfloat16"``, ``"8bit"``, or None: as the parameter, as in torch; but under a
rounding other than ``"nearest"`` a bfloat16 parameter's is float32, as a second moment in bfloat16
stops to change, like a weight. Where it is given, or such a rounding, the math is in float32 at
least, and what is no moment of a parameter's size is float32 for narrow parameters: means over rows
and over columns, and points among the weights (``z`` of the schedule-free optimizers, ``p0`` of
Prodigy, ``ax`` of ASGD).

Where a schedule-free optimizer changes its mode, the weights that it puts in place go the way of
an update: ``remainder`` and ``compensation`` are those of the weights that are in place, and
``rounding_step`` counts the change.

``"8bit"`` keeps a byte for each number and a scale for each 128 of them, see :mod:`.codes`, in the
states ``NAME_codes`` and ``NAME_scales``. Parameters with fewer than 4,096 elements, and states
that are no moments (schedule-free's ``z``, say), have float32 instead. State dicts hold float32
under torch's names, which becomes the same codes again when it is loaded; with ``compact_state``
they hold codes and scales.

Example:
    >>> import torch
    >>> from optimplug.optim import SGD
    >>> w = torch.tensor([1.0], dtype=torch.bfloat16, requires_grad=True)
    >>> optimizer = SGD([w], lr=1e-3, rounding="exact")
    >>> for _ in range(100):
    ...     w.grad = torch.ones_like(w)
    ...     optimizer.step()
    >>> w  # a step alone is too small to be seen
    tensor([0.8984], dtype=torch.bfloat16, requires_grad=True)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from optimplug._core.optim.executions.ops import apply
from optimplug._core.optim.rule import (
    Hyper,
    Operand,
    Rule,
    StateSpec,
    coded_names,
    wide_type,
)
from optimplug._core.optim.storage.arguments import DTYPES, Rounding, StateDtype, check_ways
from optimplug._core.optim.storage.codes import CODES, SMALLEST, CodeName, offset
from optimplug.errors import ArgumentError

__all__ = [
    "LOW_BITS",
    "StoredRule",
    "stored",
    "stored_as_asked",
]

_TEMPORARIES = {"nearest": 0, "stochastic": 4, "exact": 6, "kahan": 9}
"""The operands that each holds at once, beside the rule's."""
_GOLDEN = 0.6180339887498949
_MOST_LEFT_OUT = 2**-7
"""A rounding leaves out less than this part of a weight: more is that of a weight before it was
overwritten."""


def _empty(dtype: torch.dtype, name: str) -> StateSpec:
    return StateSpec(name, dtype=dtype, late=True, is_weight=True)


LOW_BITS = {
    "exact": _empty(torch.int16, "remainder"),
    "kahan": _empty(torch.bfloat16, "compensation"),
}
"""What a rounding keeps beside the weight."""


@dataclass(frozen=True)
class StoredRule(Rule):
    """A rule whose weights and moments are kept in a way of their own."""

    inner: Rule
    rounding: Rounding = "nearest"
    kept: StateDtype | None = None
    """How are kept the moments that the rule keeps; None: as it says itself."""
    wide: torch.dtype | None = None
    """The type of what else it keeps: means over rows and columns, which are small, and points
    among the weights; None: as it says itself."""

    fused_dtypes: ClassVar = ()  # torch's operators know of none of it
    widens: ClassVar = True

    def __post_init__(self) -> None:
        own = {field.name for field in fields(self)} | {"fused_dtypes", "widens"}
        for name in Rule.__annotations__.keys() - own:
            object.__setattr__(self, name, getattr(self.inner, name))
        found = {
            "temporaries": self.inner.temporaries + _TEMPORARIES[self.rounding],
            "draws": self.rounding == "stochastic",
            "counts_in_groups": self.inner.counts_in_groups or self._counts,
            "codes": self._codes(),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    @property
    def _counts(self) -> bool:
        """Whether the rounding depends on the number of the step, where the rule has no count."""
        coded = self.kept == "8bit" and not self.inner.counts_steps
        return coded or self.rounding in ("stochastic", "kahan")

    def _codes(self) -> Mapping[str, CodeName]:
        if self.kept != "8bit":
            return {}
        specs = [spec for spec in self.inner.state if spec.over is None and not spec.is_weight]
        return {spec.name: spec.code for spec in specs if spec.code is not None}

    @cached_property
    def saved(self) -> tuple[StateSpec, ...]:
        specs = map(self._saved, self.inner.state)
        return (*specs, *([LOW_BITS[self.rounding]] if self.rounding in LOW_BITS else []))

    @cached_property
    def state(self) -> tuple[StateSpec, ...]:
        return tuple(
            column
            for spec in self.saved
            for column in (_columns(spec) if spec.name in self.codes else [spec])
        )

    def _saved(self, spec: StateSpec) -> StateSpec:
        apart = spec.is_point or spec.over is not None
        dtype = self.wide if apart or self.kept is None else DTYPES[self.kept]
        return spec if dtype is None else spec._replace(dtype=dtype)

    @property
    def kind(self) -> type[Rule]:
        return self.inner.kind

    def refusal(self, p: Tensor) -> str | None:
        if self.rounding != "nearest" and p.dtype == torch.float16:
            return (
                f"rounding={self.rounding!r} is for bfloat16, without effect on wider parameters, "
                "but one is float16; use rounding='nearest', or bfloat16 or float32"
            )
        if self.kept is not None and p.is_complex():
            return "state_dtype is for real parameters, but one is complex; leave it out for it"
        return self.inner.refusal(p)

    def suited(self, p: Tensor) -> Rule:
        """Return the variant for a parameter, by its type.

        Raises:
            ArgumentError: it has none for this type.
        """
        problem = self.refusal(p)
        if problem is not None:
            raise ArgumentError(problem)
        inner = self.inner.suited(p)
        small = self.kept == "8bit" and p.numel() < SMALLEST
        kept: StateDtype | None = "float32" if small else self.kept
        if self.rounding == "nearest" or p.dtype != torch.bfloat16:
            wide = wide_type(p)
            return inner if kept is None else _stored(inner, "nearest", kept, wide)
        return _stored(inner, self.rounding, kept or "float32", torch.float32)

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        found = self.inner.coefficients(hyper, t)
        if self.rounding == "kahan":
            found["dither"] = int(hyper.get("rounding_step", 0) * _GOLDEN % 1 * 65536)
        if self.codes:
            found["offset"] = offset(
                t if self.inner.counts_steps else hyper.get("rounding_step", 0)
            )
        return found

    def next_scalars(self, hyper: Hyper, t: float) -> dict[str, Any]:
        return self.inner.next_scalars(hyper, t)

    def next_settings(self, hyper: Hyper, totals: Mapping[str, float]) -> dict[str, Any]:
        found = self.inner.next_settings(hyper, totals)
        return {**found, **self._next_step(hyper)} if self._counts else found

    def pools(self, hypers: Sequence[Hyper]) -> list[list[int]]:
        return self.inner.pools(hypers)

    def mixing(self, hyper: Hyper) -> float | Tensor | None:
        return self.inner.mixing(hyper)

    def _next_step(self, hyper: Hyper) -> dict[str, Any]:
        return {"rounding_step": hyper.get("rounding_step", 0) + 1}

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> Any:
        if self.rounding == "nearest":
            return self.inner.update(p, g, state, k)
        weight = self._weight(p, state)
        found = self.inner.update(weight, g, state, k)
        if self.rounding == "exact":
            state["remainder"].copy_(apply("hidden", weight))
            p.copy_(apply("visible", weight))
        elif self.rounding == "stochastic":
            p.copy_(apply("drawn", weight, state["random"]))
        else:
            _compensate(p, weight, state["compensation"], k["dither"])
        return found

    def _weight(self, p: Operand, state: Mapping[str, Operand]) -> Operand:
        """Return the weight that ``p`` stands for, apart from it."""
        match self.rounding:
            case "exact":
                return apply("joined", p, state["remainder"])
            case "kahan":
                return p.add(_within(state["compensation"], p.abs().mul_(_MOST_LEFT_OUT)))
            case _:
                return p.mul(1.0)


def _within(x: Operand, most: Operand) -> Operand:
    """Return numbers between ``-most``, which is overwritten, and ``most``."""
    return x.minimum(most).maximum(most.neg_())


def _compensate(p: Operand, weight: Operand, compensation: Operand, dither: Any) -> None:
    """Move ``p`` to a new weight, and keep what is left out of it."""
    change = weight.add(p, alpha=-1.0)
    # Where one of them is not finite, the difference would be NaN.
    moved = apply("narrowed", apply("finite_or", p.add(change), weight))
    left = change.add_(p.add(moved, alpha=-1.0))
    compensation.copy_(apply("drawn", apply("finite_or", left, 0.0), dither))
    p.copy_(moved)


def _columns(spec: StateSpec) -> tuple[StateSpec, StateSpec]:
    """Return the codes of a state and their scales; both begin with what it begins with."""
    assert spec.code is not None
    code, (codes, scales) = CODES[spec.code], coded_names(spec.name)
    value = spec.value
    levels = None if value is None else lambda hyper: code.levels if value(hyper) else 0
    return (
        StateSpec(codes, dtype=code.dtype, late=spec.late, value=levels),
        StateSpec(scales, dtype=torch.float32, late=spec.late, value=value, per_block=True),
    )


_stored = lru_cache(StoredRule)  # asked for at every step, for every group


def stored(rule: Rule, hyper: Hyper) -> Rule:
    """Return a rule with the storage that a group asks for.

    It may be a part of the group's own, as that which changes the mode of a schedule-free one.
    """
    rounding, dtype = hyper.get("rounding", "nearest"), hyper.get("state_dtype")
    if rounding == "nearest" and dtype is None:
        return rule
    return _stored(rule, cast("Rounding", rounding), cast("StateDtype | None", dtype))


_check_ways = lru_cache(check_ways)  # asked at every step, for every group; an error is not kept


def stored_as_asked(rule: Rule, hyper: Hyper) -> Rule:
    """Return the same for a group's own rule, of which it may ask what there is not.

    Raises:
        ArgumentError: it does: between two steps it may have been given another storage.
    """
    rounding, dtype = hyper.get("rounding", "nearest"), hyper.get("state_dtype")
    if rounding != "nearest" or dtype is not None:
        _check_ways(rule, rounding, dtype, "this optimizer")
    return stored(rule, hyper)
