"""The towers of a model: its stacks of layers, found by what its lists of modules contain."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from optimplug.recipe.parameters.code.forward import chained, iterated, used
from optimplug.recipe.parameters.depth.blocks import (
    BLOCK,
    SINGLE,
    Tower,
    alike,
    elements_of,
    forward_ranks,
    grade_of,
    weights,
)
from optimplug.recipe.parameters.depth.chains import in_sequence

__all__ = ["towers"]


@dataclass(frozen=True)
class _LayerList:
    """Modules that follow each other in a list or by numbered names: layers, perhaps."""

    parent: str
    """The path of the module around them, without the list itself."""
    elements: Mapping[str, nn.Module]
    """By their full names; those without parameters are left out."""
    is_list: bool
    """Whether they are an nn.ModuleList, not a Sequential or attributes with numbers."""

    @property
    def first(self) -> str:
        return next(iter(self.elements))

    @property
    def name(self) -> str:
        """The list's own name in the module around it."""
        return self.first.rpartition(".")[0].rpartition(".")[2]

    @property
    def uniform(self) -> bool:
        """Whether they are of one class and have mostly the same parameters.

        The class alone does not tell: attention and MLP may be wrapped in one class, in turns.
        """
        first, *others = self.elements.values()
        return all(type(first) is type(other) and alike(first, other) for other in others)

    def is_part_of(self, path: str) -> bool:
        """Tell whether this is the module of that path, or a child of it."""
        return path in (self.parent, self.first.rpartition(".")[0])

    def inside(self, other: _LayerList) -> bool:
        """Tell whether this is somewhere in an element of the other."""
        return any(self.first.startswith(f"{element}.") for element in other.elements)


_LayerLists = Mapping[str, _LayerList]
"""By their paths."""


def towers(model: nn.Module) -> list[Tower]:
    """Return the towers of a model, in the order in which it registers them.

    A tower is a list of blocks (nn.ModuleList, nn.Sequential, or attributes such as layer1 and
    layer2), or several lists under one parent that follow each other and have similar blocks. A
    block has weights and a norm; where no list has such, lists of any modules are taken. The blocks
    of stages (Swin, ResNet) count one by one.
    """
    layer_lists = dict(_layer_lists(model))
    grades = {
        path: max(map(grade_of, layers.elements.values())) for path, layers in layer_lists.items()
    }
    grade = max(grades.values(), default=SINGLE)
    best = {path: layers for path, layers in layer_lists.items() if grades[path] == grade}
    candidates = _candidates(best, grade)
    if isinstance(model, nn.Sequential) and (grade == SINGLE or not candidates):
        return [tuple((name,) for name in elements_of(model, ""))]
    by_parent: dict[str, list[_LayerList]] = defaultdict(list)
    for layers in _outermost(candidates):
        by_parent[layers.parent].append(layers)
    found = [
        tower
        for parent, layer_lists in by_parent.items()
        for tower in _towers_under(model.get_submodule(parent), layer_lists, list(best.values()))
    ]
    return in_sequence(model, found)


def _candidates(best: _LayerLists, grade: int) -> _LayerLists:
    """Return the lists that are towers unless they are inside another."""
    found = {path: layers for path, layers in best.items() if _may_be_tower(layers, grade, best)}
    if grade == BLOCK:
        return found
    # A list of one block is a tower of one layer. A list of one Linear hardly is, so that it counts
    # only where there is nothing longer.
    return {path: layers for path, layers in found.items() if len(layers.elements) > 1} or found


def _innermost(found: list[_LayerList]) -> list[_LayerList]:
    return [layers for layers in found if not any(other.inside(layers) for other in found)]


def _outermost(candidates: _LayerLists) -> list[_LayerList]:
    found = list(candidates.values())
    return [layers for layers in found if not any(layers.inside(other) for other in found)]


def _layer_lists(model: nn.Module) -> Iterable[tuple[str, _LayerList]]:
    for path, module in model.named_modules(remove_duplicate=False):
        elements = elements_of(module, path)
        if isinstance(module, nn.ModuleList | nn.Sequential):
            is_list = isinstance(module, nn.ModuleList)
            if not is_list and any(grade_of(element) == BLOCK for element in elements.values()):
                # A stem and a head may be in one Sequential with the blocks: they are no layers.
                elements = {p: e for p, e in elements.items() if grade_of(e) == BLOCK}
            if elements:
                yield path, _LayerList(path.rpartition(".")[0], elements, is_list)
        else:
            for stem, numbered in _numbered(elements).items():
                yield f"{stem}#", _LayerList(path, numbered, is_list=False)


def _numbered(elements: Mapping[str, nn.Module]) -> dict[str, dict[str, nn.Module]]:
    """Return modules of one class whose names differ in a last number, by the name without it."""
    found: dict[tuple[str, type], dict[str, nn.Module]] = defaultdict(dict)
    for path, module in elements.items():
        stem = re.sub(r"\d+$", "", path)
        # Without children, as fc1 and fc2, they are steps of one layer rather than layers.
        if stem != path and any(True for _ in module.children()):
            found[stem, type(module)][path] = module
    return {stem: modules for (stem, _), modules in found.items() if len(modules) > 1}


