"""A program as C source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from optimplug._core.optim.executions.c_codes import (
    c_of_codes,
    in_block,
    loop_over_blocks,
)
from optimplug._core.optim.executions.ops import OPERATIONS
from optimplug._core.optim.executions.program import Argument, Program, Step
from optimplug._core.optim.executions.text import MAD, expression, fused_sums, indented, named
from optimplug._core.optim.rule import Rule, coded_names

__all__ = ["C_TYPES", "c_head", "c_name", "c_text", "squares_source", "update_source"]

C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bfloat",
    torch.int16: "short",
    torch.int8: "small",
    torch.uint8: "unsigned_small",
}
"""What tensors may hold. The arithmetic is in float, or in double where any of them is double."""

_HEAD = """\
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

typedef {work} work;
#define number(x) ((work)(x))
typedef struct {{ uint16_t bits; }} bfloat;

static inline work load_float(float x) {{ return x; }}
static inline work load_double(double x) {{ return x; }}
static inline work load_bfloat(bfloat x) {{
    uint32_t bits = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}}
static inline work load_short(short x) {{ return x; }}
static inline short store_short(work x) {{ return (short)x; }}
static inline float store_float(work x) {{ return x; }}
static inline double store_double(work x) {{ return x; }}
static inline bfloat store_bfloat(work x) {{ /* to nearest, ties to even; NaN stays NaN */
    float value = x;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    bfloat y = {{ value != value ? 0x7fc0 : (uint16_t)rounded }};
    return y;
}}
/* x * y + z, rounded once where the machine can. Left to the compiler, it would be another sum at
   the ends of a loop than within, and the result depend on how the threads share the work. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
static inline work mad(work x, work y, work z) {{ return {fma}(x, y, z); }}
#else
static inline work mad(work x, work y, work z) {{ return x * y + z; }}
#endif
static inline work root(work x) {{ return {root}(x); }}
static inline work magnitude(work x) {{ return {abs}(x); }}
static inline work blend(work x, work y, work w) {{
    return w < (work)0.5 ? mad(w, y - x, x) : mad(x - y, 1 - w, y);
}}
static inline work larger(work x, work y) {{ return x > y || x != x ? x : y; }}
static inline work smaller(work x, work y) {{ return x < y || x != x ? x : y; }}

/* A float32 and the bfloat16 that stands for it, as in bits.py: both must give the same bits. */
static inline uint32_t bits_of(work x) {{
    float value = x;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}}
static inline work number_of(uint32_t bits) {{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}}
/* Branches and conditional conversions would keep the compiler from doing many at once. */
static inline uint32_t size_of(uint32_t bits) {{ return bits & 0x7fffffff; }}
static inline int is_finite(uint32_t bits) {{ return size_of(bits) < 0x7f800000; }}
static inline int is_nan(uint32_t bits) {{ return size_of(bits) > 0x7f800000; }}
static inline uint32_t where(int is) {{ return -(uint32_t)is; }} /* a mask */
static inline work finite_or(work x, work y) {{ {finite_or} }}
static inline work narrowed(work x) {{ return load_bfloat(store_bfloat(x)); }}
static inline work visible(work x) {{
    uint32_t bits = bits_of(x), nearest = (bits + 0x8000) & 0xffff0000;
    return number_of(is_nan(bits) ? bits : nearest);
}}
static inline work hidden(work x) {{
    uint32_t bits = bits_of(x), nearest = (bits + 0x8000) & 0xffff0000;
    return (work)(int32_t)((bits - nearest) & where(is_finite(nearest) & !is_nan(bits)));
}}
static inline work joined(work x, work rest) {{
    uint32_t bits = bits_of(x);
    int32_t low = (int32_t)rest;
    uint32_t overwritten = where(!is_finite(bits)) | (where(size_of(bits) == 0) & where(low < 0));
    return number_of(bits + ((uint32_t)low & ~overwritten));
}}
static inline work drawn(work x, work random) {{
    uint32_t bits = bits_of(x), up = (bits + (uint32_t)(int32_t)random) & 0xffff0000;
    uint32_t found = is_finite(up) ? up : bits & 0xffff0000;
    return number_of(is_nan(bits) ? bits : found);
}}

/* Random numbers, as in draws.py: two keys, and the place of the first element. */
typedef int64_t drawing;
static inline uint32_t mixed(uint32_t x) {{
    x = (x ^ x >> 16) * 0x21f0aaad;
    x = (x ^ x >> 15) * 0x735a2d97;
    return x ^ x >> 15;
}}
static inline work draw(const drawing *key, int64_t i) {{
    uint64_t at = (uint64_t)key[2] + (uint64_t)i;
    uint32_t one = mixed((uint32_t)at ^ (uint32_t)key[0]);
    return (work)(int32_t)(mixed(one + (uint32_t)(at >> 32) + (uint32_t)key[1]) >> 16);
}}

/* Which thread this is, and of how many. */
static inline void place(int64_t *thread, int64_t *of) {{
#ifdef _OPENMP
    *thread = omp_get_thread_num();
    *of = omp_get_num_threads();
#else
    *thread = 0;
    *of = 1;
#endif
}}

/* The tensor that holds element `at`: starts[i] <= at < starts[i + 1]. */
static inline int64_t find(const int64_t *starts, int64_t count, int64_t at) {{
    int64_t low = 0, high = count;
    while (high - low > 1) {{
        int64_t middle = (low + high) / 2;
        if (starts[middle] <= at) low = middle; else high = middle;
    }}
    return low;
}}

