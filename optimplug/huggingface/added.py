"""Parameters that a Trainer trains beside those of its model, as losses may have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from optimplug._core.internals import children_by_name, with_children
from optimplug.errors import RecipeError
from optimplug.recipe.parameters.wrappers import without_wrappers

__all__ = ["by_either_name", "plain_names"]

_Built = TypeVar("_Built")


def by_either_name(model: nn.Module, loss: object, build: Callable[[nn.Module], _Built]) -> _Built:
    """Build something of all that is trained, by its names in a recipe.

    Where the loss has parameters of its own, they stand beside the model's, as ``loss.*``; or else
    all have the names that the Trainer itself gives them, where the loss stands around the model:
    ``classifier.*`` and ``model.*``.

    Args:
        model: what is trained.
        loss: the Trainer's: a module, a dict of them, or anything else, which adds nothing.
        build: called with a module, a second time if the names of the first are not the recipe's.

    Raises:
        RecipeError: the recipe fits by neither names; those of the first are told.
    """
    around = _around(loss)
    own = {id(p) for p in model.parameters()}
    if all(id(p) in own for p in around.parameters()):
        return build(model)
    try:
        return build(_beside(model, around))
    except RecipeError as error:
        try:
            return build(around)
        except RecipeError:
            raise error from None


def plain_names(model: nn.Module, loss: object) -> nn.Module:
    """Return the module by whose names the Trainer itself sorts parameters into groups."""
    around = _around(loss)
    return around if any(True for _ in around.parameters()) else model


def _around(loss: object) -> nn.Module:
    """Return the loss as a module; one without anything for a Trainer that has none."""
    if isinstance(loss, nn.Module):
        return loss
    several = loss if isinstance(loss, Mapping) else {}
    modules = {name: each for name, each in several.items() if isinstance(each, nn.Module)}
    return nn.ModuleDict(modules)


def _beside(model: nn.Module, loss: nn.Module) -> nn.Module:
    """Return the model with what the loss has of its own, of the same class and the same names."""
    bare = without_wrappers(model)  # which stand around one module, and not beside another
    children = children_by_name(bare)
    name = "loss" if "loss" not in children else "trainer_loss"
    return with_children(bare, {**children, name: _without(without_wrappers(loss), bare)})


def _without(module: nn.Module, model: nn.Module) -> nn.Module:
    """Return a module without the model, which may stand anywhere in it."""
    children = children_by_name(module)
    others: dict[str, Any] = {
        name: child and _without(child, model)
        for name, child in children.items()
        if child is not model
    }
    same = others.keys() == children.keys() and all(others[n] is c for n, c in children.items())
    return module if same else with_children(module, others)
