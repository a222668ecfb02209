"""Towers that are one: the input goes through the stages of a network one after another.

Where stages are made differently, their lists of blocks look like towers of their own. Whether they
follow each other is told by what holds them: an nn.Sequential, a list of modules of different
shapes, or a module whose ``forward`` passes its input through them in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from optimplug.recipe.parameters.code.forward import chained
from optimplug.recipe.parameters.depth.blocks import (
    BLOCK,
    Tower,
    alike,
    elements_of,
    forward_ranks,
    grade_of,
    is_list,
    weights,
)

__all__ = ["in_sequence", "stages_in"]

# Layers lie in a list, or in the lists of its stages; a list in a block holds parts of the block.
_LISTS_DEEP = 2
# What goes before and after the layers may be made of blocks too, and is known by its name alone.
_BESIDE = ("stem", "head")
_EMBEDDING = "embed"  # it is one, unless there are stages in it, as in a hybrid of two networks


def in_sequence(model: nn.Module, towers: Sequence[Tower]) -> list[Tower]:
    """Return the towers with those made one that follow each other, and with stages taken apart.

    Args:
        model: whose towers they are.
        towers: as they were found list by list.
    """
    found = list(towers) or _along_lists(model)
    # The outermost first: what is in it is found anew.
    for path, module in model.named_modules(remove_duplicate=False):
        within = [tower for tower in found if all(_inside(layer[0], path) for layer in tower)]
        if not _is_chain(module, path, within):
            continue
        chain = tuple((layer,) for layer in _layers_along(module, path, lists=is_list(module)))
        if len(chain) > 1:
            place = found.index(within[0])
            found = [tower for tower in found if tower not in within]
            found.insert(place, chain)
    return found


def _along_lists(model: nn.Module) -> list[Tower]:
    """Return the layers of a model that has none but in stages made in different ways."""
    layers = tuple((layer,) for layer in _layers_along(model, "", lists=is_list(model)))
    # Attributes alone, without any list, are parts that a rule had better name.
    in_lists = (is_list(model.get_submodule(path.rpartition(".")[0])) for (path,) in layers)
    return [layers] if len(layers) > 1 and any(in_lists) else []


def _inside(path: str, outer: str) -> bool:
    return not outer or path.startswith(f"{outer}.")


def _is_chain(module: nn.Module, path: str, within: Sequence[Tower]) -> bool:
    """Tell whether what a module has of towers is one, of which each holds but a part."""
    prefix = f"{path}." if path else ""
    layers = {layer.removeprefix(prefix) for tower in within for parts in tower for layer in parts}
    held = {layer.partition(".")[0] for layer in layers}
    children = elements_of(module, "")
    if not held <= children.keys() or any(len(parts) > 1 for tower in within for parts in tower):
        return False
    if isinstance(module, nn.Sequential):
        in_turn = True
    elif isinstance(module, nn.ModuleList):
        # Modules of one shape may be models side by side, an ensemble: nothing tells.
        in_turn = len({_shapes(child) for child in children.values()}) > 1
    else:
        in_turn = held <= chained(type(module))  # type: ignore[arg-type]
    left_out = {name: child for name, child in children.items() if name not in held}
    return in_turn and (
        (len(within) > 1 and len(held) > 1)
        or (bool(within) and _any_layers(module, left_out))
        # Some of its stages were taken for blocks.
        or (
            is_list(module) and any(stages_in(children[name]) is not None for name in layers & held)
        )
    )


def _any_layers(module: nn.Module, children: Mapping[str, nn.Module]) -> bool:
    """Tell whether some of a module's children hold layers that its input goes through too."""
    if is_list(module):
        return any(grade_of(child) == BLOCK for child in children.values())
    turns = chained(type(module))  # type: ignore[arg-type]  # a class is hashable
    return any(
        _has_layers(child) and name in turns and not name.lower().startswith(_BESIDE)
        for name, child in children.items()
    )


def _shapes(module: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def _layers_along(module: nn.Module, path: str, lists: int) -> Iterator[str]:
    """Walk the layers of a module that passes its input through its children in turn.

    Args:
        module: the module.
        path: its path.
        lists: in how many lists of layers its children are.
    """
    children = elements_of(module, path)
    if not is_list(module):
        turns = chained(type(module))  # type: ignore[arg-type]  # a class is hashable
        names = {child.rpartition(".")[2]: child for child in children}
        ranks = forward_ranks(module, turns & names.keys())
        ordered = sorted(turns & names.keys(), key=lambda name: ranks[name])
        children = {
            names[n]: children[names[n]] for n in ordered if not n.lower().startswith(_BESIDE)
        }
    inner = _inner_lists(module, children, lists)
    for name, child in children.items():
        if name in inner:
            below = f"{name}.{inner[name]}" if inner[name] else name
            yield from _layers_along(child.get_submodule(inner[name]), below, lists + 1)
        elif grade_of(child) == BLOCK and (is_list(module) or _EMBEDDING not in name.lower()):
            yield name


def _inner_lists(
    module: nn.Module, children: Mapping[str, nn.Module], lists: int
) -> dict[str, str]:
    """Return the children that are stages, each with where in it the list of its layers is."""
    if lists == _LISTS_DEEP:
        return {}
    blocks = {name: child for name, child in children.items() if grade_of(child) == BLOCK}
    found = {name: stages_in(child) for name, child in blocks.items()}
    stages = {name: stage for name, stage in found.items() if stage is not None}
    if not is_list(module):
        # The first list that there is holds layers, whatever they are.
        first = {name: "" for name, child in blocks.items() if is_list(child) and not lists}
        return {**stages, **first}
    # In one list, all that look alike are stages or none is: a block may hold a list of its parts.
    inner = {name for name, child in blocks.items() if is_list(child)}
    if stages.keys() & inner:
        stages.update(dict.fromkeys(inner, ""))
    wrapped = blocks.keys() - inner
    return stages if wrapped <= stages.keys() else {n: stages[n] for n in stages.keys() & inner}


def stages_in(module: nn.Module) -> str | None:
    """Return where in a module the list is of which it is a stage: "" if it is one itself.

    None if it is no stage but a block.
    """
    if is_list(module):
        return "" if _has_layers(module) else None
    children = elements_of(module, "")
    lists = {name: weights(child) for name, child in children.items() if _has_layers(child)}
    if not lists:
        # A stage may wrap what has the list, with norms and projections around it.
        inner = {name: found for name, c in children.items() if (found := stages_in(c)) is not None}
        name, found = next(iter(inner.items()), ("", ""))
        if len(inner) != 1 or 2 * weights(children[name]) <= weights(module):
            return None
        return f"{name}.{found}" if found else name
    heaviest = max(lists, key=lambda name: lists[name])
    in_turn = len(lists) == 1 or lists.keys() <= chained(type(module))  # type: ignore[arg-type]
    return heaviest if in_turn and 2 * lists[heaviest] > weights(module) else None


def _has_layers(module: nn.Module) -> bool:
    """Tell whether a module is a list of blocks, and not of the parts of one.

    An attention and an MLP with norms of their own are halves of a block: parts all differ.
    """
    if not is_list(module):
        return False
    blocks = [child for child in elements_of(module, "").values() if grade_of(child) == BLOCK]
    return (
        len(blocks) == 1
        or any(map(_has_layers, blocks))
        or any(
            type(one) is type(other) and alike(one, other)
            for i, one in enumerate(blocks)
            for other in blocks[:i]
        )
    )
