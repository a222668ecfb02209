"""What stands in the code of a function, in words that are the same in every version of Python.

It is read from the bytecode, so that nothing is run and no source file is needed. ``self`` is the
module that a method belongs to.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from types import CodeType
from typing import Any, NamedTuple

from optimplug._core.tested import warn_if_untested

__all__ = [
    "Step",
    "from_self",
    "from_the_end",
    "in_loops",
    "links",
    "loops",
    "nested",
    "steps",
]

warn_if_untested("python")  # instructions change from version to version

# `len(self.layers)` and `isinstance(self.head, ...)` ask about a module before its turn has come. A
# comparison with None does so too.
_ASKING = frozenset({"len", "isinstance"})


def nested(code: CodeType) -> Iterator[CodeType]:
    """Walk the code of a function and of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested(constant)


class Step(NamedTuple):
    """An instruction, in words that are the same in every version of Python."""

    op: str
    """load or store, of a variable; attribute; call; or the instruction's own name."""
    value: Any


# They only prepare a call, or mark a place, in some versions of Python.
_SILENT = frozenset({"PUSH_NULL", "PRECALL", "NOP", "CACHE", "NOT_TAKEN", "EXTENDED_ARG"})


def steps(code: CodeType) -> Iterator[Step]:
    """Give the steps of some code, in their order."""
    return (step for _, step in _located_steps(code))


def _located_steps(code: CodeType) -> Iterator[tuple[int, Step]]:
    """Give the steps of some code, each with its place, as jumps name it."""
    for instruction in dis.get_instructions(code):
        at = instruction.offset
        op, value = instruction.opname, instruction.argval
        if op in _SILENT:
            continue
        if "_FAST" in op or op in ("LOAD_DEREF", "STORE_DEREF"):
            # Since Python 3.13 one instruction may do this for two variables.
            each = value if isinstance(value, tuple) else (value,)
            verbs = [verb for verb in op.split("_") if verb in ("LOAD", "STORE")]
            yield from ((at, Step(v.lower(), n)) for v, n in zip(verbs, each, strict=False))
        elif op in ("LOAD_ATTR", "LOAD_METHOD"):
            yield at, Step("attribute", value)
        elif op.startswith("CALL"):
            yield at, Step("call", value)
        else:
            yield at, Step(op, value)


def from_self(code: CodeType) -> Iterator[tuple[str, bool]]:
    """Give the names of attributes that are read from ``self`` to be used, in order.

    With each comes whether it is called without an argument, and for no result. A function or a
    comprehension in the code is walked where it stands.
    """
    found = list(steps(code))
    found = [found[0], found[0], *found, found[-1], found[-1]]  # so that each has neighbours
    for before, last, this, after, then in zip(*(found[i:] for i in range(5)), strict=False):
        if isinstance(this.value, CodeType):
            yield from from_self(this.value)
        if this.op != "attribute" or last != Step("load", "self"):
            continue
        # `is None` is two instructions, or a single jump, by its place and the version of Python.
        is_none = after.op.endswith("NONE") or (after.value is None and then.op == "IS_OP")
        if before.value not in _ASKING and not is_none:
            yield str(this.value), after == Step("call", 0) and then.op == "POP_TOP"


def links(code: CodeType) -> Iterator[str]:
    """Give the attributes that take a function's first argument and give it back: ``x = f(x)``."""
    if code.co_argcount < 2:
        return
    argument = Step("load", code.co_varnames[1])
    over: dict[object, str] = {}  # by the variable of a loop, the attribute that it goes through
    found = list(steps(code))
    for i, step in enumerate(found):
        if step == Step("load", "self") and found[i + 1].op == "attribute":
            name, rest = str(found[i + 1].value), i + 2
            over.update(dict.fromkeys(_loop_variable(found[rest : rest + 12]), name))
        elif step.op == "load" and step.value in over:
            name, rest = over[step.value], i + 1
        else:
            continue
        if found[rest] == argument and (
            _next_store(found, rest) == argument.value or _is_returned(found, rest)
        ):
            yield name


def from_the_end(code: CodeType) -> Iterator[str]:
    """Give the attributes in ``reversed(self.layers)`` and ``self.layers[::-1]``."""
    found = list(steps(code))
    for i, step in enumerate(found):
        if step == Step("load", "self") and found[i + 1].op == "attribute":
            is_called = i > 0 and found[i - 1].value == "reversed"
            # The slice is one constant, or is built of three.
            slices = [s.value for s in found[i + 2 : i + 6]]
            is_sliced = slice(None, None, -1) in slices or slices == [None, None, -1, 3]
            if is_called or is_sliced:
                yield str(found[i + 1].value)


def in_loops(code: CodeType) -> Iterator[tuple[str, str]]:
    """Give the attributes that are read within a loop over an attribute, with the latter."""
    found = list(_located_steps(code))
    found_loops = list(loops(code))
    for (place, step), (_, after) in pairwise(found):
        if step == Step("load", "self") and after.op == "attribute":
            yield from (
                (str(after.value), over) for over, start, end in found_loops if start < place < end
            )


def loops(code: CodeType) -> Iterator[tuple[str, int, int]]:
    """Give the attributes that loops go through, with the places where each begins and ends."""
    found = list(_located_steps(code))
    all_steps = [step for _, step in found]
    for i, (place, step) in enumerate(found):
        if step == Step("load", "self") and all_steps[i + 1].op == "attribute":
            ahead = all_steps[i + 2 : i + 12]
            if any(_loop_variable(ahead)):
                end = next(step.value for step in ahead if step.op == "FOR_ITER")
                yield str(all_steps[i + 1].value), place, end


def _loop_variable(ahead: Sequence[Step]) -> Iterator[object]:
    """Give the variable of the loop that begins within these steps, the last of several."""
    ops = [step.op for step in ahead]
    if "FOR_ITER" in ops and "attribute" not in ops[: ops.index("FOR_ITER")]:
        after = ahead[ops.index("FOR_ITER") + 1 :]
        names = takewhile(lambda step: step.op in ("UNPACK_SEQUENCE", "store"), after)
        yield from [step.value for step in names if step.op == "store"][-1:]


def _is_returned(found: Sequence[Step], start: int) -> bool:
    call = next((i for i in range(start, len(found)) if found[i].op == "call"), len(found) - 1)
    return found[call : call + 2][-1].op == "RETURN_VALUE"


def _next_store(found: Sequence[Step], start: int) -> object:
    return next((step.value for step in found[start:] if step.op == "store"), None)
