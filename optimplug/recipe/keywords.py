"""The arguments of classes and functions, and whether a class does anything with one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from types import CodeType, NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

__all__ = ["NOT_SET", "choices_of", "keywords_of", "takes"]

NOT_SET = ("params", "defaults")
"""The arguments of optimizers that are no hyperparameters."""


def keywords_of(
    cls: Callable[..., object], without: Iterable[str] = ()
) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class or a function, by name.

    Those of its bases as well, where a class takes any and so may hand them on.

    Args:
        cls: what is called.
        without: the arguments that a recipe does not give.
    """
    known: dict[str, inspect.Parameter] = {}
    for called in _constructors(cls):
        own = inspect.signature(called).parameters
        known = {**{n: p for n, p in own.items() if p.kind not in _VARIADIC}, **known}
    skip = {*without, "self"}
    return {name: p for name, p in known.items() if name not in skip}


def choices_of(cls: type) -> dict[str, tuple[Any, ...]]:
    """Return the values of those arguments that take a few alone, as their types list them.

    Example:
        >>> class Rounded:
        ...     def __init__(self, how: Literal["up", "down"] | None = None, size: int = 1): ...
        >>> choices_of(Rounded)
        {'how': ('up', 'down', None)}
    """
    found: dict[str, tuple[Any, ...]] = {}
    for called in _constructors(cls):
        own = get_type_hints(called.__init__)
        listed = {name: tuple(_listed(hint)) for name, hint in own.items() if _lists(hint)}
        found = {**listed, **found}
    return found


def _lists(hint: Any) -> bool:
    """Tell whether a type is a list of values, or that or None."""
    parts = [part for part in get_args(hint) if part is not NoneType]
    return get_origin(hint) is Literal or (len(parts) == 1 and get_origin(parts[0]) is Literal)


def _listed(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
        return
    for part in get_args(hint):
        yield from [None] if part is NoneType else _listed(part)


def takes(cls: type[torch.optim.Optimizer], key: str) -> bool:
    """Tell whether an optimizer does anything with a keyword argument of that name.

    It does if it names it, or a base that it may hand it on to does. A class with ``**kwargs``
    takes any other without an error, and most leave it unread: it counts where the class documents
    it, or has its name in its code.

    Example:
        >>> class Padded(torch.optim.SGD):
        ...     def __init__(self, params, width=1, **kwargs):
        ...         super().__init__(params, lr=kwargs.pop("rate", 0.1), **kwargs)
        >>> [key for key in ("width", "momentum", "rate", "wdith") if takes(Padded, key)]
        ['width', 'momentum', 'rate']
    """
    return _taking(cls, key)


def _takes(cls: type[torch.optim.Optimizer], key: str) -> bool:
    if key in keywords_of(cls):
        return key not in NOT_SET
    return _takes_any(cls) and any(
        _documents(part, key) or _has_in_code(part, key) for part in _own_classes(cls)
    )


# To look takes long, and for most parameters the same is asked.
_taking: Callable[[Any, str], bool] = lru_cache(maxsize=4096)(_takes)

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _takes_any(called: Callable[..., object]) -> bool:
    parameters = inspect.signature(called).parameters.values()
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _constructors(cls: Callable[..., object]) -> Iterator[Callable[..., object]]:
    """Walk what is called, and the bases that it may hand arguments on to."""
    yield cls
    if isinstance(cls, type) and _takes_any(cls):
        for base in _own_classes(cls)[1:]:
            if "__init__" in vars(base):
                yield base
                if not _takes_any(base):
                    return


def _own_classes(cls: type) -> list[type]:
    """Return a class and its bases, without what every optimizer has from torch."""
    return [c for c in cls.__mro__ if c not in torch.optim.Optimizer.__mro__]


def _documents(cls: type, key: str) -> bool:
    """Tell whether a docstring has an entry for an argument, in any of the usual styles."""
    entry = rf"^\s*(:param\s+(\w+\s+)?|@param\s+|[-*]\s+)?[`*]*{re.escape(key)}[`*]*\s*(\(|:)"
    texts = (cls.__doc__, vars(cls).get("__init__", cls).__doc__)
    return any(re.search(entry, text, re.MULTILINE) for text in texts if text)


def _has_in_code(cls: type, key: str) -> bool:
    """Tell whether a method has the name as a string: ``kwargs.get("name")``, ``group["name"]``."""
    return any(key in _texts(code) for value in vars(cls).values() if (code := _code_of(value)))


def _code_of(value: Any) -> CodeType | None:
    """Return the code of a method, whatever it is wrapped in; None if it is none."""
    function = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _texts(code: CodeType) -> Iterator[Any]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _texts(value)
        else:
            yield from value if isinstance(value, tuple) else (value,)