def _may_be_tower(layers: _LayerList, grade: int, best: _LayerLists) -> bool:
    if layers.uniform:
        return len(layers.elements) > 1 or (layers.is_list and grade > SINGLE)
    # In a hybrid model, blocks of several classes alternate. But whole models may be in one list
    # too, with towers in them: those are the towers then.
    return (
        len(layers.elements) > 1
        and all(grade_of(element) == BLOCK for element in layers.elements.values())
        and not any(_is_tower_within(other, layers) for other in best.values())
    )


def _is_tower_within(other: _LayerList, layers: _LayerList) -> bool:
    """Tell whether a list is a tower of its own in an element of the other, not just its parts."""
    return (
        other.uniform
        and other.inside(layers)
        and not any(other.is_part_of(element) for element in layers.elements)
    )


def _in_forward_order(
    parent: nn.Module, path: str, layer_lists: list[_LayerList]
) -> list[_LayerList]:
    def child(layers: _LayerList) -> str:
        return layers.first.removeprefix(path).lstrip(".").partition(".")[0]

    ranks = forward_ranks(parent, map(child, layer_lists))
    return sorted(layer_lists, key=lambda layers: ranks[child(layers)])


def _towers_under(
    parent: nn.Module, layer_lists: list[_LayerList], inner: list[_LayerList]
) -> list[Tower]:
    """Return the towers that lists under one parent make.

    Args:
        parent: the module around the lists.
        layer_lists: the lists.
        inner: all lists of the model with such modules, among which are those in stages.
    """
    ordered = _in_forward_order(parent, layer_lists[0].parent, layer_lists)
    blocks = [_blocks_of(layers, inner) for layers in ordered]
    stages = [
        layers
        for layers, found in zip(ordered, blocks, strict=True)
        if found.keys() != layers.elements.keys()
    ]
    # A list as long as that of the stages belongs to them one by one: downsamplers, say.
    kept = [
        (layers, found)
        for layers, found in zip(ordered, blocks, strict=True)
        if layers in stages or not any(_are_halves(layers, other) for other in stages)
    ]
    halves = [layers for layers, _ in kept]
    cls: type[nn.Module] = type(parent)
    alone = iterated(cls) | chained(cls)  # type: ignore[arg-type]  # a class is hashable
    go_together = not stages and not {layers.name for layers in halves} <= alone
    if len(halves) > 1 and go_together and all(_are_halves(halves[0], h) for h in halves[1:]):
        return [tuple(zip(*(half.elements for half in halves), strict=True))]
    return _joined([found for _, found in kept])


def _joined(lists: Sequence[Mapping[str, nn.Module]]) -> list[Tower]:
    """Return towers of lists of blocks: a list goes on with an earlier one of similar blocks."""
    found: list[dict[str, nn.Module]] = []
    for blocks in lists:
        first = next(iter(blocks.values()))
        below = (tower for tower in found if alike(next(iter(tower.values())), first, 0.25))
        tower = next(below, None)
        if tower is None:
            found.append(dict(blocks))
        else:
            tower.update(blocks)
    return [tuple((path,) for path in tower) for tower in found]


def _are_halves(one: _LayerList, other: _LayerList) -> bool:
    """Tell whether two lists may be halves of the same layers: attentions, and as many MLPs."""
    if not (one.is_list and other.is_list and len(one.elements) == len(other.elements)):
        return False
    kinds, others = ({type(element) for element in s.elements.values()} for s in (one, other))
    return kinds.isdisjoint(others)


def _blocks_of(layers: _LayerList, inner: list[_LayerList]) -> dict[str, nn.Module]:
    """Return the blocks of a list: its elements, or, where these are stages, the blocks in them."""
    found: dict[str, nn.Module] = {}
    for path, element in layers.elements.items():
        within = _innermost(
            [
                other
                for other in inner
                if other.uniform
                and other.is_part_of(path)
                and not _are_branches(element, path, other)
            ]
        )
        parts = {p: block for other in within for p, block in other.elements.items()}
        # A list with less than half of the weights is only a part of a block.
        is_stage = 2 * sum(map(weights, parts.values())) > weights(element)
        if not is_stage:
            found[path] = element
            continue
        for other in _in_forward_order(element, path, within) if len(within) > 1 else within:
            found.update(other.elements)
    return found


def _are_branches(module: nn.Module, path: str, layers: _LayerList) -> bool:
    """Tell whether modules with numbered names (branch0, branch1) all take the same input."""
    cls: type[nn.Module] = type(module)
    names = {element.removeprefix(f"{path}.") for element in layers.elements}
    is_known = names <= used(cls).keys()  # type: ignore[arg-type]  # a class is hashable
    return is_known and not names & chained(cls)  # type: ignore[arg-type]
