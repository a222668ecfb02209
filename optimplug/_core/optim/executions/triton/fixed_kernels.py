"""The kernels that are not made of a rule: that of the norm, and one that does nothing.

As in :mod:`.device`, annotations are Triton's own here, and nothing but a launch imports this file.
"""

import triton
import triton.language as tl

from optimplug._core.optim.executions.triton.device import (
    load_bfloat,
    load_number,
    quotient,
    root,
    smaller,
)

__all__ = ["add_up", "norm", "nothing"]


@triton.jit
def squares(address, i, size, WHOLE: tl.constexpr, TYPE: tl.constexpr, WORK: tl.constexpr):
    """Return the sum of the squares of some elements."""
    if TYPE == tl.uint16:  # the bits of a bfloat16
        x = load_bfloat(address, i, size, WHOLE, TYPE, WORK)
    else:
        x = load_number(address, i, size, WHOLE, TYPE, WORK)
    return tl.sum(x * x, 0).to(tl.float64)


@triton.jit(
    do_not_specialize=["count"],
    do_not_specialize_on_alignment=["scale", "found_inf"],
)
def norm(
    grads,
    sizes,
    chunks,
    count,
    limit,
    scale,
    found_inf,
    partial,
    arrived,
    result,
    PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
    SKIPS: tl.constexpr,
    TYPE: tl.constexpr,
    WORK: tl.constexpr,
):
    """Write the norm of all gradients, what they are to be multiplied by, and whether to skip.

    Every program adds up its share, always in the same order; the last one that arrives adds up
    these sums.

    Args:
        grads: the address of each gradient.
        sizes: the number of its elements.
        chunks: pairs of a tensor and the number of a block in it.
        count: how many chunks there are.
        limit: what the norm is clipped to; None for no clipping.
        scale: what a GradScaler has multiplied the gradients by; None for one.
        found_inf: 1 where the step is to be skipped anyhow; None for never.
        partial: room for a sum of each program.
        arrived: how many programs have written theirs: 0, before and after.
        result: where the three are written.
        PROGRAMS: how many there are.
        BLOCK: the elements of a chunk.
        SKIPS: whether a norm that is not finite is a reason to skip.
        TYPE: of the gradients in memory.
        WORK: the type of the three, and of each square.
    """
    own = tl.program_id(0)
    total = tl.full((), 0.0, tl.float64)
    for at in range(own, count, PROGRAMS):
        tensor = tl.load(chunks + 2 * at).to(tl.int64)
        start = tl.load(chunks + 2 * at + 1).to(tl.int64) * BLOCK
        address = tl.load(grads + tensor)
        size = tl.load(sizes + tensor)
        i = start + tl.arange(0, BLOCK)
        if (start + BLOCK <= size) & ((address & 15) == 0):
            total += squares(address, i, size, True, TYPE, WORK)
        else:
            total += squares(address, i, size, False, TYPE, WORK)
    tl.store(partial + own, total)
    # This waits for the program's own store, and whoever sees the last count sees all stores.
    before = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu")
    if before == PROGRAMS - 1:
        every = tl.load(partial + tl.arange(0, PROGRAMS), cache_modifier=".cg")
        found = root(tl.sum(every, 0)).to(WORK)
        one = tl.full((), 1.0, WORK)
        factor = one
        if scale is not None:
            factor = quotient(one, tl.load(scale).to(WORK))
            found = found * factor
        if SKIPS:
            skip = (found - found) != 0  # infinite, or not a number
        else:
            skip = own < 0  # never
        if found_inf is not None:
            skip = skip | (tl.load(found_inf) != 0)
        if limit is not None:
            clip = quotient(tl.load(limit).to(WORK), found + 1e-6)
            factor = factor * smaller(clip, one)
        tl.store(result, found)
        tl.store(result + 1, factor)
        tl.store(result + 2, skip.to(WORK))
        tl.store(arrived, 0)


@triton.jit(do_not_specialize_on_alignment=["scratch"])
def add_up(items, scratch, DEPTH: tl.constexpr, WIDTH: tl.constexpr):
    """Add up what the programs of a pass over whole tensors have found, always in the same order.

    Args:
        items: for each program seven numbers: where in the scratch memory the parts begin, how far
            they are from each other, how many there are; where the results go, how many there are,
            what they are divided by; and which of the blocks of results is this program's.
        scratch: float64.
        DEPTH: how many parts are read at once.
        WIDTH: the results of a block.
    """
    own = items + 7 * tl.program_id(0).to(tl.int64)
    source, apart, count = tl.load(own), tl.load(own + 1), tl.load(own + 2)
    to, width, over = tl.load(own + 3), tl.load(own + 4), tl.load(own + 5)
    parts = scratch + source
    divisor = over.to(tl.float64)
    if width == 1:  # of which there may be many parts
        single = tl.zeros((DEPTH * WIDTH,), tl.float64)
        for at in range(0, count, DEPTH * WIDTH):
            n = at + tl.arange(0, DEPTH * WIDTH)
            single += tl.load(parts + n * apart, mask=n < count, other=0.0)
        tl.store(scratch + to, tl.sum(single, 0) / divisor)
    else:
        j = tl.load(own + 6) * WIDTH + tl.arange(0, WIDTH)[None, :]
        several = tl.zeros((DEPTH, WIDTH), tl.float64)
        for at in range(0, count, DEPTH):
            n = at + tl.arange(0, DEPTH)[:, None]
            here = (n < count) & (j < width)
            several += tl.load(parts + n * apart + j, mask=here, other=0.0)
        found = tl.sum(several, 0, keep_dims=True) / divisor
        tl.store(scratch + to + j, found, mask=j < width)


@triton.jit
def nothing(there):
    """Write what is there already."""
    tl.store(there, tl.load(there))
