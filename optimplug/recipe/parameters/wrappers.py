"""Wrappers of modules, which are no part of a parameter's name: DataParallel, torch.compile, ..."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from optimplug._core.internals import WRAPPED_AS, children_by_name, with_children

__all__ = ["without_wrappers"]

# What each calls the module that it wraps. Only these classes: a module of the user's own may have
# a part that is called `module`.
_NAMED_MODULE = (nn.DataParallel, DistributedDataParallel)


def without_wrappers(model: nn.Module) -> nn.Module:
    """Return a model as it is without wrappers, around it or anywhere in it.

    Parameters, and modules without wrappers in them, are the same objects. Of a module around a
    wrapper there is a copy, which is good for looking at its class and at its parts alone. The
    model itself does not change, and is returned where there is no wrapper.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 2, bias=False)))
        >>> [name for name, _ in without_wrappers(model).named_parameters()]
        ['0.weight', '0.bias', '1.weight']
    """
    return _bare(model, {})


def _bare(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in known:  # a module may be there under several names
        inner = _inside(module)
        known[module] = _with_bare_children(module, known) if inner is None else _bare(inner, known)
    return known[module]


def _inside(module: nn.Module) -> nn.Module | None:
    """Return the module that this one wraps, or None if it is no wrapper."""
    children = children_by_name(module)
    names = ("module",) if isinstance(module, _NAMED_MODULE) else WRAPPED_AS
    return next((children[name] for name in names if name in children), None)


def _with_bare_children(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    children = children_by_name(module)
    bare = {n: child if child is None else _bare(child, known) for n, child in children.items()}
    if all(bare[name] is child for name, child in children.items()):
        return module
    return with_children(module, bare)
