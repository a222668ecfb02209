"""What the text of a rule calls on the device for moments in codes: bytes to numbers, and back.

They are those of :mod:`optimplug._core.optim.storage.codes`, as in C (:mod:`..c_codes`): all three
give the same bits. Elements stand in a row for each block that shares a scale, so that the largest
of a block is that of a row. As in :mod:`.device`, annotations are Triton's own here.
"""

import triton
import triton.language as tl

from optimplug._core.optim.executions.triton.device import (
    inverse,
    load_number,
    magnitude,
    pointer,
    root,
    store_number,
)
from optimplug._core.optim.storage import codes

__all__ = [
    "blocks_of",
    "in_blocks",
    "load_signed",
    "load_unsigned",
    "store_signed",
    "store_unsigned",
]

_SIGNED, _UNSIGNED = codes.CODES["signed"], codes.CODES["unsigned"]
WIDTH = tl.constexpr(codes.BLOCK)
SIGNED_UNIT, SIGNED_LEVELS = tl.constexpr(_SIGNED.unit), tl.constexpr(_SIGNED.levels)
UNSIGNED_UNIT, UNSIGNED_LEVELS = tl.constexpr(_UNSIGNED.unit), tl.constexpr(_UNSIGNED.levels)


@triton.jit
def blocks_of(start, COUNT: tl.constexpr):
    """Return the numbers of the blocks of COUNT elements, in a column."""
    return start // WIDTH + tl.arange(0, COUNT // WIDTH)[:, None]


@triton.jit
def in_blocks(start, COUNT: tl.constexpr):
    """Return the places of COUNT elements, in a row for each block."""
    rows = tl.arange(0, COUNT // WIDTH)[:, None] * WIDTH
    return start + (rows + tl.arange(0, WIDTH)[None, :])


@triton.jit
def load_signed(at, scales, i, block, size, WHOLE: tl.constexpr, WORK: tl.constexpr):
    c = load_number(at, i, size, WHOLE, tl.int8, tl.float32)
    return (c * magnitude(c) * SIGNED_UNIT * load_scales(scales, block, size)).to(WORK)


@triton.jit
def load_unsigned(at, scales, i, block, size, WHOLE: tl.constexpr, WORK: tl.constexpr):
    c = load_number(at, i, size, WHOLE, tl.uint8, tl.float32)
    return (c * c * c * UNSIGNED_UNIT * load_scales(scales, block, size)).to(WORK)


@triton.jit
def load_scales(scales, block, size):
    return tl.load(pointer(scales, False, tl.float32) + block, mask=block * WIDTH < size, other=0)


@triton.jit
def store_scales(scales, block, scale, size):
    tl.store(pointer(scales, False, tl.float32) + block, scale, mask=block * WIDTH < size)


@triton.jit
def zero_beyond(x, i, size, WHOLE: tl.constexpr):
    """Return numbers in float32, with 0 where there is no element: it must not be the largest."""
    x = x.to(tl.float32)
    if not WHOLE:
        x = tl.where(i < size, x, 0.0)
    return x


@triton.jit
def scale_of(x):
    """Return the largest magnitude of each row; NaN where one is not finite."""
    most = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1, keep_dims=True)
    return tl.where(most >= 0x7F800000, 0x7FC00000, most).to(tl.float32, bitcast=True)


@triton.jit
def shares(x, scale):
    """Return the magnitudes as shares of the scale; 0 where it is none, or not finite."""
    some = (scale > 0) & (scale < float("inf"))
    safe = tl.where(some, scale, 1.0)
    # Of a scale near the least of all numbers the inverse would be infinite.
    up = tl.where(safe < 2**-60, 2.0**60, 1.0)
    return tl.where(some, magnitude(x) * up * inverse(safe * up), 0.0)


@triton.jit
def store_signed(at, scales, i, block, x, offset, size, WHOLE: tl.constexpr):
    x = zero_beyond(x, i, size, WHOLE)
    scale = scale_of(x)
    code = (root(shares(x, scale)) * SIGNED_LEVELS + offset.to(tl.float32)).to(tl.int32)
    store_number(at, i, tl.where(x < 0, -code, code), size, WHOLE, tl.int8)
    store_scales(scales, block, scale, size)


@triton.jit
def store_unsigned(at, scales, i, block, x, offset, size, WHOLE: tl.constexpr):
    x = zero_beyond(x, i, size, WHOLE)
    scale = scale_of(x)
    share = shares(x, scale)
    code = (cube_root(share) * UNSIGNED_LEVELS + offset.to(tl.float32)).to(tl.int32)
    # A number above zero never becomes zero; in a block without a scale all are.
    code = tl.where((x > 0) & (scale < float("inf")), tl.maximum(code, 1), 0)
    store_number(at, i, code, size, WHOLE, tl.uint8)
    store_scales(scales, block, scale, size)


@triton.jit
def cube_root(x):
    """Return cube roots of numbers from 0 to 1, by multiplications alone."""
    bits = tl.maximum(x.to(tl.int32, bitcast=True), 0x0DA24260)  # 1e-30
    x = bits.to(tl.float32, bitcast=True)
    y = (1419967488 - (bits.to(tl.float32) * (1 / 3)).to(tl.int32)).to(tl.float32, bitcast=True)
    third = x * (1 / 3)
    for _ in tl.static_range(3):
        y = y * (4 / 3 - third * (y * y * y))
    return x * (y * y)
