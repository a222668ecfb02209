"""The C that every program for whole tensors has in common; the others here fill the rest in.

A tensor has the shape ``B, R, C``: planes, rows of each, elements of each row. Where a rule knows
nothing of axes, it is one row. A chunk is a part of a row, or some rows of a plane, or some planes.
"""

from __future__ import annotations

__all__ = ["BY_AXES", "FLAT", "HEAD", "LENGTHS", "SMALL_MEAN", "SUM_UP_COLUMNS", "UPDATE"]

LENGTHS = {"row": "z->B * z->R", "column": "z->B * z->C", "plane": "z->B"}
"""How many elements what is smaller than a tensor has, by its kind."""

HEAD = """
/* torch.maximum and torch.minimum: NaN where either is. */
static inline double number_larger(double x, double y) { return x > y || x != x ? x : y; }
static inline double number_smaller(double x, double y) { return x < y || x != x ? x : y; }
static inline double number_root(double x) { return __builtin_sqrt(x); }

#define SPAN 32768 /* elements of a chunk, more or less */
#define LEAST_ROWS 64 /* of a chunk: what is summed up by columns is small beside it */

typedef struct {
    int64_t B, R, C;
    int64_t slices; /* of a plane, each a chunk; 1: a chunk is one plane or more */
    int64_t step;   /* of a chunk: its rows where planes are sliced, else its planes */
    int64_t chunks;
} shape;

static inline int64_t quotient_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

static inline shape flat(const int64_t *s) {
    shape z = {1, 1, s[0] * s[1] * s[2], 1, SPAN, 0};
    z.chunks = quotient_up(z.C, SPAN);
    return z;
}

static inline shape by_axes(const int64_t *s) {
    shape z = {s[0], s[1], s[2], 1, 1, 0};
    int64_t plane = z.R * z.C;
    if (plane > SPAN) {
        z.step = SPAN / z.C > LEAST_ROWS ? SPAN / z.C : LEAST_ROWS;
        z.slices = quotient_up(z.R, z.step);
        if (z.slices > 1) {
            z.chunks = z.B * z.slices;
            return z;
        }
        z.step = 1;
    } else if (plane > 0) {
        z.step = SPAN / plane;
    }
    z.chunks = quotient_up(z.B, z.step);
    return z;
}

#define PLACE(member, type, length) \\
    a->member = (type *)at; \\
    at += ((uintptr_t)(length) * sizeof(type) + 7) / 8 * 8;
"""

FLAT = """
static void pass{level}({parameters}, int64_t chunk) {{
{numbers}{sums}    const int64_t first = chunk * SPAN;
    const int64_t last = first + SPAN < z->C ? first + SPAN : z->C;
{reduction}    for (int64_t i = first; i < last; i++) {{
{body}    }}
{parts}}}
"""

BY_AXES = """
static void pass{level}({parameters}, int64_t chunk) {{
{numbers}{sums}    const int sliced = z->slices > 1;
    const int64_t first = sliced ? chunk / z->slices : chunk * z->step;
    const int64_t last = sliced ? first + 1 : first + z->step < z->B ? first + z->step : z->B;
    const int64_t top = sliced ? chunk % z->slices * z->step : 0;
    const int64_t bottom = sliced && top + z->step < z->R ? top + z->step : z->R;
    for (int64_t b = first; b < last; b++) {{
{before_plane}        for (int64_t r = top; r < bottom; r++) {{
            const int64_t row = b * z->R + r;
{before_row}{reduction}            for (int64_t i = 0; i < z->C; i++) {{
{body}            }}
{after_row}        }}
{after_plane}    }}
{parts}}}
"""

SUM_UP_COLUMNS = """\
    for (int64_t j = 0; z->slices > 1 && j < z->B * z->C; j++) {{
        const double *part = a->c{step} + j / z->C * z->slices * z->C + j % z->C;
        double sum = 0;
        for (int64_t n = 0; n < z->slices; n++) sum += part[n * z->C];
        a->s{step}[j] = sum / z->R;
    }}
"""

SMALL_MEAN = """\
    for (int64_t b = 0; b < z->B; b++) {{
        double sum = 0;
        for (int64_t j = 0; j < {length}; j++) {{
            {load}
            sum += {term};
        }}
        a->s{step}[b] = sum / {length};
    }}
"""

UPDATE = """
#define ARGUMENTS {arguments}, scalars + cells[i] * {width}, scale, measured + i * {measures}

/* What a thread works on by itself. */
static void alone(int64_t i, const int64_t *shapes, void *const *const *columns,
                  const double *scalars, const int64_t *cells, work scale, double *measured,
                  uintptr_t scratch) {{
    const shape z = {cutting}(shapes + 3 * i);
    areas a;
    lay_out(scratch, &z, &a);
{alone}    stage{last}(ARGUMENTS);
}}

/* What all threads work on together. */
static void together(int64_t i, const int64_t *shapes, void *const *const *columns,
                     const double *scalars, const int64_t *cells, work scale, double *measured,
                     uintptr_t scratch) {{
    const shape z = {cutting}(shapes + 3 * i);
    areas a;
    lay_out(scratch, &z, &a);
{together}#pragma omp single
    stage{last}(ARGUMENTS);
}}

/* The bytes that are needed beside a tensor. */
int64_t scratch_bytes(const int64_t *own) {{
    const shape z = {cutting}(own);
    areas a;
    return lay_out(0, &z, &a);
}}

/* `order` has first the `few` tensors that are a thread's own, then those for all threads. */
void update(int64_t count, int64_t few, const int64_t *order, const int64_t *shapes,
            void *const *const *columns, const double *scalars, const int64_t *cells, double scale,
            double *measured, uintptr_t scratch, int64_t apart, int threads) {{
#pragma omp parallel num_threads(threads)
    {{
        int64_t thread, of;
        place(&thread, &of);
#pragma omp for schedule(dynamic)
        for (int64_t j = 0; j < few; j++)
            alone(order[j], shapes, columns, scalars, cells, scale, measured,
                  scratch + thread * apart);
        for (int64_t j = few; j < count; j++)
            together(order[j], shapes, columns, scalars, cells, scale, measured, scratch);
    }}
}}
"""