/* Every thread takes an equal share of all elements, whichever tensors they stand in. */
#define FOR_EACH_PART(thread, of) \\
    const int64_t first = starts[count] * (thread) / (of); \\
    const int64_t last = starts[count] * ((thread) + 1) / (of); \\
    for (int64_t i = find(starts, count, first); i < count && starts[i] < last; i++)
#define PART_START (first > starts[i] ? first - starts[i] : 0)
#define PART_STOP ((last < starts[i + 1] ? last : starts[i + 1]) - starts[i])
"""

_UPDATE = """
static void elements({pointers}, int64_t start, int64_t stop, const double *k, work scale) {{
{scalars}
{loop}
}}

void update(int64_t count, const int64_t *starts, void *const *const *columns,
            const double *scalars, const int64_t *cells, double scale, int threads) {{
#pragma omp parallel num_threads(threads)
    {{
        int64_t thread, of;
        place(&thread, &of);
        FOR_EACH_PART(thread, of)
            elements({arguments}, {start}, {stop}, scalars + cells[i] * {width}, scale);
    }}
}}
"""

_SIZE = "starts[i + 1] - starts[i]"

_LOOP = """\
    for (int64_t i = start; i < stop; i++) {{
{body}
    }}"""

_SQUARES = """
/* The sum of squares, one for each thread: added up in their order, it is the same every time. */
void squares(int64_t count, const int64_t *starts, void *const *grads, double *sums, int threads) {{
#pragma omp parallel num_threads(threads)
    {{
        int64_t thread, of;
        place(&thread, &of);
        double sum = 0;
        FOR_EACH_PART(thread, of) {{
            const {type} *g = grads[i];
            const int64_t stop = PART_STOP;
            double part = 0;
#pragma omp simd reduction(+ : part)
            for (int64_t j = PART_START; j < stop; j++) part += (double)g[j] * (double)g[j];
            sum += part;
        }}
        sums[thread] = sum;
    }}
}}
"""


_FINITE_OR = {
    # A third of a step with kahan was this condition, which the compiler made many of.
    "float": """\
uint32_t x_bits = bits_of(x), is = where(is_finite(x_bits));
    return number_of((x_bits & is) | (bits_of(y) & ~is));""",
    "double": "return is_finite(bits_of(x)) ? x : y;",
}

_WIDEST = """\
#ifdef __AVX512F__
#pragma GCC target("prefer-vector-width=512")
#endif
"""
"""What sources begin with that compute more than they move."""

_NARROW = {torch.bfloat16, torch.int8, torch.uint8}
"""What is in such columns: narrow weights and moments, and codes."""


def update_source(program: Program, columns: Mapping[str, torch.dtype], rule: Rule) -> str:
    """Return the C of ``update``, which runs the program over columns of tensors.

    Args:
        program: what it does to one element.
        columns: their names, in their order: ``p``, ``g``, then the states; and the type of each,
            int64 where it has the keys of random numbers.
        rule: which of them are codes.
    """
    types = {name: C_TYPES.get(dtype, "drawing") for name, dtype in columns.items()}
    coded = {column for name in rule.codes for column in coded_names(name)}
    body = [
        f"work x_{name} = {_load(name, kind)};" for name, kind in types.items() if name not in coded
    ]
    body += [f"work x_{name} = {in_block(name)};" for name in rule.codes]
    body += ["x_g = x_g * scale;"]
    body += [f"const work t{i} = {c_text(step)};" for i, step in fused_sums(program)]
    for name, end in program.outputs:
        if name in rule.codes:
            body.append(f"{in_block(name)} = (float){c_name(end)};")
        else:
            body.append(f"at_{name}[i] = store_{types[name]}({c_name(end)});")
    scalars = [f"const work k_{name} = k[{i}];" for i, name in enumerate(program.coefficients)]
    blocks = bool(rule.codes)
    loop = loop_over_blocks(rule.codes, body) if blocks else _LOOP.format(body=indented(body, 8))
    return (
        c_head(list(columns.values()))
        + (c_of_codes() if blocks else "")
        + _UPDATE.format(
            pointers=", ".join(f"{kind} *restrict at_{name}" for name, kind in types.items()),
            scalars=indented(scalars, 4),
            loop=loop,
            arguments=", ".join(f"columns[{n}][i]" for n in range(len(types))),
            start="whole_blocks(PART_START)" if blocks else "PART_START",
            stop=f"least(whole_blocks(PART_STOP), {_SIZE})" if blocks else "PART_STOP",
            width=len(program.coefficients),
        )
    )


def _load(name: str, kind: str) -> str:
    return f"draw(at_{name}, i)" if kind == "drawing" else f"load_{kind}(at_{name}[i])"


def squares_source(dtype: torch.dtype) -> str:
    """Return the C of ``squares``, the sum over one column of tensors."""
    return c_head([dtype]) + _SQUARES.format(type=C_TYPES[dtype])


def c_head(dtypes: Sequence[torch.dtype]) -> str:
    """Return what every source begins with: the type of the arithmetic, and functions of it."""
    wide = torch.float64 in dtypes
    work, end = ("double", "") if wide else ("float", "f")
    functions = {"root": "sqrt", "fma": "fma", "abs": "fabs"}
    named = {name: f"__builtin_{function}{end}" for name, function in functions.items()}
    first = "" if _NARROW.isdisjoint(dtypes) else _WIDEST
    return first + _HEAD.format(work=work, finite_or=_FINITE_OR[work], **named)


def c_text(step: Step) -> str:
    """Return a step as a C expression."""
    return expression(step, OPERATIONS[step.operation].c if step.operation != MAD else None, c_name)


def c_name(argument: Argument) -> str:
    """Return an argument as a C expression."""
    return named(argument, "number({!r})")
