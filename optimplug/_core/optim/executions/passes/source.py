"""A program for whole tensors as C source: its passes, its stages, and what is kept between them.

A tensor is cut into chunks by its shape alone, and what chunks have summed up is added in their
order: so a result does not depend on how many threads there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optimplug._core.optim.executions.c_source import C_TYPES, c_head
from optimplug._core.optim.executions.passes.cut import Cut
from optimplug._core.optim.executions.passes.loops import Loop
from optimplug._core.optim.executions.passes.stages import Stages
from optimplug._core.optim.executions.passes.templates import HEAD, LENGTHS, UPDATE

__all__ = ["whole_source"]


def whole_source(cut: Cut, dtypes: Sequence[torch.dtype]) -> str:
    """Return the C of ``update``, which runs a program over columns of whole tensors.

    Args:
        cut: the program, in passes.
        dtypes: of each column: ``p``, ``g``, then the states; int64 for keys of random numbers.
    """
    types = dict(zip(cut.inputs, (C_TYPES.get(dtype, "drawing") for dtype in dtypes), strict=True))
    stages = Stages(cut, types)
    both = [stages.text(level) + Loop(cut, types, level).text() for level in range(cut.passes)]
    parts = [c_head(dtypes), HEAD, _areas(cut), *both, stages.text(cut.passes), _update(cut)]
    return "".join(parts)


def _areas(cut: Cut) -> str:
    """Return the struct of what is kept between passes, and how it is laid out."""
    areas = [("number", "double", str(max(cut.steps, default=0) + 1))]
    areas += [("parts", "double", f"z->chunks * {len(cut.sums())}")]
    areas += [(f"c{i}", "double", "z->chunks * z->C") for i in cut.means("column")]
    areas += [(f"s{i}", "work", LENGTHS[cut.kinds[i]]) for i in sorted(cut.kept)]
    members = "".join(f"    {kind} *{name};\n" for name, kind, _ in areas)
    places = "".join(f"    PLACE({name}, {kind}, {length})\n" for name, kind, length in areas)
    return (
        f"\ntypedef struct {{\n{members}}} areas;\n\n"
        f"static inline uintptr_t lay_out(uintptr_t at, const shape *z, areas *a) {{\n"
        f"{places}    return at;\n}}\n"
    )


def _update(cut: Cut) -> str:
    """Return the functions that go through a tensor, and through all of them."""
    chunks = "    for (int64_t c = 0; c < z.chunks; c++) pass{0}(ARGUMENTS, c);\n"
    alone = "    stage{0}(ARGUMENTS);\n" + chunks
    together = (
        "#pragma omp single\n    stage{0}(ARGUMENTS);\n#pragma omp for schedule(static)\n" + chunks
    )
    return UPDATE.format(
        arguments=", ".join(["&z", "&a", *(f"columns[{n}][i]" for n in range(len(cut.inputs)))]),
        width=len(cut.program.coefficients),
        measures=len(cut.program.measured),
        cutting="by_axes" if cut.has_axes else "flat",
        alone="".join(map(alone.format, range(cut.passes))),
        together="".join(map(together.format, range(cut.passes))),
        last=cut.passes,
    )
