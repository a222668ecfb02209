"""What is the same in the text of a program, whatever language it is written in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from optimplug._core.optim.executions.program import (
    Argument,
    Constant,
    Input,
    Program,
    Result,
    Scalar,
    Step,
)

__all__ = ["MAD", "expression", "fused_sums", "indented", "named"]

MAD = "mad"
"""The operation of a product inside a sum: no row of the table, but a function in each text."""


def expression(step: Step, form: str | None, name: Callable[[Argument], str]) -> str:
    """Return a step as an expression.

    Args:
        step: one of a program, or of :func:`fused_sums`.
        form: that of its operation in the table.
        name: returns an argument as an expression.
    """
    form = "mad({0}, {1}, {2})" if step.operation == MAD else form
    assert form is not None  # a program has no other steps
    return form.format(*map(name, step.arguments))


def named(argument: Argument, constant: str) -> str:
    """Return an argument as an expression; ``constant`` is that of a number."""
    match argument:
        case Input(name):
            return f"x_{name}"
        case Scalar(name):
            return f"k_{name}"
        case Result(step):
            return f"t{step}"
        case Constant(value):
            return constant.format(value)


def indented(lines: Iterable[str], spaces: int) -> str:
    """Return lines as one text, without an end of the last."""
    return "\n".join(" " * spaces + line for line in lines)


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
                step = Step(MAD, (*products[product], rest))
        steps.append((i, step))
    return [(i, step) for i, step in steps if Result(i) not in inside]
