"""What the code of a module's ``forward`` tells: what it uses, in which order, and its words.

It is read from Python's bytecode, so that nothing is run and no source file is needed.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType

from torch import nn

__all__ = ["used", "words"]

# `len(self.layers)` and `isinstance(self.head, ...)` ask about a module before its turn has come. A
# comparison with None does so too.
_ASKING = frozenset({"len", "isinstance"})


# These are called for every module of a model, and a model has many modules of few classes.
@lru_cache(maxsize=1024)
def used(cls: type[nn.Module]) -> dict[str, int]:
    """Return the attributes of ``self`` that ``forward`` uses, numbered by their first use.

    Methods of the class are followed.

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
    names = dict.fromkeys(_reads(cls, "forward", set()))
    return {name: i for i, name in enumerate(names)}


@lru_cache(maxsize=1024)
def words(cls: type[nn.Module]) -> frozenset[str]:
    """Return every name and every number in the code of ``forward`` and of the methods it calls.

    Example:
        >>> "layer_norm" in words(nn.LayerNorm)
        True
    """
    seen: set[CodeType] = set()
    for _ in _reads(cls, "forward", seen):
        pass
    # As numbers, 0.5 and -0.5 are of interest: exponents, by which a root is written.
    numbers = {str(value) for code in seen for value in code.co_consts if isinstance(value, float)}
    return frozenset(numbers.union(*(code.co_names for code in seen)))


def _reads(
    cls: type[nn.Module], method: str, seen: set[CodeType], above: type | None = None
) -> Iterator[str]:
    """Walk the attributes that a method reads from ``self``, in the order of the code.

    The methods of ``self`` that it calls are walked where it calls them.

    Args:
        cls: the class of the module.
        method: the name of the method.
        seen: the code that has been walked already; what is walked here is added.
        above: the base of ``cls`` whose ``super()`` calls the method; None where ``self`` does.
    """
    function = _function(cls, method, above)
    if function is None or function.__code__ in seen:
        return
    for code in _nested(function.__code__):
        seen.add(code)
        for name in _from_self(code):
            if isinstance(inspect.getattr_static(cls, name, None), FunctionType):
                yield from _reads(cls, name, seen)
            else:
                yield name
        if "super" in code.co_names:
            yield from _reads(cls, method, seen, above=_owner(cls, method, above))


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


def _from_self(code: CodeType) -> Iterator[str]:
    """Give the names of attributes that are read from ``self`` to be used, in order."""
    found = list(dis.get_instructions(code))
    found = [found[0], found[0], *found, found[-1], found[-1]]  # so that each has neighbours
    for before, last, this, after, then in zip(*(found[i:] for i in range(5)), strict=False):
        if this.opname not in ("LOAD_ATTR", "LOAD_METHOD") or not _loads_self(last.argval):
            continue
        # `is None` is two instructions, or a single jump, by its place and the version of Python.
        is_none = after.opname.endswith("NONE") or (after.argval is None and then.opname == "IS_OP")
        if before.argval not in _ASKING and not is_none:
            yield str(this.argval)


def _loads_self(value: object) -> bool:
    # Since Python 3.13 one instruction may load two variables; self is the last of them then.
    return value == "self" or (isinstance(value, tuple) and value[-1:] == ("self",))
