"""What recipes have frozen in models, so that the next one, and the end of a run, can undo it.

A model does not tell by itself who has set ``requires_grad`` to False, its user or a recipe. That
is remembered here, for as long as there is the model, by module and name: parameters may be
replaced while they are frozen, as ``module.to`` and sharding do.

A copy of a model on which a run is open is frozen as that is. It belongs to no run, and the next
recipe on it undoes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from optimplug._core.internals import parameters_by_name

__all__ = [
    "FreezeWatch",
    "Freezing",
    "follow_copies",
    "freeze",
    "freezings_in",
    "kept_freezings",
    "require_gradients",
]

_MARK = "_optimplug_frozen"

_held: WeakKeyDictionary[nn.Module, dict[str, Freezing]] = WeakKeyDictionary()
"""By module, and by its own name for a parameter: who has frozen it."""


class Freezing:
    """The parameters that one recipe has frozen, until it or the next recipe undoes it."""

    def release(self, *within: nn.Module) -> None:
        """Let them require gradients again; not those that another recipe has frozen since.

        Args:
            within: the modules in which to look; left out: all that there are.
        """
        for module in within or list(_held):
            names = _held.get(module, {})
            for name in [name for name, holder in names.items() if holder is self]:
                del names[name]
                if not names:
                    vars(module).pop(_MARK, None)
                parameter = parameters_by_name(module).get(name)
                # What has been quantized since cannot have gradients any more.
                if parameter is not None and parameter.is_floating_point():
                    parameter.requires_grad_(True)


class _Mark:
    """Stands on a module of which something is frozen, so that its copies are known to be so.

    A module that is pickled has None in its place.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = ref(module)

    def __deepcopy__(self, memo: dict[Any, Any]) -> _Mark | None:
        module = self._module()
        copied = memo.get(id(module))
        if module is None or copied is None:  # the mark is copied without what it stands on
            return None
        # One for all modules of a copied model; it has no run that could end.
        freezing = memo.setdefault(_MARK, Freezing())
        _held[copied] = dict.fromkeys(_held.get(module, {}), freezing)
        return _Mark(copied)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def follow_copies(model: nn.Module) -> None:
    """Let copies of a model be known to be frozen by a recipe, until it gives the parameters back.

    For that something stands on the modules, and so it is for runs, which have an end.
    """
    for module in model.modules():
        if _held.get(module):
            vars(module)[_MARK] = _Mark(module)


class _Count:
    freezings = 0
    """How often a recipe has frozen anything, in any model."""


class FreezeWatch:
    """Tells which of some parameters another recipe has frozen, at next to no cost.

    Args:
        model: holds the parameters.
        parameters: none of them is frozen by a recipe yet.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        self._model = model
        self._parameters = {id(p) for p in parameters}
        self._count = _Count.freezings

    def frozen_since(self) -> list[str]:
        """Return their names, in the order of the model; empty as long as nothing was frozen."""
        if self._count == _Count.freezings:
            return []
        found = [
            f"{path}.{name}" if path else name
            for path, module in self._model.named_modules()
            for name in _held.get(module, {})
            if id(parameters_by_name(module).get(name)) in self._parameters
        ]
        if not found:
            self._count = _Count.freezings
        return found


def freeze(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Let these of a model's parameters require no gradients, and no others for a recipe's sake.

    What somebody else has frozen stays frozen, whichever recipe comes next.
    """
    for earlier in freezings_in(model):
        earlier.release(*model.modules())
    frozen = {parameter for parameter in parameters if parameter.requires_grad}
    own = Freezing()
    for module in model.modules():
        # A tied parameter is held under each of its names.
        for name, parameter in parameters_by_name(module).items():
            if parameter in frozen:
                _held.setdefault(module, {})[name] = own
    _Count.freezings += bool(frozen)
    for parameter in frozen:
        parameter.requires_grad_(False)


@contextmanager
def kept_freezings(model: nn.Module) -> Iterator[None]:
    """Put back, after the block, what is frozen in a model, and which recipes have frozen it."""
    held = {module: dict(_held[module]) for module in model.modules() if module in _held}
    marked = {module: vars(module)[_MARK] for module in held if _MARK in vars(module)}
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module in model.modules():
            _held.pop(module, None)
            vars(module).pop(_MARK, None)
        _held.update(held)
        for module, mark in marked.items():
            vars(module)[_MARK] = mark
        for parameter, requires in required:
            parameter.requires_grad_(requires)


def freezings_in(model: nn.Module) -> set[Freezing]:
    """Return what holds any parameter of a model: of one recipe, or of several for its parts."""
    return {holder for module in model.modules() for holder in _held.get(module, {}).values()}


def require_gradients(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that require gradients, or would if no recipe had frozen them."""
    found = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for module in model.modules():
        own = parameters_by_name(module)
        found.update(p for name in _held.get(module, {}) if (p := own.get(name)) is not None)
    return found
