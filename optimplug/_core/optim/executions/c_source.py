"""A program as C source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch

from optimplug._core.optim.executions.ops import OPERATIONS
from optimplug._core.optim.executions.program import (
    Argument,
    Constant,
    Input,
    Program,
    Result,
    Scalar,
    Step,
)

__all__ = ["C_TYPES", "c_head", "c_name", "c_text", "fused_sums", "squares_source", "update_source"]

C_TYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat"}
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
    for (int64_t i = start; i < stop; i++) {{
{body}
    }}
}}

void update(int64_t count, const int64_t *starts, void *const *const *columns,
            const double *scalars, const int64_t *cells, double scale, int threads) {{
#pragma omp parallel num_threads(threads)
    {{
        int64_t thread, of;
        place(&thread, &of);
        FOR_EACH_PART(thread, of)
            elements({arguments}, PART_START, PART_STOP, scalars + cells[i] * {width}, scale);
    }}
}}
"""

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


def update_source(program: Program, dtypes: Sequence[torch.dtype], operands: Sequence[str]) -> str:
    """Return the C of ``update``, which runs the program over columns of tensors.

    Args:
        program: what it does to one element.
        dtypes: of each column.
        operands: the names of the columns, in their order: ``p``, ``g``, then the states.
    """
    types = dict(zip(operands, (C_TYPES[dtype] for dtype in dtypes), strict=True))
    body = [f"work x_{name} = load_{kind}(at_{name}[i]);" for name, kind in types.items()]
    body += ["x_g = x_g * scale;"]
    body += [f"const work t{i} = {c_text(step)};" for i, step in fused_sums(program)]
    body += [f"at_{n}[i] = store_{types[n]}({c_name(end)});" for n, end in program.outputs]
    scalars = [f"const work k_{name} = k[{i}];" for i, name in enumerate(program.coefficients)]
    return c_head(dtypes) + _UPDATE.format(
        pointers=", ".join(f"{kind} *restrict at_{name}" for name, kind in types.items()),
        scalars="\n".join("    " + line for line in scalars),
        body="\n".join("        " + line for line in body),
        arguments=", ".join(f"columns[{n}][i]" for n in range(len(operands))),
        width=len(program.coefficients),
    )


def squares_source(dtype: torch.dtype) -> str:
    """Return the C of ``squares``, the sum over one column of tensors."""
    return c_head([dtype]) + _SQUARES.format(type=C_TYPES[dtype])


def c_head(dtypes: Sequence[torch.dtype]) -> str:
    """Return what every source begins with: the type of the arithmetic, and functions of it."""
    wide = torch.float64 in dtypes
    work, end = ("double", "") if wide else ("float", "f")
    functions = {"root": "sqrt", "fma": "fma", "abs": "fabs"}
    named = {name: f"__builtin_{function}{end}" for name, function in functions.items()}
    return _HEAD.format(work=work, **named)


_FUSED_SUM = "mad({0}, {1}, {2})"


def c_text(step: Step) -> str:
    """Return a step as a C expression."""
    form = OPERATIONS[step.operation].c if step.operation != "mad" else _FUSED_SUM
    assert form is not None  # a program has no other steps
    return form.format(*map(c_name, step.arguments))


def c_name(argument: Argument) -> str:
    """Return an argument as a C expression."""
    match argument:
        case Input(name):
            return f"x_{name}"
        case Scalar(name):
            return f"k_{name}"
        case Result(step):
            return f"t{step}"
        case Constant(value):
            return f"number({value!r})"


def fused_sums(
    program: Program, in_one_loop: Callable[[int, int], bool] = lambda product, total: True
) -> list[tuple[int, Step]]:
    """Return the numbered steps, with every product that goes into one sum alone inside that sum.

    A fused multiply-add rounds once instead of twice. It is written out here, and not left to the
    compiler, for the reason that stands beside ``mad``.

    Args:
        program: what has these steps.
        in_one_loop: whether two steps, a product and a sum, are computed for the same elements.
    """
    uses = Counter(argument for step in program.steps for argument in step.arguments)
    uses.update([*(end for _, end in program.outputs), *program.measured])
    products = {
        Result(i): step.arguments
        for i, step in enumerate(program.steps)
        if step.operation == "mul" and uses[Result(i)] == 1
    }
    steps: list[tuple[int, Step]] = []
    inside = set()
    for i, step in enumerate(program.steps):
        if step.operation == "add":
            one, other = step.arguments
            fits = [a for a in (other, one) if a in products and in_one_loop(a.step, i)]
            if fits:
                product, rest = fits[0], one if fits[0] is other else other
                inside.add(product)
                step = Step("mad", (*products[product], rest))
        steps.append((i, step))
    return [(i, step) for i, step in steps if Result(i) not in inside]
