"""Names for a state that has none: by the order in which optimizers are given parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from optimplug import optim
from optimplug.errors import StateError
from optimplug.recipe.checkpoint.differences import OwnGroup
from optimplug.recipe.checkpoint.saved import Saved

__all__ = ["misfit", "named_by_order"]

Order = Sequence[Sequence[str]]
"""The names of the parameters of each saved group."""


def named_by_order(
    saved: Saved, own: Sequence[OwnGroup], parameters: Mapping[str, Tensor], known: Sequence[Order]
) -> Saved:
    """Return a state with names for its parameters, if an order fits and all shapes agree.

    Args:
        saved: a state without names.
        own: the groups that it may have been saved of.
        parameters: those of the model, in its order.
        known: orders that a trainer would have had.

    Raises:
        StateError: no order fits.
    """
    sizes = [len(group.numbers) for group in saved.groups]
    wrong = "no order of the model's parameters has groups of these sizes"
    for order in _orders(own, parameters, known):
        if [len(names) for names in order] == sizes:
            found = saved.named(order, _NOTE)
            problem = _problem(found, own, parameters)
            if problem is None:
                return found
            wrong = problem
    raise StateError(
        "the checkpoint has no names of parameters, and its state cannot be matched by their "
        f"order: its groups have {sizes} parameters, and {wrong}; save it with names "
        "(torch.optim.AdamW(model.named_parameters())), or give resume='weights' to begin anew"
    )


_NOTE = (
    "the checkpoint has no names of parameters: their states were matched by their order, in which "
    "all shapes agree"
)


def _orders(
    own: Sequence[OwnGroup], parameters: Mapping[str, Tensor], known: Sequence[Order]
) -> Iterator[Order]:
    yield from known
    yield [group.names for group in own]
    yield [[*parameters]]
    yield [[name for name, p in parameters.items() if p.requires_grad]]


def _problem(saved: Saved, own: Sequence[OwnGroup], parameters: Mapping[str, Tensor]) -> str | None:
    """Return what does not agree in an order, in words."""
    groups = {name: group for group in own for name in group.names}
    for name, number in saved.numbers.items():
        group, p = groups.get(name), parameters.get(name)
        if p is not None:
            found = misfit(name, p, saved.state.get(number, {}), group)
            if found is not None:
                return found
    return None


def misfit(
    name: str, p: Tensor, kept: Mapping[str, Any], own: OwnGroup | None = None
) -> str | None:
    """Return what of a parameter's state has another shape than it must have; None if nothing.

    Args:
        name: of the parameter.
        p: the parameter.
        kept: its state.
        own: the group that it is in; None where it is in none.
    """
    for key, shape in _shapes(p, kept, own).items():
        value = kept.get(key)
        if isinstance(value, Tensor) and value.numel() > 1 and tuple(value.shape) != shape:
            return f"{key} of {name} has the shape {tuple(value.shape)}, the parameter {shape}"
    return None


def _shapes(
    p: Tensor, kept: Mapping[str, Any], own: OwnGroup | None
) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of each state whose shape is known."""
    whole = tuple(p.shape)
    if own is None or not issubclass(own.cls, optim.Optimizer):
        # What keeps rows and columns, or one state for all, is known by its words alone.
        apart = ("row", "col", "RMS", "step", "flat", "old", "ro", "al", "d")
        return {k: whole for k in kept if not any(word in k.split("_") for word in apart)}
    rule = own.cls.stored_rule(own.group).suited(p)
    found = {spec.name: spec.shape_for(p) for spec in rule.saved if not spec.may_be_flat}
    return {**dict.fromkeys(rule.variant_state, whole), **found}
