"""C for moments in codes, as in :mod:`optimplug._core.optim.storage.codes`; loops over blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from optimplug._core.optim.executions.text import indented
from optimplug._core.optim.rule import coded_names
from optimplug._core.optim.storage.codes import BLOCK, CODES, CodeName

__all__ = ["c_of_codes", "in_block", "loop_over_blocks"]

_CODES = """
/* Moments in codes, as in codes.py: both must give the same bits. */
typedef int8_t small;
typedef uint8_t unsigned_small;
#define BLOCK {block}
/* Whole blocks are shared out: each goes to the thread that has its first element. */
static inline int64_t whole_blocks(int64_t at) {{ return (at + BLOCK - 1) / BLOCK * BLOCK; }}
static inline int64_t least(int64_t x, int64_t y) {{ return x < y ? x : y; }}

static inline void decode_signed(const small *codes, float scale, float *x, int64_t count) {{
    for (int64_t i = 0; i < count; i++) {{
        float c = codes[i];
        x[i] = c * __builtin_fabsf(c) * {signed.unit!r}f * scale;
    }}
}}
static inline void decode_unsigned(const unsigned_small *codes, float scale, float *x,
                                   int64_t count) {{
    for (int64_t i = 0; i < count; i++) {{
        float c = codes[i];
        x[i] = c * c * c * {unsigned.unit!r}f * scale;
    }}
}}
/* The largest magnitude; NaN where one is not finite. */
static inline float scale_of(const float *x, int64_t count) {{
    int32_t most = 0;
    for (int64_t i = 0; i < count; i++) {{
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }}
    if (most >= 0x7f800000) most = 0x7fc00000;
    float scale;
    memcpy(&scale, &most, 4);
    return scale;
}}
/* Whether there is something to encode; branches within the loops would slow them down. */
static inline int all_alike(float scale) {{ return !(scale > 0 && scale < __builtin_inff()); }}

static inline float encode_signed(const float *x, small *codes, float offset, int64_t count) {{
    const float scale = scale_of(x, count);
    if (all_alike(scale)) {{
        memset(codes, 0, count);
        return scale;
    }}
    const float up = scale < 0x1p-60f ? 0x1p60f : 1, inverse = 1 / (scale * up);
    for (int64_t i = 0; i < count; i++) {{
        float ratio = __builtin_fabsf(x[i]) * up * inverse;
        int32_t code = (int32_t)(__builtin_sqrtf(ratio) * {signed.levels} + offset);
        int32_t sign = -(int32_t)(x[i] < 0);
        codes[i] = (small)((code ^ sign) - sign);
    }}
    return scale;
}}
static inline float cube_root(float x) {{
    int32_t bits;
    memcpy(&bits, &x, 4);
    bits = bits > 0x0da24260 ? bits : 0x0da24260; /* 1e-30; to compare floats would be a branch */
    memcpy(&x, &bits, 4);
    bits = 1419967488 - (int32_t)((float)bits * (float)(1.0 / 3));
    float y, third = x * (float)(1.0 / 3);
    memcpy(&y, &bits, 4);
    y = y * ((float)(4.0 / 3) - third * (y * y * y)); /* in a loop it would not be done for many */
    y = y * ((float)(4.0 / 3) - third * (y * y * y));
    y = y * ((float)(4.0 / 3) - third * (y * y * y));
    return x * (y * y);
}}
static inline float encode_unsigned(const float *x, unsigned_small *codes, float offset,
                                    int64_t count) {{
    const float scale = scale_of(x, count);
    if (all_alike(scale)) {{
        memset(codes, 0, count);
        return scale;
    }}
    const float up = scale < 0x1p-60f ? 0x1p60f : 1, inverse = 1 / (scale * up);
    for (int64_t i = 0; i < count; i++) {{
        float ratio = __builtin_fabsf(x[i]) * up * inverse;
        int32_t code = (int32_t)(cube_root(ratio) * {unsigned.levels} + offset);
        codes[i] = (unsigned_small)((code > 1 ? code : 1) & -(int32_t)(x[i] > 0));
    }}
    return scale;
}}
"""

_LOOP = """\
    for (int64_t at = start; at < stop; at += BLOCK) {{
        const int64_t count = stop - at < BLOCK ? stop - at : BLOCK;
{decoded}
        for (int64_t j = 0; j < count; j++) {{
            const int64_t i = at + j;
{body}
        }}
{encoded}
    }}"""


def c_of_codes() -> str:
    """Return the functions that turn blocks of codes into numbers and back."""
    return _CODES.format(block=BLOCK, **CODES)


def in_block(name: str) -> str:
    """Return where a number of the block stands that a loop is at."""
    return f"block_{name}[j]"


def loop_over_blocks(codes: Mapping[str, CodeName], body: Iterable[str]) -> str:
    """Return a loop over the elements ``start`` to ``stop``, block by block.

    Args:
        codes: the states that are in codes, and the code of each.
        body: what it does to an element, number ``i``.
    """
    decoded, encoded = [], []
    for name, code in codes.items():
        at_codes, at_scales = (f"at_{column}" for column in coded_names(name))
        scale, block = f"{at_scales}[at / BLOCK]", f"block_{name}"
        decoded += [f"float {block}[BLOCK];"]
        decoded += [f"decode_{code}({at_codes} + at, {scale}, {block}, count);"]
        encoded += [f"{scale} = encode_{code}({block}, {at_codes} + at, (float)k_offset, count);"]
    return _LOOP.format(
        decoded=indented(decoded, 8), body=indented(body, 12), encoded=indented(encoded, 8)
    )
