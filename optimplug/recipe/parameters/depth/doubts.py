"""What the layers that were found may be wrong about, so that a plan can say it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import nn

from optimplug._core.internals import children_by_name
from optimplug.recipe.parameters.code.forward import backwards, in_loops, used
from optimplug.recipe.parameters.depth.blocks import Tower, is_list
from optimplug.recipe.parameters.depth.chains import stages_in

__all__ = ["doubts_about_layers", "doubts_about_order", "doubts_about_tied", "doubts_about_towers"]

_MEND = "say what the layers are under layers"


def doubts_about_towers(
    model: nn.Module, containers: Mapping[str, Mapping[str, Iterable[int]]]
) -> Iterator[str]:
    """Find lists of layers that were taken for towers side by side, and may be one.

    Whole models side by side (an encoder and a decoder) are towers without doubt. Lists in one
    module, of which its ``forward`` uses one after another, may follow each other.

    Args:
        model: whose layers they are.
        containers: by the path of each module with layers in it, by the names of its children, the
            numbers of the towers that these layers are of.
    """
    for path, children in containers.items():
        module = model.get_submodule(path)
        cls: type[nn.Module] = type(module)
        lists = {name: set(found) for name, found in children.items() if _holds(module, name)}
        for tap, layers in in_loops(cls):  # type: ignore[arg-type]  # a class is hashable
            if layers in lists:  # it is used beside them
                lists.pop(tap, None)
        towers = set[int]().union(*lists.values())
        if len(towers) < 2 or len(lists) < 2 or isinstance(module, nn.Sequential):
            continue
        order = used(cls)  # type: ignore[arg-type]  # a class is hashable
        if isinstance(module, nn.ModuleList) or lists.keys() <= order.keys():
            names = sorted(lists, key=lambda name: order.get(name, 0))
            yield (
                f"{_listed(names)} of {path or cls.__name__} were taken for {len(towers)} towers "
                f"side by side; if its input goes through them in turn, {_MEND}"
            )


def doubts_about_layers(model: nn.Module, towers: Iterable[Tower]) -> Iterator[str]:
    """Find towers of what may be whole models, or stages, each with layers of its own."""
    for tower in towers:
        paths = [path for layer in tower for path in layer]
        modules = [model.get_submodule(path) for path in paths]
        # In the list of a stage, they are blocks with a list of their parts.
        if all(_lists_around(model, path) < 2 for path in paths) and all(
            stages_in(module) is not None for module in modules
        ):
            yield (
                f"{tower[0][0]} and what follows it have layers of their own, but count as one "
                f"layer each; if these are meant, {_MEND}"
            )


def _lists_around(model: nn.Module, path: str) -> int:
    parts = path.split(".")[:-1]
    around = (model.get_submodule(".".join(parts[: n + 1])) for n in range(len(parts)))
    return sum(map(is_list, around)) + is_list(model)


def doubts_about_order(model: nn.Module, containers: Iterable[str]) -> Iterator[str]:
    """Find lists of layers that ``forward`` goes through from their end."""
    for path in containers:
        parent, _, name = path.rpartition(".")
        module = model.get_submodule(parent)
        if name in backwards(type(module)):  # type: ignore[arg-type]
            yield (
                f"forward of {type(module).__name__} goes through {path} from its end, so that its "
                f"last layer is used first; {_MEND}"
            )


def doubts_about_tied(names: Iterable[Sequence[str]], layers: Mapping[str, bool]) -> Iterator[str]:
    """Find parameters that are used in a layer, but lie outside of all by their first name.

    Args:
        names: all names of each parameter.
        layers: by a parameter's full name, whether that is in a layer.
    """
    found = [
        (first, inside)
        for first, *others in names
        if not layers[first] and (inside := next(filter(layers.__getitem__, others), None))
    ]
    if found:
        (first, inside), more = found[0], len(found) - 1
        also = f" (as {more} more tensors do)" if more else ""
        yield (
            f"{first} lies outside of the layers, but is used in one, as {inside}{also}; give it a "
            "rate by its name if that is not meant"
        )


def _holds(module: nn.Module, name: str) -> bool:
    """Tell whether a child is a list, rather than a model with lists in it."""
    child = children_by_name(module)[name]
    return child is not None and (is_list(child) or is_list(module))


def _listed(names: list[str], most: int = 4) -> str:
    shown = [*names[:most], "..."] if len(names) > most else names
    return ", ".join(shown)
