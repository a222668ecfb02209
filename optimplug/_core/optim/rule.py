"""What an update rule is: the state it keeps, its scalars, its math.

A rule is written once, in Tensor's own method names. What it is run on decides how it executes: a
Tensor is the reference, a TensorList runs each operation on many tensors at once, a Functional lets
autograd flow through, and symbols write down a program that is compiled. The operations that a rule
may use are the rows of one table, :data:`optimplug._core.optim.executions.ops.OPERATIONS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from optimplug._core.optim.counts import Count
from optimplug._core.optim.shards import local, reduced_zeros
from optimplug._core.optim.storage.codes import BLOCK, CodeName

__all__ = [
    "FusedCall",
    "Hyper",
    "Operand",
    "Rule",
    "ScalarSpec",
    "StateSpec",
    "coded_names",
    "wide_type",
]

Hyper: TypeAlias = Mapping[str, Any]
"""The hyperparameters of one group."""

Operand: TypeAlias = Any
"""A Tensor, or anything else that has the operations of a Tensor that stand in the table."""


def _zeros_like(p: Tensor) -> Tensor:
    return torch.zeros_like(p, memory_format=torch.preserve_format)


def wide_type(p: Tensor) -> torch.dtype | None:
    """Return float32 for a parameter of a narrow type; None for another, whose own is enough."""
    return torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else None


class StateSpec(NamedTuple):
    """One tensor that a rule keeps for each parameter, and how it begins.

    Example:
        >>> rows = StateSpec("row_var", over=-1, dtype=torch.float32)
        >>> rows.create(torch.ones(3, 4, dtype=torch.bfloat16), {}).shape
        torch.Size([3, 1])
    """

    name: str
    """Its key in the state; torch's, where torch has such a state."""
    init: Callable[[Tensor], Tensor] = _zeros_like
    """Its first value, from the parameter, or from a tensor of its ``dtype``."""
    over: int | None = None
    """The axis of the parameter, counted from the end, that its values are means over; they begin
    with zeros. None: it has the parameter's shape."""
    keeps_axis: bool = True
    """Whether that axis stays, with one element."""
    dtype: torch.dtype | None = None
    """Its type; None for the parameter's own."""
    late: bool = False
    """Whether a checkpoint may lack it: then it begins when the run goes on."""
    value: Callable[[Hyper], float | Tensor] | None = None
    """What each of its elements begins with, from the group's hyperparameters; None: ``init`` says
    so. Of a complex number both parts begin with it."""

    is_weight: bool = False
    """Whether it is a part of the weight: that it is missing says nothing of how often the
    parameter has stepped."""
    may_be_flat: bool = False
    """Whether it may be loaded in one dimension, or as one number for all."""
    is_point: bool = False
    """Whether it stands where weights do, and is no moment: it is never kept narrower than in
    float32 unless the weights are, as it would stop to move like them."""
    code: CodeName | None = "signed"
    """The code that it may be kept in, see :mod:`.storage.codes`; None where it must not be. What a
    rule divides by, or what is never negative, is ``"unsigned"``."""
    per_block: bool = False
    """Whether it has one value for each block of the elements that are here, in their order."""

    def shape_for(self, p: Tensor) -> tuple[int, ...]:
        """Return the shape that it has for a parameter."""
        if self.per_block:
            return (-(-local(p).numel() // BLOCK),)
        if self.over is None:
            return tuple(p.shape)
        axis = p.dim() + self.over
        return (*p.shape[:axis], *([1] if self.keeps_axis else []), *p.shape[axis + 1 :])

    def create(self, p: Tensor, hyper: Hyper) -> Tensor:
        """Return its first value for a parameter of a group with these hyperparameters."""
        if self.over is not None:
            return reduced_zeros(p, self.shape_for(p), self.over, self.dtype or p.dtype)
        if self.per_block:
            number = 0.0 if self.value is None else float(self.value(hyper))
            return local(p).new_full(self.shape_for(p), number, dtype=self.dtype)
        if self.init is _zeros_like and self.value is None:
            return torch.zeros_like(p, dtype=self.dtype, memory_format=torch.preserve_format)
        start = self.init(p if self.dtype is None else p.to(self.dtype))
        if self.value is None:
            return start
        number = float(self.value(hyper))
        return start.fill_(complex(number, number) if p.is_complex() else number)


def coded_names(name: str) -> tuple[str, str]:
    """Return under which keys the codes of a state and their scales are kept."""
    return f"{name}_codes", f"{name}_scales"


class ScalarSpec(NamedTuple):
    """One number that a rule keeps for each parameter beside ``step``, and how it begins."""

    name: str
    """Its key in the state, where it is a tensor of no dimension; torch's."""
    first: Callable[[Hyper], float]
    """What it begins with, from the group's hyperparameters."""
    is_product: bool = False
    """Whether :meth:`Rule.next_scalars` returns a factor of it, and not what it becomes."""


class FusedCall(NamedTuple):
    """What a fused operator works on: tensors that share their hyperparameters."""

    params: list[Tensor]
    """Updated in place."""
    grads: list[Tensor]
    """Overwritten with their quotient by ``grad_scale``, where that is given."""
    state: Mapping[str, list[Tensor]]
    """For each of :attr:`Rule.state`, by name, one tensor per parameter."""
    hyper: Hyper
    steps: list[Tensor]
    """For each parameter the number of this update; empty where the rule does not count."""
    first: bool
    """Whether this is the first update of these parameters."""
    grad_scale: Tensor | None
    """What the gradients are too large by."""
    found_inf: Tensor | None
    """Where it holds 1, nothing is changed."""


class Rule(ABC):
    """An update rule, with its variants fixed.

    Rules are values: two groups whose rules are equal can share a batch.
    """

    scope: ClassVar[Literal["element", "tensor", "matrix"]] = "element"
    """How much of a parameter the rule must see at once.

    ``"element"``: each element by itself, so a parameter may be cut, compiled and sharded.
    ``"tensor"``: the whole tensor, for its norms. ``"matrix"``: the whole matrix.
    """

    counts_steps: ClassVar[bool] = True
    """Whether the state has torch's ``step``, and ``t`` is its count.

    Where not, ``t`` only tells a parameter's first update (1) from its later ones (2).
    """

    scalars: ClassVar[tuple[ScalarSpec, ...]] = ()
    """The numbers kept for each parameter, by a rule that counts.

    :meth:`next_scalars` moves them on. :meth:`coefficients` finds them among the hyperparameters,
    and what they become with ``next_`` before the name.
    """

    counts_in_groups: ClassVar[bool] = False
    """Whether a group's own settings move on with each step, as :meth:`next_settings` says."""

    measures: ClassVar[tuple[str, ...]] = ()
    """The names of what :meth:`update` returns: for each tensor numbers, whose sums over the group
    :meth:`next_settings` is given."""

    takes_complex: ClassVar[bool] = True
    """Whether parameters may be complex; they are then pairs of real numbers to it."""

    takes_sparse: ClassVar[bool] = False
    """Whether gradients may be sparse."""

    only_sparse: ClassVar[bool] = False
    """Whether gradients must be sparse: the elements that they hold are updated, and no others."""

    variant_state: ClassVar[tuple[str, ...]] = ()
    """Names of state that some variants of the rule keep: another run may have left it behind."""

    temporaries: ClassVar[int] = 2
    """How many operands as large as the parameters an update holds at once, at the most."""

    widens: ClassVar[bool] = False
    """Whether it computes in float32 where its operands are narrower."""

    draws: ClassVar[bool] = False
    """Whether :meth:`update` finds random numbers under ``random`` among the states: for each
    element a whole number from 0 to 65535, which is kept nowhere."""

    storage_refusal: ClassVar[str | None] = None
    """Why its weights and states can not be stored in a way of their own; None where they can."""
    codes: Mapping[str, CodeName] = MappingProxyType({})
    """The states that are kept in eight bits, and the code of each. They are numbers to
    :meth:`update`; among :attr:`state` each is two, which :func:`coded_names` names."""

    fused_dtypes: ClassVar[tuple[torch.dtype, ...]] = ()
    """For which types :meth:`fused` is right; none where the rule has no such operator."""

    fused_captures: ClassVar[bool] = False
    """Whether a CUDA graph may record :meth:`fused`, which then reads rate and count on a GPU."""

    @property
    def kind(self) -> type[Rule]:
        """Whose math it is, however weights and states are stored."""
        return type(self)

    @property
    @abstractmethod
    def state(self) -> tuple[StateSpec, ...]:
        """The tensors kept for each parameter."""

    @cached_property
    def state_names(self) -> tuple[str, ...]:
        """The names of :attr:`state`, in its order."""
        return tuple(spec.name for spec in self.state)

    @property
    def saved(self) -> tuple[StateSpec, ...]:
        """The same as state dicts have it: torch's, where torch has such an optimizer."""
        return self.state

    @cached_property
    def saved_as(self) -> Mapping[str, StateSpec]:
        """:attr:`saved` by name."""
        return {spec.name: spec for spec in self.saved}

    @cached_property
    def never_late(self) -> tuple[str, ...]:
        """What no state that was saved may lack."""
        return (*self.number_names, *(spec.name for spec in self.saved if not spec.late))

    @cached_property
    def operand_names(self) -> tuple[str, ...]:
        """The names of what :meth:`update` finds among the states."""
        names = tuple(spec.name for spec in self.saved)
        return (*names, "random") if self.draws else names

    @cached_property
    def number_names(self) -> tuple[str, ...]:
        """The names of what is counted for each parameter, and of what is kept beside it."""
        return ("step", *(spec.name for spec in self.scalars)) if self.counts_steps else ()

    def refusal(self, p: Tensor) -> str | None:
        """Return why a parameter of this shape can not be updated so; None where it can."""
        return None

    def suited(self, p: Tensor) -> Rule:
        """Return the variant of the rule that a parameter of this shape and type needs."""
        return self

    @abstractmethod
    def coefficients(self, hyper: Hyper, t: Count) -> dict[str, Any]:
        """Return the scalars of update number ``t`` (from 1) for a group's hyperparameters.

        They are numbers, or tensors where a hyperparameter is one.
        """

    def next_scalars(self, hyper: Hyper, t: Count) -> dict[str, Any]:
        """Return what :attr:`scalars` are after update number ``t``."""
        return {}

    def next_settings(self, hyper: Hyper, totals: Mapping[str, float]) -> dict[str, Any]:
        """Return what changes in a group's settings by a step, once any of it had a gradient.

        Args:
            hyper: the settings that the step was done with.
            totals: the sums of :attr:`measures`, by name; empty where no tensor had a gradient.
        """
        return {}

    def pools(self, hypers: Sequence[Hyper]) -> list[list[int]]:
        """Return which of these groups, by position, share the sums of :attr:`measures`."""
        return [[i] for i in range(len(hypers))]

    def mixing(self, hyper: Hyper) -> float | Tensor | None:
        """Return how much of an average is in the weights that a group trains with.

        The rest of them is the state ``z``. A rule that has it validates with that average, and its
        groups have the keys ``train_mode`` and ``k``; see :mod:`.modes`. None: it has no modes.
        """
        return None

    @abstractmethod
    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> Any:
        """Update ``p`` and ``state`` in place from the gradient ``g``; leave ``g`` as it is.

        What it returns is by the names of :attr:`measures`, where it has any.

        It may branch on the rule's own fields, and on whether a coefficient is a given number.
        """

    def fused(self, call: FusedCall) -> None:
        """Do the whole update of tensors that share their hyperparameters in one pass."""
        raise NotImplementedError(f"{type(self).__name__} has no fused operator")
