"""How deep in a model each parameter is: which layer it belongs to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from optimplug._core.internals import children_by_name
from optimplug.recipe.parameters.depth.blocks import Tower, forward_ranks
from optimplug.recipe.parameters.depth.doubts import (
    doubts_about_layers,
    doubts_about_order,
    doubts_about_tied,
    doubts_about_towers,
)
from optimplug.recipe.parameters.depth.layers import layers_by_name
from optimplug.recipe.parameters.depth.towers import towers
from optimplug.recipe.parameters.kinds import FAMILIES
from optimplug.recipe.text.depth_range import Depth

__all__ = ["Layout", "depths", "find_depths", "find_layout"]


@dataclass(frozen=True)
class Layout:
    """Where in a model its layers are, and how deep each parameter is."""

    depths: Mapping[str, Depth]
    """By the parameter's full name, tied names included."""
    heights: tuple[int, ...]
    """How many layers each tower has."""
    tensors: tuple[int, int, int]
    """How many tensors are below the layers, in them, and above them."""
    doubts: tuple[str, ...] = ()
    """What may be wrong about it."""
    hidden: frozenset[str] = frozenset()
    """The names of the parameters that are in a layer, and neither below all nor the output.

    The output is what is above all layers. Where nothing is, and the last layer is no block but a
    weight by itself, as in a Sequential of linear layers, it is that layer.
    """

    def __str__(self) -> str:
        layers, count = sum(self.heights), len(self.heights)
        towers = "1 tower" if count == 1 else f"{count} towers ({_listed(self.heights)})"
        below, within, above = self.tensors
        tensors = f"tensors: {below} below the first, {within} in them, {above} above the last"
        return f"{layers} {'layer' if layers == 1 else 'layers'} in {towers}; {tensors}"


def _listed(heights: Sequence[int]) -> str:
    # Of a model of many parts, the tallest towers say enough.
    shown = sorted(heights, reverse=True)[:4]
    return ", ".join(map(str, [*shown, "..."] if len(heights) > len(shown) else heights))


def depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter by its full name, tied names included.

    Depth 0 is what comes before the layers (embeddings), 1 to n are the layers, n + 1 is what comes
    after them (final norm, pooler, head), in the order in which ``forward`` uses them. Each tower
    of a model with several (encoder and decoder, text and vision) counts its own layers; what joins
    towers is above the tallest. A module between the blocks of two stages belongs to the next block
    if it begins a stage, and to the last block if it ends one.

    Raises:
        ValueError: the model has no list of layers.

    Example:
        >>> depths(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
        {'0.weight': 1, '0.bias': 1, '2.weight': 2, '2.bias': 2}
    """
    return {name: depth.layer for name, depth in find_depths(model).items()}


def find_depths(model: nn.Module, layers: Sequence[str] | None = None) -> Mapping[str, Depth]:
    """Return the same as :func:`depths`, counted from both ends.

    Raises:
        ValueError: the model has no list of layers.
        RecipeError: ``layers`` does not fit the model.
    """
    return find_layout(model, layers).depths


def find_layout(model: nn.Module, layers: Sequence[str] | None = None) -> Layout:
    """Find the layers of a model, and where its parameters are among them.

    The top of a tower is the highest place in it that holds parameters: what comes after its
    layers, or, in a model without a head, the last layer.

    Args:
        model: the model.
        layers: globs on the names of the modules that are its layers, from bottom to top; None to
            find them.

    Raises:
        ValueError: the model has no list of layers.
        RecipeError: a glob matches no module, or several match one.
    """
    found = towers(model) if layers is None else [layers_by_name(model, layers)]
    if not found:
        raise ValueError(
            f"no list of layers (nn.ModuleList or nn.Sequential of equal modules) was found in "
            f"{type(model).__name__}; say what they are under layers, or write one rule per part "
            "instead, each with its own lr_scale"
        )
    layer_map = _LayerMap(model, found)
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    spots = {name: layer_map.spot_of(name) for name in names}
    heights = tuple(map(len, found))
    doubts = layer_map.doubts() if layers is None else ()
    tied = doubts_about_tied(
        _names(model), {n: 0 < s.layer <= _tallest(s, heights) for n, s in spots.items()}
    )
    alone = {name for name in spots if layer_map.is_layer_itself(name)}
    return _layout(spots, heights, (*doubts, *tied), alone)


def _names(model: nn.Module) -> Iterable[list[str]]:
    """Return all names of each parameter."""
    found: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[parameter].append(name)
    return found.values()


class _Spot(NamedTuple):
    """Where a parameter is, before it is known which towers have anything above their layers."""

    towers: frozenset[int]
    """Its tower, or all those that it joins."""
    layer: int


def _tallest(spot: _Spot, heights: Sequence[int]) -> int:
    return max(heights[tower] for tower in spot.towers)


def _layout(
    spots: Mapping[str, _Spot],
    heights: tuple[int, ...],
    doubts: tuple[str, ...],
    alone: Collection[str],
) -> Layout:
    tops = list(heights)
    below, above = set[str](), set[str]()
    for name, spot in spots.items():
        if spot.layer == 0:
            below.add(name)
        if spot.layer > _tallest(spot, heights):
            above.add(name)
            # Then the layers of all its towers are not the top.
            for tower in spot.towers:
                tops[tower] = heights[tower] + 1
    found = {
        name: Depth(layer, max(tops[tower] for tower in within) - layer)
        for name, (within, layer) in spots.items()
    }
    inside = spots.keys() - below - above
    hidden = frozenset(n for n in inside if not (n in alone and found[n].below_top == 0))
    return Layout(found, heights, (len(below), len(inside), len(above)), doubts, hidden)


class _Span(NamedTuple):
    """A range of layers of one tower, both ends included."""

    tower: int
    low: int
    high: int


class _LayerMap:
    """Where in a model its layers are.

    Args:
        model: the model.
        found: its towers.
    """

    def __init__(self, model: nn.Module, found: list[Tower]) -> None:
        self._model = model
        self._towers = found
        self._heights = [len(tower) for tower in found]
        # By its path, every module that is a layer, or a part of one.
        self._layers = {
            path: _Span(number, i, i)
            for number, tower in enumerate(found)
            for i, layer in enumerate(tower, 1)
            for path in layer
        }
        # By its path, every module that contains layers: by child, the layers in that child.
        self._containers: dict[str, dict[str, list[_Span]]] = defaultdict(lambda: defaultdict(list))
        for path, span in self._layers.items():
            parts = path.split(".")
            for n, part in enumerate(parts):
                self._containers[".".join(parts[:n])][part].append(span)

    def doubts(self) -> Iterator[str]:
        """Find what may be wrong about the layers that were found."""
        towers = {
            path: {name: {span.tower for span in spans} for name, spans in children.items()}
            for path, children in self._containers.items()
        }
        yield from doubts_about_towers(self._model, towers)
        yield from doubts_about_layers(self._model, self._towers)
        yield from doubts_about_order(self._model, filter(None, self._containers))

    def is_layer_itself(self, name: str) -> bool:
        """Tell whether what owns the parameter of that full name is a layer, and no block."""
        path = name.rpartition(".")[0]
        bare = (*FAMILIES["linear"], *FAMILIES["conv"])
        return path in self._layers and isinstance(self._model.get_submodule(path), bare)

    def spot_of(self, name: str) -> _Spot:
        """Return where the parameter of that full name is."""
        parts = name.split(".")
        # From the innermost module outwards: the first that is a layer or contains layers decides.
        for n in range(len(parts) - 1, -1, -1):
            path = ".".join(parts[:n])
            if path in self._layers:
                span = self._layers[path]
                return _spot(span.tower, span.low)
            if path in self._containers:
                return self._spot_outside_layers(path, parts[n:])
        raise AssertionError("the model itself contains all layers")

    def _spot_outside_layers(self, path: str, rest: list[str]) -> _Spot:
        """Return the place of a parameter that a module has beside its layers.

        Args:
            path: of the module, the innermost one around the parameter that contains layers.
            rest: the parameter's path in that module.
        """
        container, children = self._model.get_submodule(path), dict(self._containers[path])
        if len({span.tower for spans in children.values() for span in spans}) > 1:
            return self._beside_towers(container, rest[0], children)
        partner = self._partner(container, rest[0], children)
        if partner is not None:
            # rest[1] is the place in the list, and the partner has an element at the same place.
            element = ".".join([path, partner, rest[1]] if path else [partner, rest[1]])
            if element in self._layers:
                return _spot(*self._layers[element][:2])
            held = self._containers.get(element, {}).values()
            children = {partner: [span for spans in held for span in spans]}
        return self._beside_layers(container, rest[0], children)

    def _beside_towers(
        self, container: nn.Module, name: str, children: Mapping[str, Sequence[_Span]]
    ) -> _Spot:
        """Return the place of what joins towers: below all if it is used before all, else above."""
        ranks = forward_ranks(container, [name, *children])
        joined = frozenset(span.tower for spans in children.values() for span in spans)
        is_below = all(ranks[name] < ranks[child] for child in children)
        above = max(self._heights[tower] for tower in joined) + 1
        return _Spot(joined, 0 if is_below else above)

    def _partner(self, container: nn.Module, name: str, children: Iterable[str]) -> str | None:
        """Return the list of layers, or of stages, that goes step by step with another list.

        Such a list has as many elements, of one class: a norm for the end of each stage, say.
        """
        own = children_by_name(container).get(name)
        if not isinstance(own, nn.ModuleList) or len({type(element) for element in own}) > 1:
            return None
        for child in children:
            other = children_by_name(container)[child]
            if isinstance(other, nn.ModuleList) and len(other) == len(own) > 1:
                return child
        return None

    def _beside_layers(
        self, container: nn.Module, name: str, children: Mapping[str, Sequence[_Span]]
    ) -> _Spot:
        """Return the place of what is used before, between or after the layers of one tower."""
        ranks = forward_ranks(container, [name, *children])
        tower = next(iter(children.values()))[0].tower
        after = [spans for child, spans in children.items() if ranks[name] < ranks[child]]
        if after:
            low = min(span.low for spans in after for span in spans)
            return _spot(tower, low if low > 1 else 0)
        high = max(span.high for spans in children.values() for span in spans)
        return _spot(tower, high if high < self._heights[tower] else high + 1)


def _spot(tower: int, layer: int) -> _Spot:
    return _Spot(frozenset([tower]), layer)
