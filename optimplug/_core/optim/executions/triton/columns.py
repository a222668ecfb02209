"""The operands of a program as the text of a Triton kernel: how each is loaded and stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from optimplug._core.optim.executions.ops import OPERATIONS
from optimplug._core.optim.executions.program import Argument, Step
from optimplug._core.optim.executions.text import MAD, expression, named
from optimplug._core.optim.rule import Rule, coded_names

__all__ = ["TYPES", "Columns", "step_text", "value_text", "work_type"]

TYPES = {
    torch.float32: ("number", "tl.float32"),
    torch.float64: ("number", "tl.float64"),
    torch.float16: ("number", "tl.float16"),
    torch.bfloat16: ("bfloat", "tl.uint16"),
    torch.int16: ("number", "tl.int16"),
    torch.int8: ("number", "tl.int8"),
    torch.uint8: ("number", "tl.uint8"),
}
"""What tensors may hold: the suffix of the functions that load and store it (:mod:`.device`), and
the type in memory."""


def work_type(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the type of the arithmetic over columns of these types."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


@dataclass(frozen=True)
class Columns:
    """The columns of tensors that a kernel works on, and what the program finds in them.

    Its lines read the variables ``i``, ``size`` and ``WHOLE``, see :mod:`.device`; ``factor``, by
    which gradients are multiplied; and, where there are codes, ``block``, see :mod:`.device_codes`.
    """

    dtypes: Mapping[str, torch.dtype]
    """Those that stand in memory: ``p``, ``g``, then the states."""
    rule: Rule

    @cached_property
    def work(self) -> str:
        """The type of the arithmetic."""
        return f"tl.{work_type(self.dtypes.values())}".replace("torch.", "")

    @property
    def operands(self) -> tuple[str, ...]:
        """What the program finds."""
        return ("p", "g", *self.rule.operand_names)

    @property
    def addresses(self) -> list[str]:
        """The variables that hold the address of each column."""
        return [f"at_{name}" for name in self.dtypes]

    @property
    def aligned(self) -> list[str]:
        """Those that must be aligned for wide loads; scales, one for many elements, are not."""
        scales = {coded_names(name)[1] for name in self.rule.codes}
        return [f"at_{name}" for name in self.dtypes if name not in scales]

    def places(self) -> list[str]:
        """Return the lines that say which elements these are, from ``start`` on."""
        if not self.rule.codes:
            return ["i = start + tl.arange(0, BLOCK)"]
        return ["i = in_blocks(start, BLOCK)", "block = blocks_of(start, BLOCK)"]

    def load(self, name: str, i: str = "i", size: str = "size", whole: str = "WHOLE") -> str:
        """Return the line that reads an operand.

        Args:
            name: of the operand.
            i: its elements; with ``size`` and ``whole`` as for the functions of :mod:`.device`.
            size: how many there are.
            whole: whether all of ``i`` are there.
        """
        if name in self.rule.codes:
            where = f"{self._coded(name)}, size, WHOLE"
            return f"x_{name} = load_{self.rule.codes[name]}({where}, {self.work})"
        if name not in self.dtypes:
            return f"x_{name} = draw(keys, tensor, i, {self.work})"
        kind, memory = TYPES[self.dtypes[name]]
        found = f"load_{kind}(at_{name}, {i}, {size}, {whole}, {memory}, {self.work})"
        return f"x_{name} = {found}{' * factor' if name == 'g' else ''}"

    def store(
        self, name: str, value: str, i: str = "i", size: str = "size", whole: str = "WHOLE"
    ) -> str:
        """Return the line that writes a value to an operand; as :meth:`load`."""
        if name in self.rule.codes:
            where = self._coded(name)
            return f"store_{self.rule.codes[name]}({where}, {value}, k_offset, size, WHOLE)"
        kind, memory = TYPES[self.dtypes[name]]
        return f"store_{kind}(at_{name}, {i}, {value}, {size}, {whole}, {memory})"

    def _coded(self, name: str) -> str:
        codes, scales = coded_names(name)
        return f"at_{codes}, at_{scales}, i, block"


def step_text(step: Step, work: str) -> str:
    """Return a step as an expression."""
    form = OPERATIONS[step.operation].in_triton if step.operation != MAD else None
    return expression(step, form, lambda argument: value_text(argument, work))


def value_text(argument: Argument, work: str) -> str:
    """Return an argument as an expression."""
    return named(argument, f"tl.full((), {{!r}}, {work})")
