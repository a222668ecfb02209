"""What recipes have frozen in models, so that the next one, and the end of a run, can undo it.

A model does not tell by itself who has set ``requires_grad`` to False, its user or a recipe. That
is remembered here, for as long as there is the model, by module and name: parameters may be
replaced while they are frozen, as ``module.to`` and sharding do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

from optimplug._core.internals import parameters_by_name

__all__ = ["Freezing", "freeze", "freezings_in", "kept_freezings", "require_gradients"]

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
                parameter = parameters_by_name(module).get(name)
                # What has been quantized since cannot have gradients any more.
                if parameter is not None and parameter.is_floating_point():
                    parameter.requires_grad_(True)


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
    for parameter in frozen:
        parameter.requires_grad_(False)


@contextmanager
def kept_freezings(model: nn.Module) -> Iterator[None]:
    """Put back, after the block, what is frozen in a model, and which recipes have frozen it."""
    held = {module: dict(_held[module]) for module in model.modules() if module in _held}
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module in model.modules():
            _held.pop(module, None)
        _held.update(held)
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
