"""Profile: what an optimizer costs and where it runs, derived from its rule."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from optimplug._core.optim.executions.choice import is_compiled
from optimplug._core.optim.facts import Facts
from optimplug._core.optim.memory import state_bytes
from optimplug._core.optim.multi import MultiOptimizer
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Rule
from optimplug._core.optim.storage.arguments import DTYPES
from optimplug.errors import ArgumentError

__all__ = ["Profile", "profile_of"]

_SIDE = 1024  # of a matrix, large enough that its counter and its sides do not show
_SHARDING = {"element": ("FSDP1", "DTensor"), "tensor": ("DTensor",), "matrix": ("DTensor",)}


class Profile(NamedTuple):
    """All that a user must know of an optimizer before choosing it."""

    name: str
    facts: Facts
    state_bytes: float | None
    """Of a float32 parameter with two dimensions, for each of its elements; None where that, and
    all below, is up to each group's own optimizer."""
    state_bytes_of_vectors: float | None
    """The same of one with a single dimension; None where the optimizer takes none."""
    state_bytes_with: Mapping[str, float]
    """The same of matrices, by each argument with which it keeps more."""
    executions: tuple[str, ...]
    """The ways to run it, the fastest first; see :mod:`optimplug._core.optim.executions.choice`."""
    storage: tuple[str, ...]
    """How the state of a float32 parameter can be kept: what ``state_dtype`` may be."""
    sharding: tuple[str, ...]
    """What may have cut its parameters: FSDP1 leaves parts of flattened ones, FSDP2 DTensors."""


def profile_of(cls: type[Optimizer]) -> Profile:
    """Return what is known of an optimizer, and what follows from its rule.

    Of :class:`~optimplug.optim.MultiOptimizer` nothing follows but from each group's.

    Example:
        >>> from optimplug.optim import Lion
        >>> profile_of(Lion).state_bytes
        4.0
    """
    if cls is MultiOptimizer:
        return Profile(cls.__name__, cls.facts, None, None, {}, (), (), ())
    optimizer = _over(cls, (_SIDE, _SIDE))
    arguments = inspect.signature(cls).parameters
    rule = optimizer.rule(optimizer.param_groups[0])
    return Profile(
        name=cls.__name__,
        facts=cls.facts,
        state_bytes=_bytes(optimizer),
        state_bytes_of_vectors=_bytes_of_vectors(cls),
        state_bytes_with={
            key: _bytes(_over(cls, (_SIDE, _SIDE), **{key: value}))
            for key, value in cls.facts.options.items()
        },
        executions=tuple(_executions(rule, optimizer.defaults)),
        storage=tuple(_storage(cls)) if "state_dtype" in arguments else ("float32",),
        sharding=_SHARDING[rule.scope] if cls.facts.sharded else (),
    )


def _over(cls: type[Optimizer], shape: tuple[int, ...], **options: Any) -> Optimizer:
    """Return an optimizer of that class over one parameter, which takes no memory."""
    return cls([torch.nn.Parameter(torch.empty(shape, device="meta"))], **options)


def _storage(cls: type[Optimizer]) -> Iterator[str]:
    for kind in DTYPES:
        try:
            _over(cls, (_SIDE, _SIDE), state_dtype=kind)
        except ArgumentError:  # it has nothing that could be kept so
            continue
        yield kind


def _bytes(optimizer: Optimizer) -> float:
    return round(state_bytes(optimizer) / _SIDE**2, 1)


def _bytes_of_vectors(cls: type[Optimizer]) -> float | None:
    try:
        return _bytes(_over(cls, (_SIDE * _SIDE,)))
    except ArgumentError:  # it is for matrices alone
        return None


def _executions(rule: Rule, defaults: Mapping[str, Any]) -> list[str]:
    found = {
        "compiled": is_compiled(rule),
        "fused": bool(rule.fused_dtypes),
        "foreach": "foreach" in defaults,
        "loop": True,
        "differentiable": "differentiable" in defaults,
    }
    return [name for name, there in found.items() if there]
