"""What the code of a module's ``forward`` tells: what it uses, in which order, and its words.

It is read from Python's bytecode, so that nothing is run and no source file is needed.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise, takewhile
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from torch import autograd, nn

__all__ = ["backwards", "calls", "chained", "in_loops", "iterated", "used", "words"]

# `len(self.layers)` and `isinstance(self.head, ...)` ask about a module before its turn has come. A
# comparison with None does so too.
_ASKING = frozenset({"len", "isinstance"})


# These are called for every module of a model, and a model has many modules of few classes.
@lru_cache(maxsize=1024)
def used(cls: type[nn.Module]) -> dict[str, int]:
    """Return the attributes of ``self`` that ``forward`` uses, numbered by their first use.

    Methods of the class are followed. One that takes and gives nothing, such as
    ``self._rescale_layers()``, is not what the input goes through: what it uses counts there only
    if nothing else uses it.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.top, self.bottom = nn.Linear(2, 2), nn.Linear(2, 2)
        ...     def forward(self, x):
        ...         return self.top(self.bottom(x)) if x is None else self._up(x)
        ...     def _up(self, x):
        ...         return self.side(x)
        >>> list(used(Net))
        ['top', 'bottom', 'side']
    """
    reads = list(_Walk(cls).reads("forward"))
    through = {name for name, is_aside in reads if not is_aside}
    names = dict.fromkeys(n for n, is_aside in reads if not is_aside or n not in through)
    return {name: i for i, name in enumerate(names)}


@lru_cache(maxsize=1024)
def chained(cls: type[nn.Module]) -> frozenset[str]:
    """Return the attributes of ``self`` that the input of ``forward`` goes through in turn.

    These are called on a method's first argument, which takes their result, or they give the
    method's: ``x = self.stem(x)``, ``return self.head(x)``, or ``for block in self.blocks: x =
    block(x)``. Methods of the class are followed.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x, y):
        ...         x = self.bottom(x)
        ...         for layer in self.layers:
        ...             x = layer(x, self.mask)
        ...         return self.top(x) + self.other(y)
        >>> sorted(chained(Net))
        ['bottom', 'layers']
    """
    walk = _Walk(cls)
    for _ in walk.reads("forward"):
        pass
    return frozenset(name for code in walk.seen for name in _links(code))


@lru_cache(maxsize=1024)
def backwards(cls: type[nn.Module]) -> frozenset[str]:
    """Return the attributes of ``self`` that ``forward`` goes through from their end.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         for layer in reversed(self.down):
        ...             x = layer(x)
        ...         for layer in self.up[::-1]:
        ...             x = layer(x)
        ...         return x
        >>> sorted(backwards(Net))
        ['down', 'up']
    """
    walk = _Walk(cls)
    for _ in walk.reads("forward"):
        pass
    return frozenset(name for code in walk.seen for name in _from_the_end(code))


@lru_cache(maxsize=1024)
def iterated(cls: type[nn.Module]) -> frozenset[str]:
    """Return the attributes of ``self`` that ``forward`` goes through in a loop of their own.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         for layer in self.layers:
        ...             x = layer(x)
        ...         return self.top(x)
        >>> sorted(iterated(Net))
        ['layers']
    """
    walk = _Walk(cls)
    for _ in walk.reads("forward"):
        pass
    return frozenset(name for code in walk.seen for name, _, _ in _loops(code))


@lru_cache(maxsize=1024)
def in_loops(cls: type[nn.Module]) -> frozenset[tuple[str, str]]:
    """Return the attributes of ``self`` that are used in a loop over another, each with that one.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         for i, layer in enumerate(self.layers):
        ...             x = layer(x)
        ...             self.seen.append(self.taps[i](x))
        ...         return self.top(x)
        >>> sorted(in_loops(Net))
        [('seen', 'layers'), ('taps', 'layers')]
    """
    walk = _Walk(cls)
    for _ in walk.reads("forward"):
        pass
    return frozenset(pair for code in walk.seen for pair in _in_loops(code))


@lru_cache(maxsize=1024)
def words(cls: type[nn.Module]) -> frozenset[str]:
    """Return every name and every number in the code of ``forward`` and of what it calls.

    That is methods of the class, functions of its author, and what these call, and the ``forward``
    of autograd functions.

    Example:
        >>> "layer_norm" in words(nn.LayerNorm)
        True
    """
    walk = _Walk(cls)
    for _ in walk.reads("forward"):
        pass
    codes, last = dict(walk.seen), dict(walk.seen)
    for _ in range(_HELPERS_DEEP):
        helpers = [f for code, names in last.items() for f in _helpers(code, names)]
        last = {code: f.__globals__ for f in helpers for code in _nested(f.__code__)}
        codes.update(last)
    # As numbers, 0.5 and -0.5 are of interest: exponents, by which a root is written.
    numbers = {str(value) for code in codes for value in code.co_consts if isinstance(value, float)}
    return frozenset(numbers.union(*(code.co_names for code in codes)))


@lru_cache(maxsize=1024)
def calls(cls: type[nn.Module]) -> bool:
    """Tell whether ``forward``, or a method that it uses, calls anything at all.

    Example:
        >>> calls(nn.Linear), calls(nn.Identity)
        (True, False)
    """
    walk = _Walk(cls)
    for _ in walk.reads("forward"):
        pass
    return any(step.op == "call" for code in walk.seen for step in _steps(code))


# A function that does the math, and one that does a part of it. Further down are tools.
_HELPERS_DEEP = 2


def _helpers(code: CodeType, names: Mapping[str, Any]) -> Iterator[FunctionType]:
    """Give the functions written in Python, but not torch's, that some code calls by global names.

    Args:
        code: the code.
        names: the global names of its module.
    """
    for name in code.co_names:
        value = names.get(name)
        inner = vars(value) if isinstance(value, ModuleType) else {}
        for found in (value, *(inner.get(other) for other in code.co_names)):
            if isinstance(found, type) and issubclass(found, autograd.Function):
                found = found.forward  # called by its apply
            if callable(found):
                found = inspect.unwrap(found)
            if isinstance(found, FunctionType) and not found.__module__.startswith("torch"):
                yield found


class _Walk:
    """Walks the code of a class's ``forward``, and of the methods of ``self`` that it calls.

    Args:
        cls: the class of the module.
    """

    def __init__(self, cls: type[nn.Module]) -> None:
        self._cls = cls
        self.seen: dict[CodeType, Mapping[str, Any]] = {}
        """The code that has been walked, in order, each with the global names of its module."""

    def reads(
        self, method: str, above: type | None = None, aside: bool = False
    ) -> Iterator[tuple[str, bool]]:
        """Give the attributes that a method reads from ``self``, in the order of the code.

        The methods of ``self`` that it calls are walked where it calls them.

        Args:
            method: the name of the method.
            above: the base of the class whose ``super()`` calls the method; None where ``self``
                does.
            aside: whether it was called without an argument, and for no result, so that the input
                does not go through it; given back with each name.
        """
        function = _function(self._cls, method, above)
        if function is None or function.__code__ in self.seen:
            return
        codes = list(_nested(function.__code__))
        self.seen.update(dict.fromkeys(codes, function.__globals__))
        for name, alone in _from_self(function.__code__):
            if isinstance(inspect.getattr_static(self._cls, name, None), FunctionType):
                yield from self.reads(name, aside=aside or alone)
            else:
                yield name, aside
        if any("super" in code.co_names for code in codes):
            yield from self.reads(method, _owner(self._cls, method, above), aside)


def _function(cls: type[nn.Module], method: str, above: type | None) -> FunctionType | None:
    """Return a method written in Python, by the model's author rather than by torch."""
    owner = _owner(cls, method, above)
    if owner in (None, nn.Module, object):
        return None
    function = inspect.unwrap(vars(owner)[method])
    return function if isinstance(function, FunctionType) else None


