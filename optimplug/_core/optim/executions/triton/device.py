"""What the text of a rule calls on the device: memory, arithmetic, bits, random numbers.

The functions have the names and the results of their twins in C (:mod:`..c_source`). Nothing but a
launch imports this file: it imports Triton. Here annotations are Triton's own: they say what is
known when a kernel is compiled.
"""

import triton
import triton.language as tl

__all__ = [
    "among",
    "blend",
    "down",
    "draw",
    "drawn",
    "finite_or",
    "hidden",
    "inverse",
    "joined",
    "larger",
    "load_bfloat",
    "load_number",
    "mad",
    "magnitude",
    "narrowed",
    "quotient",
    "root",
    "sign_of",
    "smaller",
    "store_bfloat",
    "store_number",
    "total",
    "visible",
]


@triton.jit
def pointer(address, WHOLE: tl.constexpr, TYPE: tl.constexpr):
    """Return an address from a table as a pointer.

    Of such an address nothing is known: that it is aligned must be said for wide loads.
    """
    found = address.to(tl.pointer_type(TYPE))
    if WHOLE:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def load_number(address, i, size, WHOLE: tl.constexpr, TYPE: tl.constexpr, WORK: tl.constexpr):
    """Return the elements ``i`` of a tensor; WHOLE: all of them are there, and it is aligned."""
    start = pointer(address, WHOLE, TYPE)
    if WHOLE:
        x = tl.load(start + i)
    else:
        x = tl.load(start + i, mask=i < size, other=0)
    return x.to(WORK)


@triton.jit
def store_number(address, i, x, size, WHOLE: tl.constexpr, TYPE: tl.constexpr):
    start = pointer(address, WHOLE, TYPE)
    if WHOLE:
        tl.store(start + i, x.to(TYPE))
    else:
        tl.store(start + i, x.to(TYPE), mask=i < size)


# bfloat16 as its bits: the interpreter's own conversion does not round to the nearest.


@triton.jit
def load_bfloat(address, i, size, WHOLE: tl.constexpr, TYPE: tl.constexpr, WORK: tl.constexpr):
    return wide(load_number(address, i, size, WHOLE, TYPE, TYPE)).to(WORK)


@triton.jit
def store_bfloat(address, i, x, size, WHOLE: tl.constexpr, TYPE: tl.constexpr):
    store_number(address, i, nearest(x), size, WHOLE, TYPE)


@triton.jit
def wide(bits):
    return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def nearest(x):
    """Return the bits of the nearest bfloat16, of two the even one; NaN stays NaN."""
    bits = bits_of(x)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(is_nan(bits), 0x7FC0, rounded).to(tl.uint16)


@triton.jit
def mad(x, y, z):
    """Return ``x * y + z``, rounded once."""
    return tl.fma(x, y, z)


@triton.jit
def quotient(x, y):
    if x.dtype == tl.float64:
        found = x / y
    else:
        found = tl.div_rn(x, y)  # a plain division is not exact in float32
    return found


@triton.jit
def inverse(x):
    return quotient(tl.full((), 1.0, x.dtype), x)


@triton.jit
def root(x):
    if x.dtype == tl.float64:
        found = tl.sqrt(x)
    else:
        found = tl.sqrt_rn(x)
    return found


@triton.jit
def magnitude(x):
    return tl.abs(x)


@triton.jit
def sign_of(x):
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def blend(x, y, w):
    return tl.where(w < 0.5, mad(w, y - x, x), mad(x - y, 1 - w, y))


@triton.jit
def larger(x, y):
    return tl.where((x > y) | (x != x), x, y)


@triton.jit
def smaller(x, y):
    return tl.where((x < y) | (x != x), x, y)


# Sums: those of a program in the type of the arithmetic, what is added up later in float64.


@triton.jit
def total(x, i, size, WHOLE: tl.constexpr):
    """Return the sum of the elements ``i``; WHOLE: all of them are there."""
    if not WHOLE:
        x = tl.where(i < size, x, 0.0)
    return tl.sum(x).to(tl.float64)


@triton.jit
def among(x, here):
    """Return the sum of each row, of those elements that are there."""
    return tl.sum(tl.where(here, x, 0.0), 1, keep_dims=True).to(tl.float64)


@triton.jit
def down(x):
    """Return the sum of each column."""
    return tl.sum(x, 0, keep_dims=True).to(tl.float64)


# A float32 weight and the bfloat16 that stands for it, as in bits.py: to the same bits.


@triton.jit
def bits_of(x):
    return x.to(tl.float32).to(tl.uint32, bitcast=True)


@triton.jit
def number_of(bits, like):
    return bits.to(tl.float32, bitcast=True).to(like.dtype)


@triton.jit
def is_finite(bits):
    return (bits & 0x7FFFFFFF) < 0x7F800000


@triton.jit
def is_nan(bits):
    return (bits & 0x7FFFFFFF) > 0x7F800000


@triton.jit
def upper(bits):
    """Return the half that a bfloat16 keeps."""
    return (bits >> 16) << 16


@triton.jit
def signed(number):
    """Return a whole number as 32 bits."""
    return number.to(tl.int32).to(tl.uint32, bitcast=True)


@triton.jit
def finite_or(x, y):
    return tl.where(is_finite(bits_of(x)), x, y)


@triton.jit
def narrowed(x):
    return wide(nearest(x)).to(x.dtype)


@triton.jit
def visible(x):
    bits = bits_of(x)
    return number_of(tl.where(is_nan(bits), bits, upper(bits + 0x8000)), x)


@triton.jit
def hidden(x):
    bits = bits_of(x)
    near = upper(bits + 0x8000)
    rest = (bits - near).to(tl.int32, bitcast=True)
    return tl.where(is_finite(near) & (is_nan(bits) == 0), rest, 0).to(x.dtype)


@triton.jit
def joined(x, rest):
    bits = bits_of(x)
    overwritten = (is_finite(bits) == 0) | (((bits & 0x7FFFFFFF) == 0) & (rest < 0))
    return number_of(tl.where(overwritten, bits, bits + signed(rest)), x)


@triton.jit
def drawn(x, random):
    bits = bits_of(x)
    up = upper(bits + signed(random))
    found = tl.where(is_finite(up), up, upper(bits))
    return number_of(tl.where(is_nan(bits), bits, found), x)


@triton.jit
def mixed(x):
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return x ^ (x >> 15)


@triton.jit
def draw(keys, tensor, i, WORK: tl.constexpr):
    """Return a random number for each element; as in draws.py, from two keys and its place."""
    place = tl.load(keys + 3 * tensor + 2) + i
    one = mixed(place.to(tl.uint32) ^ tl.load(keys + 3 * tensor).to(tl.uint32))
    other = one + (place >> 32).to(tl.uint32) + tl.load(keys + 3 * tensor + 1).to(tl.uint32)
    return (mixed(other) >> 16).to(tl.int32).to(WORK)
