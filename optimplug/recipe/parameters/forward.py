"""What a module's ``forward`` says: which attributes it uses in which order, and which words.

It is read from the compiled code, so nothing is run and no source file is needed.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType

from torch import nn

__all__ = ["used", "words"]

_ASIDE = frozenset({"len", "isinstance"})  # what these ask about is not used yet; nor is None


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
    names = [name for code in _codes(cls, "forward", set()) for name in code]
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


@lru_cache(maxsize=1024)
def words(cls: type[nn.Module]) -> frozenset[str]:
    """Return every name and every number that ``forward``, and the methods it calls, speak of.

    Example:
        >>> "layer_norm" in words(nn.LayerNorm)
        True
    """
    seen: set[CodeType] = set()
    for _ in _codes(cls, "forward", seen):
        pass
    numbers = {str(value) for code in seen for value in code.co_consts if isinstance(value, float)}
    return frozenset(numbers.union(*(code.co_names for code in seen)))


def _codes(
    cls: type[nn.Module], method: str, seen: set[CodeType], above: type | None = None
) -> Iterator[list[str]]:
    """Walk a method's code and that of the methods it calls; give what each takes from self."""
    mro = cls.__mro__[cls.__mro__.index(above) + 1 if above else 0 :]
    owner = next((base for base in mro if method in vars(base)), None)
    if owner is None or owner in (nn.Module, object):
        return
    function = inspect.unwrap(vars(owner)[method])
    if not isinstance(function, FunctionType) or function.__code__ in seen:
        return
    for code in _nested(function.__code__):
        seen.add(code)
        for name in _from_self(code):
            if isinstance(inspect.getattr_static(cls, name, None), FunctionType):
                yield from _codes(cls, name, seen)
            else:
                yield [name]
        if "super" in code.co_names:
            yield from _codes(cls, method, seen, above=owner)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _from_self(code: CodeType) -> Iterator[str]:
    """Give the names of attributes that are read from ``self``, in order."""
    found = list(dis.get_instructions(code))
    found = [found[0], found[0], *found, found[-1], found[-1]]  # so that each has neighbours
    for before, last, this, after, then in zip(*(found[i:] for i in range(5)), strict=False):
        if this.opname not in ("LOAD_ATTR", "LOAD_METHOD") or not _loads_self(last.argval):
            continue
        is_none = after.opname.endswith("NONE") or (after.argval is None and then.opname == "IS_OP")
        if before.argval not in _ASIDE and not is_none:
            yield str(this.argval)


def _loads_self(value: object) -> bool:
    # Newer Pythons load two variables at once.
    return value == "self" or (isinstance(value, tuple) and value[-1:] == ("self",))