def _owner(cls: type[nn.Module], method: str, above: type | None) -> type | None:
    """Return the class that defines a method: the first, or the first after ``above``."""
    mro = cls.__mro__[cls.__mro__.index(above) + 1 if above else 0 :]
    return next((base for base in mro if method in vars(base)), None)


def _nested(code: CodeType) -> Iterator[CodeType]:
    """Walk the code of a function and of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


class _Step(NamedTuple):
    """An instruction, in words that are the same in every version of Python."""

    op: str
    """load or store, of a variable; attribute; call; or the instruction's own name."""
    value: Any


# They only prepare a call, or mark a place, in some versions of Python.
_SILENT = frozenset({"PUSH_NULL", "PRECALL", "NOP", "CACHE", "NOT_TAKEN", "EXTENDED_ARG"})


def _steps(code: CodeType) -> Iterator[_Step]:
    return (step for _, step in _located_steps(code))


def _located_steps(code: CodeType) -> Iterator[tuple[int, _Step]]:
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
            yield from ((at, _Step(v.lower(), n)) for v, n in zip(verbs, each, strict=False))
        elif op in ("LOAD_ATTR", "LOAD_METHOD"):
            yield at, _Step("attribute", value)
        elif op.startswith("CALL"):
            yield at, _Step("call", value)
        else:
            yield at, _Step(op, value)


