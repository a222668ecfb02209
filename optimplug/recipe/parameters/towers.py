"""The towers of a model: its lists of blocks, found by what they hold."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from optimplug.recipe.parameters.forward import used
from optimplug.recipe.parameters.kinds import is_norm

__all__ = ["Tower", "forward_ranks", "towers"]

Tower = tuple[tuple[str, ...], ...]
"""The paths of the modules of each layer, lowest layer first."""

_BARE, _COMPOSED, _BLOCK = range(3)
"""A layer such as Linear; a module of modules; one with weights and a norm around them."""


@dataclass(frozen=True)
class _LayerList:
    """A list of modules that follow each other."""

    parent: str
    elements: Mapping[str, nn.Module]
    """By their full names; those without parameters are left out."""
    is_list: bool
    """An nn.ModuleList, rather than a Sequential or attributes with numbers."""

    @property
    def first(self) -> str:
        return next(iter(self.elements))

    @property
    def uniform(self) -> bool:
        """One class, and mostly the same parameters: not attention, then an MLP in equal shells."""
        first, *others = self.elements.values()
        return all(type(first) is type(other) and _alike(first, other) for other in others)

    def is_part_of(self, path: str) -> bool:
        """Tell whether this is the module of that name, or a child of it."""
        return path in (self.parent, self.first.rpartition(".")[0])

    def inside(self, other: _LayerList) -> bool:
        return any(self.first.startswith(f"{element}.") for element in other.elements)


def towers(model: nn.Module) -> list[Tower]:
    """Return the towers of a model, in the order in which it registers them.

    A tower is a list of blocks (nn.ModuleList, nn.Sequential, or attributes such as layer1 and
    layer2), or several under one parent that follow each other and are of a kind. A block holds
    weights and a norm; where no list does so, lists of any modules serve. The blocks of stages
    (Swin, ResNet) count one by one.
    """
    layer_lists = dict(_layer_lists(model))
    grades = {
        path: max(map(_grade, layers.elements.values())) for path, layers in layer_lists.items()
    }
    grade = max(grades.values(), default=_BARE)
    best = {path: layers for path, layers in layer_lists.items() if grades[path] == grade}
    tops = {path: layers for path, layers in best.items() if _may_stand_alone(layers, grade, best)}
    if isinstance(model, nn.Sequential) and (grade == _BARE or not tops):
        return [tuple((name,) for name in _elements(model, ""))]
    if grade < _BLOCK:  # one module in a list is a tower only if nothing else is
        tops = {path: layers for path, layers in tops.items() if len(layers.elements) > 1} or tops
    outermost = [s for s in tops.values() if not any(s.inside(other) for other in tops.values())]
    by_parent: dict[str, list[_LayerList]] = defaultdict(list)
    for layers in outermost:
        by_parent[layers.parent].append(layers)
    return [
        tower
        for parent, found in by_parent.items()
        for tower in _towers_under(model.get_submodule(parent), found, list(best.values()))
    ]


def forward_ranks(module: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Number a module's own parts and parameters as ``forward`` uses them.

    Where it does not name all of ``names``, they are numbered as they are registered.
    """
    order = used(type(module))  # type: ignore[arg-type]  # a class is hashable
    if all(name in order for name in names):
        return order
    return {name: i for i, name in enumerate([*module._parameters, *module._modules])}


def _layer_lists(model: nn.Module) -> Iterable[tuple[str, _LayerList]]:
    for path, module in model.named_modules(remove_duplicate=False):
        elements = _elements(module, path)
        if isinstance(module, nn.ModuleList | nn.Sequential):
            is_list = isinstance(module, nn.ModuleList)
            if not is_list and any(_grade(element) == _BLOCK for element in elements.values()):
                # A stem and a head may stand in one Sequential with the blocks.
                elements = {p: e for p, e in elements.items() if _grade(e) == _BLOCK}
            if elements:
                yield path, _LayerList(path.rpartition(".")[0], elements, is_list)
        else:
            for stem, numbered in _numbered(elements).items():
                yield f"{stem}#", _LayerList(path, numbered, is_list=False)


def _elements(module: nn.Module, path: str) -> dict[str, nn.Module]:
    children = module._modules.items()  # named_children leaves out one that is there twice
    prefix = f"{path}." if path else ""
    return {
        f"{prefix}{name}": child
        for name, child in children
        if child is not None and next(child.parameters(), None) is not None
    }


