"""Texts made kernels, and the types that they are compiled for.

Triton reads the source of a function again to compile it. It finds it in :mod:`linecache`, where
other generated code has its source too (that of dataclass-like libraries and doctests): a file
would have to be kept, and whoever could write to it would choose what runs. What Triton compiles it
keeps itself, by the text: a second process finds it there.
"""

from __future__ import annotations

import linecache
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch

from optimplug._core.optim.executions.passes.cut import cut
from optimplug._core.optim.executions.program import Program
from optimplug._core.optim.executions.triton.columns import TYPES, Columns
from optimplug._core.optim.executions.triton.source import BLOCK, update_text
from optimplug._core.optim.executions.triton.whole.text import WholeText
from optimplug._core.optim.rule import Rule

__all__ = [
    "BLOCK",
    "TYPES",
    "add_kernel",
    "launch",
    "norm_kernel",
    "triton_types",
    "try_out",
    "update_kernel",
    "whole_kernels",
    "whole_text",
]

_WARPS = 4


@lru_cache
def update_kernel(program: Program, rule: Rule, dtypes: tuple[torch.dtype, ...]) -> Any:
    """Return the kernel that runs a program over a table; see :func:`.source.update_text`."""
    return _made(update_text(program, _columns(rule, dtypes)))["update"]


@lru_cache
def whole_text(program: Program, rule: Rule, dtypes: tuple[torch.dtype, ...]) -> WholeText:
    """Return the text of the kernels that run a program over whole tensors."""
    return WholeText(cut(program, rule), _columns(rule, dtypes))


@lru_cache
def whole_kernels(program: Program, rule: Rule, dtypes: tuple[torch.dtype, ...]) -> dict[str, Any]:
    """Return these kernels by their names, among others."""
    return _made(whole_text(program, rule, dtypes).text())


def _made(text: str) -> dict[str, Any]:
    """Return what a text defines."""
    import triton
    import triton.language as tl

    from optimplug._core.optim.executions.triton import device, device_codes

    rooms = (device, device_codes)
    known = {name: getattr(room, name) for room in rooms for name in room.__all__}
    known.update(triton=triton, tl=tl, __name__=__name__)
    name = f"<optimplug kernel {len(_texts)}>"
    _texts.append(text)
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    exec(compile(text, name, "exec"), known)  # noqa: S102 # the text is our own
    return known


_texts: list[str] = []


def _columns(rule: Rule, dtypes: tuple[torch.dtype, ...]) -> Columns:
    return Columns(dict(zip(("p", "g", *rule.state_names), dtypes, strict=True)), rule)


def add_kernel() -> Any:
    """Return the kernel that adds up what programs have found."""
    from optimplug._core.optim.executions.triton import fixed_kernels

    return fixed_kernels.add_up


def norm_kernel() -> Any:
    """Return the kernel of the norm."""
    from optimplug._core.optim.executions.triton import fixed_kernels

    return fixed_kernels.norm


def triton_types(dtype: torch.dtype) -> dict[str, Any]:
    """Return what the kernel of the norm is told of gradients of this type."""
    import triton.language as tl

    own = getattr(tl, TYPES[dtype][1].removeprefix("tl."))
    return {"TYPE": own, "WORK": tl.float64 if dtype == torch.float64 else tl.float32}


def launch(kernel: Any, programs: int, device: torch.device, *given: Any, **constants: Any) -> None:
    """Run a kernel in so many programs; every launch of a step is made here."""
    there = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with there:
        # Products and sums are fused where the text says so, and nowhere else: the result does not
        # depend on how a tensor is cut.
        kernel[(programs,)](*given, **constants, num_warps=_WARPS, enable_fp_fusion=False)


def try_out(device: torch.device) -> None:
    """Run a small kernel; what fails says that none can be run."""
    from optimplug._core.optim.executions.triton import fixed_kernels

    launch(fixed_kernels.nothing, 1, device, torch.zeros(1, dtype=torch.int64, device=device))