def _from_self(code: CodeType) -> Iterator[tuple[str, bool]]:
    """Give the names of attributes that are read from ``self`` to be used, in order.

    With each comes whether it is called without an argument, and for no result. A function or a
    comprehension in the code is walked where it stands.
    """
    found = list(_steps(code))
    found = [found[0], found[0], *found, found[-1], found[-1]]  # so that each has neighbours
    for before, last, this, after, then in zip(*(found[i:] for i in range(5)), strict=False):
        if isinstance(this.value, CodeType):
            yield from _from_self(this.value)
        if this.op != "attribute" or last != _Step("load", "self"):
            continue
        # `is None` is two instructions, or a single jump, by its place and the version of Python.
        is_none = after.op.endswith("NONE") or (after.value is None and then.op == "IS_OP")
        if before.value not in _ASKING and not is_none:
            yield str(this.value), after == _Step("call", 0) and then.op == "POP_TOP"


def _links(code: CodeType) -> Iterator[str]:
    """Give the attributes that take a function's first argument and give it back: ``x = f(x)``."""
    if code.co_argcount < 2:
        return
    argument = _Step("load", code.co_varnames[1])
    loops: dict[object, str] = {}  # by the variable of a loop, the attribute that it goes through
    found = list(_steps(code))
    for i, step in enumerate(found):
        if step == _Step("load", "self") and found[i + 1].op == "attribute":
            name, rest = str(found[i + 1].value), i + 2
            loops.update(dict.fromkeys(_loop_variable(found[rest : rest + 12]), name))
        elif step.op == "load" and step.value in loops:
            name, rest = loops[step.value], i + 1
        else:
            continue
        if found[rest] == argument and (
            _next_store(found, rest) == argument.value or _is_returned(found, rest)
        ):
            yield name


def _from_the_end(code: CodeType) -> Iterator[str]:
    """Give the attributes in ``reversed(self.layers)`` and ``self.layers[::-1]``."""
    found = list(_steps(code))
    for i, step in enumerate(found):
        if step == _Step("load", "self") and found[i + 1].op == "attribute":
            is_called = i > 0 and found[i - 1].value == "reversed"
            # The slice is one constant, or is built of three.
            slices = [s.value for s in found[i + 2 : i + 6]]
            is_sliced = slice(None, None, -1) in slices or slices == [None, None, -1, 3]
            if is_called or is_sliced:
                yield str(found[i + 1].value)


def _in_loops(code: CodeType) -> Iterator[tuple[str, str]]:
    """Give the attributes that are read within a loop over an attribute, with the latter."""
    found = list(_located_steps(code))
    loops = list(_loops(code))
    for (place, step), (_, after) in pairwise(found):
        if step == _Step("load", "self") and after.op == "attribute":
            yield from (
                (str(after.value), over) for over, start, end in loops if start < place < end
            )


def _loops(code: CodeType) -> Iterator[tuple[str, int, int]]:
    """Give the attributes that loops go through, with the places where each begins and ends."""
    found = list(_located_steps(code))
    steps = [step for _, step in found]
    for i, (place, step) in enumerate(found):
        if step == _Step("load", "self") and steps[i + 1].op == "attribute":
            ahead = steps[i + 2 : i + 12]
            if any(_loop_variable(ahead)):
                end = next(step.value for step in ahead if step.op == "FOR_ITER")
                yield str(steps[i + 1].value), place, end


def _loop_variable(steps: Sequence[_Step]) -> Iterator[object]:
    """Give the variable of the loop that begins within these steps, the last of several."""
    ops = [step.op for step in steps]
    if "FOR_ITER" in ops and "attribute" not in ops[: ops.index("FOR_ITER")]:
        after = steps[ops.index("FOR_ITER") + 1 :]
        names = takewhile(lambda step: step.op in ("UNPACK_SEQUENCE", "store"), after)
        yield from [step.value for step in names if step.op == "store"][-1:]


def _is_returned(steps: Sequence[_Step], start: int) -> bool:
    call = next((i for i in range(start, len(steps)) if steps[i].op == "call"), len(steps) - 1)
    return steps[call : call + 2][-1].op == "RETURN_VALUE"


def _next_store(steps: Sequence[_Step], start: int) -> object:
    return next((step.value for step in steps[start:] if step.op == "store"), None)