def _numbered(elements: Mapping[str, nn.Module]) -> dict[str, dict[str, nn.Module]]:
    """Return modules of one class whose names differ in a last number, by the name without it."""
    found: dict[tuple[str, type], dict[str, nn.Module]] = defaultdict(dict)
    for path, module in elements.items():
        stem = re.sub(r"\d+$", "", path)
        if stem != path and any(True for _ in module.children()):
            found[stem, type(module)][path] = module
    return {stem: modules for (stem, _), modules in found.items() if len(modules) > 1}


def _alike(one: nn.Module, other: nn.Module, share: float = 0.5) -> bool:
    names, others = ({name for name, _ in m.named_parameters()} for m in (one, other))
    return len(names & others) >= share * len(names | others)


def _grade(module: nn.Module) -> int:
    if isinstance(module, nn.ModuleList):
        return max(map(_grade, module), default=_BARE)
    if not any(True for _ in module.children()):
        return _BARE
    has_norm = any(is_norm(part) for part in module.modules())
    return _BLOCK if has_norm and _weights(module) > 1 else _COMPOSED


def _weights(module: nn.Module) -> int:
    return sum(parameter.ndim > 1 for parameter in module.parameters())


def _may_stand_alone(layers: _LayerList, grade: int, best: Mapping[str, _LayerList]) -> bool:
    """Tell whether a list is a tower unless it lies within another."""
    if layers.uniform:
        return len(layers.elements) > 1 or (layers.is_list and grade > _BARE)
    # Blocks of several classes, in a hybrid model; but not whole models, with towers in them.
    return (
        len(layers.elements) > 1
        and all(_grade(element) == _BLOCK for element in layers.elements.values())
        and not any(
            other.uniform
            and other.inside(layers)
            and not any(other.is_part_of(element) for element in layers.elements)
            for other in best.values()
        )
    )


def _in_forward_order(parent: nn.Module, layer_lists: list[_LayerList]) -> list[_LayerList]:
    def child(layers: _LayerList) -> str:
        return layers.first.removeprefix(layers.parent).lstrip(".").partition(".")[0]

    ranks = forward_ranks(parent, map(child, layer_lists))
    return sorted(layer_lists, key=lambda layers: ranks[child(layers)])


def _towers_under(
    parent: nn.Module, layer_lists: list[_LayerList], inner: list[_LayerList]
) -> list[Tower]:
    """Return the towers that lists under one parent make."""
    blocks = {
        layers.first: _blocks_of(layers, inner) for layers in _in_forward_order(parent, layer_lists)
    }
    lists = {layers.first: layers for layers in layer_lists}
    staged = [first for first in blocks if blocks[first].keys() != lists[first].elements.keys()]
    # A list as long as that of the stages is a part of each stage.
    firsts = [
        first
        for first in blocks
        if first in staged or not any(_beside(lists[first], lists[other]) for other in staged)
    ]
    halves = [lists[first] for first in firsts]
    if len(halves) > 1 and not staged and all(_beside(halves[0], half) for half in halves[1:]):
        return [tuple(zip(*(half.elements for half in halves), strict=True))]
    found: list[dict[str, nn.Module]] = []
    for first in firsts:
        block = next(iter(blocks[first].values()))
        below = (tower for tower in found if _alike(next(iter(tower.values())), block, 0.25))
        tower = next(below, None)
        if tower is None:
            found.append(dict(blocks[first]))
        else:
            tower.update(blocks[first])
    return [tuple((path,) for path in tower) for tower in found]


def _beside(one: _LayerList, other: _LayerList) -> bool:
    """Tell whether two lists are halves of the same layers: attentions, and as many MLPs."""
    if not (one.is_list and other.is_list and len(one.elements) == len(other.elements)):
        return False
    kinds, others = ({type(element) for element in s.elements.values()} for s in (one, other))
    return kinds.isdisjoint(others)


def _blocks_of(layers: _LayerList, inner: list[_LayerList]) -> dict[str, nn.Module]:
    """Return the blocks of a list: its elements, or those of its stages."""
    found: dict[str, nn.Module] = {}
    for path, element in layers.elements.items():
        within = [other for other in inner if other.uniform and other.is_part_of(path)]
        parts = {p: block for other in within for p, block in other.elements.items()}
        # Where a list holds less than half, it is a part of a block.
        is_stage = 2 * sum(map(_weights, parts.values())) > _weights(element)
        if not is_stage:
            found[path] = element
            continue
        for other in _in_forward_order(element, within) if len(within) > 1 else within:
            found.update(other.elements)
    return found
