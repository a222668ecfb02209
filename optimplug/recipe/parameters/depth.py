"""Which layer a parameter belongs to, found in the model's own lists of layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from optimplug.recipe.parameters.towers import Tower, forward_ranks, towers
from optimplug.recipe.text.levels import Depth

__all__ = ["depths", "find_depths"]


def depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter by its full name, tied names included.

    Depth 0 is what comes before the layers (embeddings), 1 to n are the layers, n + 1 is what comes
    after them (final norm, pooler, head), in the order in which ``forward`` uses them. Each tower
    of a model with several (encoder and decoder, text and vision) counts its own layers; what joins
    them stands above the tallest. What lies between the blocks of two stages belongs to the
    next one if it begins a stage, and to the last one if it ends it.

    Raises:
        ValueError: the model has no list of layers.

    Example:
        >>> depths(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
        {'0.weight': 1, '0.bias': 1, '2.weight': 2, '2.bias': 2}
    """
    return {name: depth.layer for name, depth in find_depths(model).items()}


def find_depths(model: nn.Module) -> dict[str, Depth]:
    """Return the place of every parameter in its tower; as :func:`depths`, which see."""
    found = towers(model)
    if not found:
        raise ValueError(
            f"no list of layers (nn.ModuleList or nn.Sequential of equal modules) was found in "
            f"{type(model).__name__}; write one rule per part instead, each with its own lr_scale"
        )
    skeleton = _Skeleton(model, found)
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return {name: skeleton.place(name) for name in names}


class _Span(NamedTuple):
    """The layers of one tower that a module holds, both ends included."""

    tower: int
    low: int
    high: int


class _Skeleton:
    """The modules that are layers or hold some."""

    def __init__(self, model: nn.Module, found: list[Tower]) -> None:
        self._model = model
        self._heights = [len(tower) for tower in found]
        self._blocks = {
            path: _Span(number, i, i)
            for number, tower in enumerate(found)
            for i, layer in enumerate(tower, 1)
            for path in layer
        }
        self._holders: dict[str, dict[str, list[_Span]]] = defaultdict(lambda: defaultdict(list))
        for path, span in self._blocks.items():
            parts = path.split(".")
            for n, part in enumerate(parts):
                self._holders[".".join(parts[:n])][part].append(span)

    def place(self, name: str) -> Depth:
        """Return the depth of the parameter of that full name."""
        parts = name.split(".")
        for n in range(len(parts) - 1, -1, -1):
            path = ".".join(parts[:n])
            if path in self._blocks:
                span = self._blocks[path]
                return self._depth(span.tower, span.low)
            if path in self._holders:
                return self._beside(path, parts[n:])
        raise AssertionError("the model itself holds all layers")

    def _beside(self, path: str, rest: list[str]) -> Depth:
        """Return the depth of what lies beside layers in the innermost module that holds some."""
        holder, spans = self._model.get_submodule(path), dict(self._holders[path])
        towers = {span.tower for held in spans.values() for span in held}
        if len(towers) > 1:
            ranks = forward_ranks(holder, [rest[0], *spans])
            height = max(self._heights[tower] for tower in towers)
            joint = 0 if all(ranks[rest[0]] < ranks[child] for child in spans) else height + 1
            return Depth(joint, height + 1 - joint)
        opposite = self._opposite(holder, rest, spans)
        if opposite is not None:
            element = ".".join([path, opposite, rest[1]] if path else [opposite, rest[1]])
            if element in self._blocks:
                return self._depth(*self._blocks[element][:2])
            held = self._holders.get(element, {}).values()
            spans = {opposite: [span for spans in held for span in spans]}
        return self._between(holder, rest[0], spans)

    def _opposite(self, holder: nn.Module, rest: list[str], spans: Iterable[str]) -> str | None:
        """Return the list of layers, or of stages, that a list goes with one by one, if any.

        It is as long, and of one class: a norm for each stage.
        """
        own = holder._modules.get(rest[0])
        if not isinstance(own, nn.ModuleList) or len({type(element) for element in own}) > 1:
            return None
        lists = ((child, holder._modules[child]) for child in spans)
        return next(
            (n for n, m in lists if isinstance(m, nn.ModuleList) and len(m) == len(own) > 1), None
        )

    def _between(self, holder: nn.Module, name: str, spans: Mapping[str, Sequence[_Span]]) -> Depth:
        ranks = forward_ranks(holder, [name, *spans])
        above = [held for child, held in spans.items() if ranks[name] < ranks[child]]
        tower = next(iter(spans.values()))[0].tower
        if above:
            low = min(span.low for held in above for span in held)
            return self._depth(tower, low if low > 1 else 0)
        high = max(span.high for held in spans.values() for span in held)
        return self._depth(tower, high if high < self._heights[tower] else high + 1)

    def _depth(self, tower: int, layer: int) -> Depth:
        return Depth(layer, self._heights[tower] + 1 - layer)
