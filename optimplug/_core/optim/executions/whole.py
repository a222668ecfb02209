"""What rules are run on that need norms, means or whole matrices, and not each element alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from optimplug._core.internals import foreach_operator
from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.numbers import Numbers
from optimplug._core.optim.executions.operands import TensorList
from optimplug._core.optim.shards import Shards

__all__ = ["WholeTensors", "whole_operands"]


class WholeTensors(TensorList):
    """Tensors of which norms and means are taken over all of each, wherever its parts are.

    Axes are counted from the end. One that a mean was taken over has one element.

    Args:
        tensors: the parts that are here.
        shards: how the parameters that they belong to are cut.
        gone: the axes that means were taken over.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> whole = WholeTensors([x], Shards.of([x]))
        >>> whole.norm().each(), whole.mean(-1).tensors
        ([5.0], [tensor([[3.5000]])])
    """

    __slots__ = ("gone", "shards")

    def __init__(
        self, tensors: Sequence[Tensor], shards: Shards, gone: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(tensors)
        self.shards = shards
        self.gone = gone

    def like(self, tensors: Sequence[Tensor], *others: object) -> WholeTensors:
        gone = [self.gone, *(other.gone for other in others if isinstance(other, WholeTensors))]
        return WholeTensors(tensors, self.shards, frozenset.intersection(*gone))

    @property
    def dtype(self) -> torch.dtype:
        """The type that all have."""
        return self.tensors[0].dtype

    def norm(self) -> Numbers:
        """Return the root of the sum of the squares of each."""
        norms = torch.stack(list(foreach_operator("norm")(self.tensors)))
        if self.shards.mesh is None:
            return Numbers(norms)
        return Numbers(self._totals(norms.double().square())).sqrt()

    def rms(self) -> Numbers:
        """Return the root of the mean of the squares of each."""
        return self.norm() / self.root_sizes()

    def root_sizes(self) -> Numbers:
        """Return the roots of the numbers of elements."""
        roots = [shape.numel() ** 0.5 for shape in self._shapes()]
        return Numbers(torch.tensor(roots, dtype=torch.float64, device=self.tensors[0].device))

    def sum(self) -> Numbers:
        """Return the sum of each."""
        sums = torch.stack([tensor.sum() for tensor in self.tensors])
        return Numbers(sums if self.shards.mesh is None else self._totals(sums))

    def mean(self, axis: int) -> WholeTensors:
        """Return the means along an axis, which stays with one element."""
        return self._mean(axis, lambda t: t.sum(axis, keepdim=True), torch.mean)

    def mean_of_squares(self, axis: int) -> WholeTensors:
        """Return the means of the squares along an axis, which stays with one element."""

        def squares(t: Tensor) -> Tensor:
            norms: Tensor = torch.linalg.vector_norm(t, dim=axis, keepdim=True)
            return norms.square_()

        return self._mean(axis, squares, lambda t, dim, keepdim: squares(t).div_(t.size(dim)))

    def unsqueeze(self, axis: int) -> WholeTensors:
        """Return views with an axis of one element, where a mean has taken one away."""
        views = [tensor.unsqueeze(axis) for tensor in self.tensors]
        return WholeTensors(views, self.shards, self.gone)

    def map_matrices(
        self,
        function: Callable[[Tensor], Tensor],
        split: int | Sequence[int] | None = None,
        transposed: bool = False,
    ) -> WholeTensors:
        """Return the results of a function of whole matrices, done on many at once.

        Args:
            function: takes matrices of one shape, stacked, and returns as many of that shape.
            split: how many equal blocks of rows each is cut into, or how many rows each block has;
                the function then sees the blocks.
            transposed: of tensors with two axes the second one counts the rows.
        """
        whole = self.shards.whole(self.tensors)
        matrices = [
            tensor.mT if _is_on_its_side(tensor.shape, transposed) else tensor.flatten(1)
            for tensor in whole
        ]
        blocks = [list(torch.split(m, _rows(m, split))) for m in matrices]
        flat = list(chain.from_iterable(blocks))
        same: dict[torch.Size, list[int]] = {}
        for i, block in enumerate(flat):
            same.setdefault(block.shape, []).append(i)
        for places in same.values():
            results = function(torch.stack([flat[i] for i in places])).to(self.dtype)
            for i, result in zip(places, results.unbind(), strict=True):
                flat[i] = result
        rest = iter(flat)
        joined = [_joined([next(rest) for _ in own]) for own in blocks]
        shaped = [
            found.mT.contiguous()
            if _is_on_its_side(tensor.shape, transposed)
            else found.view(tensor.shape)
            for found, tensor in zip(joined, whole, strict=True)
        ]
        return WholeTensors(self.shards.part(shaped), self.shards, self.gone)

    def sides(self, transposed: bool = False) -> list[tuple[int, int]]:
        """Return rows and columns of each as a matrix: whatever follows the rows is flattened.

        Args:
            transposed: of tensors with two axes the second one counts the rows.
        """
        return [
            (shape[1], shape[0])
            if _is_on_its_side(shape, transposed)
            else (shape[0], shape[1:].numel())
            for shape in self.shards.shapes
        ]

    def _mean(
        self, axis: int, total: Callable[[Tensor], Tensor], mean: Callable[..., Tensor]
    ) -> WholeTensors:
        gone = self.gone | {axis}
        if self.shards.mesh is None:
            found = _of_each(self.tensors, lambda t: mean(t, dim=axis, keepdim=True))
        else:
            found = self.shards.total(_of_each(self.tensors, total), axis, self.gone)
            found = [t / shape[axis] for t, shape in zip(found, self._shapes(), strict=True)]
        return WholeTensors(found, self.shards, gone)

    def _totals(self, parts: Tensor) -> Tensor:
        return torch.stack(self.shards.total(list(parts.unbind()), None, self.gone))

    def _shapes(self) -> list[torch.Size]:
        """Return the whole shape of each."""
        if not self.gone:
            return self.shards.shapes
        return [
            torch.Size(1 if i - len(shape) in self.gone else n for i, n in enumerate(shape))
            for shape in self.shards.shapes
        ]


def whole_operands(
    batch: Batch, columns: Sequence[Sequence[Tensor]], places: Sequence[int]
) -> list[WholeTensors]:
    """Return parameters, gradients and states for a rule that needs the whole of each.

    Args:
        batch: what they belong to.
        columns: parameters, gradients, then what the rule finds among the states, in its order.
        places: where each tensor of a column stands in the batch.
    """
    shards = Shards.of([batch.owners[i] for i in places])
    gone = [frozenset[int]()] * 2
    gone += [frozenset([spec.over] if spec.over else []) for spec in batch.rule.saved]
    gone += [frozenset()] * batch.rule.draws
    return [WholeTensors(c, shards, g) for c, g in zip(columns, gone, strict=True)]


_STACKED_BYTES = 2**15
"""To put larger tensors beside each other takes longer than a call for each."""


def _of_each(tensors: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return a function's results; small tensors of one shape go through it together.

    Args:
        tensors: all of one type.
        function: counts axes from the end, so that it takes tensors stacked before the first.
    """
    same: dict[torch.Size, list[int]] = {}
    for i, tensor in enumerate(tensors):
        same.setdefault(tensor.shape, []).append(i)
    found = list(tensors)
    for places in same.values():
        own = [tensors[i] for i in places]
        if len(own) == 1 or own[0].nbytes > _STACKED_BYTES:
            results: Sequence[Tensor] = [function(tensor) for tensor in own]
        else:
            results = function(torch.stack(own)).unbind()
        for i, result in zip(places, results, strict=True):
            found[i] = result
    return found


def _is_on_its_side(shape: torch.Size, transposed: bool) -> bool:
    return transposed and len(shape) == 2


def _rows(matrix: Tensor, split: int | Sequence[int] | None) -> int | list[int]:
    rows = matrix.size(0)
    if split is None:
        return max(rows, 1)
    return rows // split if isinstance(split, int) else list(split)


def _joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
