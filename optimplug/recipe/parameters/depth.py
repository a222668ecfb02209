"""How deep in a model each parameter is: which layer it belongs to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from optimplug._core.internals import children_by_name
from optimplug.recipe.parameters.towers import Tower, forward_ranks, towers
from optimplug.recipe.text.depth_range import Depth

__all__ = ["depths", "find_depths"]


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


def find_depths(model: nn.Module) -> dict[str, Depth]:
    """Return the same as :func:`depths`, counted from both ends.

    Raises:
        ValueError: the model has no list of layers.
    """
    found = towers(model)
    if not found:
        raise ValueError(
            f"no list of layers (nn.ModuleList or nn.Sequential of equal modules) was found in "
            f"{type(model).__name__}; write one rule per part instead, each with its own lr_scale"
        )
    layer_map = _LayerMap(model, found)
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return {name: layer_map.depth_of(name) for name in names}


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

    def depth_of(self, name: str) -> Depth:
        """Return the depth of the parameter of that full name."""
        parts = name.split(".")
        # From the innermost module outwards: the first that is a layer or contains layers decides.
        for n in range(len(parts) - 1, -1, -1):
            path = ".".join(parts[:n])
            if path in self._layers:
                span = self._layers[path]
                return self._depth(span.tower, span.low)
            if path in self._containers:
                return self._depth_outside_layers(path, parts[n:])
        raise AssertionError("the model itself contains all layers")

    def _depth_outside_layers(self, path: str, rest: list[str]) -> Depth:
        """Return the depth of a parameter that a module has beside its layers.

        Args:
            path: of the module, the innermost one around the parameter that contains layers.
            rest: the parameter's path in that module.
        """
        container, children = self._model.get_submodule(path), dict(self._containers[path])
        if len({span.tower for spans in children.values() for span in spans}) > 1:
            return self._depth_beside_towers(container, rest[0], children)
        partner = self._partner(container, rest[0], children)
        if partner is not None:
            # rest[1] is the place in the list, and the partner has an element at the same place.
            element = ".".join([path, partner, rest[1]] if path else [partner, rest[1]])
            if element in self._layers:
                return self._depth(*self._layers[element][:2])
            held = self._containers.get(element, {}).values()
            children = {partner: [span for spans in held for span in spans]}
        return self._depth_beside_layers(container, rest[0], children)

    def _depth_beside_towers(
        self, container: nn.Module, name: str, children: Mapping[str, Sequence[_Span]]
    ) -> Depth:
        """Return the depth of what joins towers: below all if it is used before all, else above."""
        ranks = forward_ranks(container, [name, *children])
        height = max(self._heights[span.tower] for spans in children.values() for span in spans)
        joint = 0 if all(ranks[name] < ranks[child] for child in children) else height + 1
        return Depth(joint, height + 1 - joint)

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

    def _depth_beside_layers(
        self, container: nn.Module, name: str, children: Mapping[str, Sequence[_Span]]
    ) -> Depth:
        """Return the depth of what is used before, between or after the layers of one tower."""
        ranks = forward_ranks(container, [name, *children])
        tower = next(iter(children.values()))[0].tower
        after = [spans for child, spans in children.items() if ranks[name] < ranks[child]]
        if after:
            low = min(span.low for spans in after for span in spans)
            return self._depth(tower, low if low > 1 else 0)
        high = max(span.high for spans in children.values() for span in spans)
        return self._depth(tower, high if high < self._heights[tower] else high + 1)

    def _depth(self, tower: int, layer: int) -> Depth:
        return Depth(layer, self._heights[tower] + 1 - layer)
