r"""Moments in eight bits: a code for each number, and a scale for each block of them.

The scale is the largest magnitude :math:`s` of 128 numbers that follow one another. A number
:math:`x` becomes

.. math::
    c = \lfloor 127 \sqrt{|x| / s} + d \rfloor, \; x' = \pm s\, (c / 127)^2
    \qquad
    c = \lfloor 255 \sqrt[3]{x / s} + d \rfloor, \; x' = s\, (c / 255)^3

The first, ``signed``, is for means of gradients; the second, ``unsigned``, for what is never
negative, as second moments. The largest number of a block is kept as it is, so whatever has been
decoded becomes the same codes and scales again (but under scales of 1e-36, where the smallest codes
stand for less than float32 has).

Why these (all measured on the gradients of 100 steps of MiniLM; the benchmark ``storage.py`` shows
them beside those of bitsandbytes and torchao):

- *Powers.* What divides must be right where it is small, or steps explode: a code that is even
  (power 1) or made for weights makes 0 of it. With power 2 the errors of second moments are the
  smallest in the mean, but what is under 1/65,000 of the largest is lost; with 4 the large ones,
  most of all numbers, are twice as far off. Of 3 the smallest code is 1/16,000,000 of the largest;
  a number above zero never becomes zero.
- *Blocks.* A scale for 256 numbers, as elsewhere, saves 0.016 bytes for each of them, and has a
  tenth to a fifth more error, as the largest number of a block is larger.
- *The offset* :math:`d` between 0 and 1 is another one at each step, spread evenly, where rounding
  to nearest (1/2) would be a trap: a second moment falls by a thousandth at a step, less than half
  of a code, and so would never fall. After 3,000 steps of normal gradients it is 12 % too large
  with 1/2, and right within 1 % in the mean so.

A block that has a number which is not finite is NaN as a whole from then on.

Everything is done in float32, by operations that are exact or rounded once, so that the C of
:mod:`.executions.c_source` gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from optimplug._core.optim.counts import Count, at_least, at_most, either

__all__ = ["BLOCK", "CODES", "NEAREST", "SMALLEST", "Code", "CodeName", "offset"]

CodeName: TypeAlias = Literal["signed", "unsigned"]

BLOCK = 128
"""How many numbers share a scale."""
SMALLEST = 4096
"""Tensors with fewer elements are not worth it."""
NEAREST = 0.5
"""The offset that leads to the nearest code."""
_GOLDEN = 0.6180339887498949


def offset(step: Count) -> Any:
    """Return the offset of a step: a fraction of a multiple of the golden ratio, then its opposite.

    It is in units that float32 has, and so far from 0 and 1 that what has a code gets it again.
    """
    fraction = step // 2 * _GOLDEN % 1
    number = either(step % 2 != 0, fraction, 1 - fraction) * 1024
    return at_most(at_least(number // 1, 1), 1023) / 1024


class Code(NamedTuple):
    """How numbers become bytes."""

    name: CodeName
    dtype: torch.dtype
    levels: int
    power: int

    @property
    def unit(self) -> float:
        """The share of a scale that code 1 stands for; in float32 it makes the last one 1 again."""
        return torch.tensor(1 / self.levels**self.power, dtype=torch.float32, device="cpu").item()

    def encode(
        self, tensors: Sequence[Tensor], offsets: float | Sequence[float] = NEAREST
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return codes and scales.

        Args:
            tensors: float32.
            offsets: one for all, or one for each.

        Example:
            >>> (codes,), (scales,) = CODES["signed"].encode([torch.tensor([1.0, -0.25, 0.0])])
            >>> codes, scales
            (tensor([127, -64,   0], dtype=torch.int8), tensor([1.]))
        """
        x, counts = _blocks(tensors)
        top = x.abs().amax(1, keepdim=True)
        top = torch.where(top.isfinite(), top, torch.nan)
        # Of a scale near the least of all numbers the inverse would be infinite.
        up = torch.where(top < 2**-60, 2.0**60, 1.0)
        ratio = x.abs().mul_(up).mul_((top * up).reciprocal_())
        place = _cube_root(ratio) if self.power == 3 else ratio.sqrt()
        place.mul_(self.levels).add_(_each(offsets, counts, x)).floor_().clamp_(max=self.levels)
        found = torch.where(ratio > 0, place, 0)
        if self.name == "unsigned":
            found = torch.where((x > 0) & (ratio >= 0), found.clamp_(min=1), 0)
        else:
            found = found.mul_(x.sign())
        return _cut(found.to(self.dtype), tensors, counts), list(torch.split(top.view(-1), counts))

    def decode(self, codes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
        """Return what codes and scales stand for, in float32.

        Example:
            >>> codes = torch.tensor([127, -64], dtype=torch.int8)
            >>> CODES["signed"].decode([codes], [torch.ones(1)])
            [tensor([ 1.0000, -0.2540])]
        """
        c, counts = _blocks(codes)
        x = c.to(torch.float32)
        x = x * x * x if self.power == 3 else x * x.abs()
        x = x.mul_(self.unit).mul_(torch.cat(list(scales)).unsqueeze(1))
        return _cut(x, codes, counts)


CODES: dict[CodeName, Code] = {
    "signed": Code("signed", torch.int8, 127, 2),
    "unsigned": Code("unsigned", torch.uint8, 255, 3),
}


def _cube_root(x: Tensor) -> Tensor:
    """Return cube roots of numbers from 0 to 1, by multiplications alone.

    A guess from the exponent is off by 3 %; three rounds of Newton's method on the inverse make it
    as exact as float32 is.
    """
    x = x.clamp_min(1e-30)  # or powers of the inverse would be infinite
    bits = x.view(torch.int32).to(torch.float32)
    y = (1419967488 - bits.mul_(1 / 3).to(torch.int32)).view(torch.float32)
    third = x * (1 / 3)
    for _ in range(3):
        y = y * (4 / 3 - third * (y * y * y))
    return x * (y * y)


def _blocks(tensors: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Return all tensors as rows of a block each, the last of a tensor filled up with zeros."""
    counts = [-(-tensor.numel() // BLOCK) for tensor in tensors]
    rows = [
        torch.nn.functional.pad(tensor.reshape(-1), (0, count * BLOCK - tensor.numel()))
        for tensor, count in zip(tensors, counts, strict=True)
    ]
    return torch.cat(rows).view(-1, BLOCK), counts


def _cut(blocks: Tensor, like: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    rows = torch.split(blocks, list(counts))
    return [
        row.reshape(-1)[: tensor.numel()].view(tensor.shape)
        for row, tensor in zip(rows, like, strict=True)
    ]


def _each(offsets: float | Sequence[float], counts: Sequence[int], x: Tensor) -> Tensor | float:
    if not isinstance(offsets, Sequence):
        return offsets
    each = torch.tensor(offsets, dtype=x.dtype, device=x.device)
    repeats = torch.tensor(counts, device=x.device)
    return each.repeat_interleave(repeats, output_size=len(x)).unsqueeze(1)
