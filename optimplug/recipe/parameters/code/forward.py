"""What the code of a module's ``forward`` tells: what it uses, in which order, and its words.

It is read from Python's bytecode, so that nothing is run and no source file is needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import autograd, nn

from optimplug.recipe.parameters.code import bytecode

__all__ = ["backwards", "calls", "chained", "in_loops", "iterated", "used", "words"]


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
    return frozenset(name for code in walk.seen for name in bytecode.links(code))


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
    return frozenset(name for code in walk.seen for name in bytecode.from_the_end(code))


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
    return frozenset(name for code in walk.seen for name, _, _ in bytecode.loops(code))


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
    return frozenset(pair for code in walk.seen for pair in bytecode.in_loops(code))


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
        last = {code: f.__globals__ for f in helpers for code in bytecode.nested(f.__code__)}
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
    return any(step.op == "call" for code in walk.seen for step in bytecode.steps(code))


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
        codes = list(bytecode.nested(function.__code__))
        self.seen.update(dict.fromkeys(codes, function.__globals__))
        for name, alone in bytecode.from_self(function.__code__):
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
