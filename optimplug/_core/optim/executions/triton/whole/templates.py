"""The text that all kernels of programs for whole tensors have in common."""

from __future__ import annotations

__all__ = ["FLAT", "HEAD", "LAST", "PLANES", "TILES"]

_GIVEN = "table, grads, chunks, shapes, spots, scalars, keys, factor, found_inf, scratch, measured"
"""What every kernel is given; see :class:`.tables.WholeTables`."""

_LAUNCHED = (
    "@triton.jit(do_not_specialize_on_alignment="
    '["scalars", "keys", "factor", "found_inf", "scratch", "measured"])\n'
)

HEAD = """\
    own = chunks + 2 * tl.program_id(0).to(tl.int64)
    tensor = tl.load(own).to(tl.int64)
    part = tl.load(own + 1).to(tl.int64)
    row = table + tensor * {width}
    elements_of = tl.load(row)
    alive = tl.full((), 1, tl.int64)
    spots += tensor * {spots}
    scalars += tl.load(row + 1) * {scalars}
    at_g = tl.load(grads + tensor)
{pointers}
    scale = tl.full((), 1.0, {work})
    if factor is not None:
        scale = tl.load(factor).to({work})
    if found_inf is not None:
        alive = (tl.load(found_inf) == 0).to(tl.int64)
    size = elements_of * alive"""

FLAT = (
    """\
@triton.jit
def elements{level}(
    {given}, part, factor, keys, tensor, start, size,
    WHOLE: tl.constexpr, BLOCK: tl.constexpr
):
{places}
{body}

"""
    + _LAUNCHED
    + f"def pass{{level}}({_GIVEN}, BLOCK: tl.constexpr):"
    + """
{head}
{numbers}
    start = part * BLOCK
    if (start + BLOCK <= size) & ((({every}) & 15) == 0):
        elements{level}({given}, part, scale, keys, tensor, start, size, True, BLOCK)
    else:
        elements{level}({given}, part, scale, keys, tensor, start, size, False, BLOCK)
"""
)

_AXES = """
    shape = shapes + tensor * 6
    B, R, C = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2)
    rows = B * R
    columns = B * C"""

TILES = (
    _LAUNCHED
    + f"def pass{{level}}({_GIVEN}, ROWS: tl.constexpr, WIDTH: tl.constexpr):"
    + "\n{head}"
    + _AXES
    + """
    step, slices, tiles = tl.load(shape + 3), tl.load(shape + 4), tl.load(shape + 5)
    factor = scale
    WHOLE: tl.constexpr = False
    tile = part % tiles
    section = part // tiles % slices
    b = part // (tiles * slices)
    column = tile * WIDTH + tl.arange(0, WIDTH)[None, :]
    c = tl.where(column < C, b * C + column, columns)
{before}
    stop = tl.minimum((section + 1) * step, R)
    for top in range(section * step, stop, ROWS):
        line = top + tl.arange(0, ROWS)[:, None]
        here = (line < stop) & (column < C)
        r = tl.where(line < stop, b * R + line, rows)
        i = tl.where(here, (b * R + line) * C + column, size)
{inside}
{after}
"""
)

PLANES = (
    _LAUNCHED
    + f"def planes{{level}}({_GIVEN}, BLOCK: tl.constexpr):"
    + "\n{head}"
    + _AXES
    + """
    b = part
{numbers}
{body}
"""
)

LAST = (
    _LAUNCHED
    + f"def last({_GIVEN}, BLOCK: tl.constexpr):"
    + "\n{head}"
    + _AXES
    + """
    kept_rows = rows * alive
    kept_columns = columns * alive
    j = part * BLOCK + tl.arange(0, BLOCK)
{numbers}
{body}
"""
)
