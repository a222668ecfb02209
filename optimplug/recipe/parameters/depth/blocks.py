"""How much a module looks like a layer of a network, and in which order modules are used."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from optimplug._core.internals import children_by_name, parameters_by_name
from optimplug.recipe.parameters.code.forward import used
from optimplug.recipe.parameters.kinds import is_norm

__all__ = [
    "BLOCK",
    "COMPOSED",
    "SINGLE",
    "Tower",
    "alike",
    "elements_of",
    "forward_ranks",
    "grade_of",
    "is_list",
    "weights",
]

Tower = tuple[tuple[str, ...], ...]
"""The paths of the modules of each layer, lowest layer first."""

# How much a module looks like a layer of a network: a single operation, such as Linear; a module
# made of modules; or a block, which has weights and a norm between them.
SINGLE, COMPOSED, BLOCK = range(3)


def forward_ranks(module: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Number the children and parameters of a module in the order in which ``forward`` uses them.

    If its code does not name all of ``names``, all are numbered as they are registered.
    """
    order = used(type(module))  # type: ignore[arg-type]  # a class is hashable
    if all(name in order for name in names):
        return order
    return {
        name: i for i, name in enumerate([*parameters_by_name(module), *children_by_name(module)])
    }


def elements_of(module: nn.Module, path: str) -> dict[str, nn.Module]:
    """Return the children of a module that have parameters, by their full names."""
    # named_children() would leave out a module that is there twice; it is two layers all the same.
    children = children_by_name(module).items()
    prefix = f"{path}." if path else ""
    # What has no parameters, an activation or dropout, is nothing to learn at a rate.
    return {
        f"{prefix}{name}": child
        for name, child in children
        if child is not None and next(child.parameters(), None) is not None
    }


def grade_of(module: nn.Module) -> int:
    """Tell how much a module looks like a layer: SINGLE, COMPOSED or BLOCK."""
    if isinstance(module, nn.ModuleList):
        return max(map(grade_of, module), default=SINGLE)
    if not any(True for _ in module.children()):
        return SINGLE
    has_norm = any(is_norm(part) for part in module.modules())
    return BLOCK if has_norm and weights(module) > 1 else COMPOSED


def is_list(module: nn.Module) -> bool:
    """Tell whether a module is one of torch's lists of modules."""
    return isinstance(module, nn.Sequential | nn.ModuleList)


def weights(module: nn.Module) -> int:
    """Count the weights of a module; what has one dimension is a bias or a norm's."""
    return sum(parameter.ndim > 1 for parameter in module.parameters())


def alike(one: nn.Module, other: nn.Module, share: float = 0.5) -> bool:
    """Tell whether two modules have this share of the names of their parameters in common."""
    names, others = ({name for name, _ in m.named_parameters()} for m in (one, other))
    return len(names & others) >= share * len(names | others)
