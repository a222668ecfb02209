"""What is public: every name of every public module, which must have a docstring."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

MODULES = (
    "optimplug",
    "optimplug.recipe",
    "optimplug.optim",
    "optimplug.optim.lr_scheduler",
    "optimplug.lightning",
    "optimplug.callbacks.lightning",
    "optimplug.huggingface",
    "optimplug.callbacks.huggingface",
    "optimplug.callbacks.trace",
)
"""The modules to import from; what several of them have is documented under the first."""


def names(module: str) -> list[str]:
    """Return what a module gives, but for its submodules and what a module before it has."""
    here = _objects(module)
    before = [value for one in MODULES[: MODULES.index(module)] for value in _objects(one).values()]
    return sorted(name for name, value in here.items() if not any(value is b for b in before))


def elsewhere(module: str) -> dict[str, str]:
    """Return what a module gives that one before it has, with the name under which it is there."""
    found: dict[str, str] = {}
    for name in sorted(set(_objects(module)) - set(names(module))):
        for one in MODULES[: MODULES.index(module)]:
            if any(value is _objects(module)[name] for value in _objects(one).values()):
                found.setdefault(name, f"{one}.{name}")
    return found


def _objects(module: str) -> dict[str, Any]:
    loaded = importlib.import_module(module)
    found = {name: getattr(loaded, name) for name in loaded.__all__}
    return {name: value for name, value in found.items() if not inspect.ismodule(value)}


def identifiers() -> list[str]:
    """Return the full name of all that is documented."""
    return [f"{module}.{name}" for module in MODULES for name in names(module)]


def undocumented() -> list[str]:
    """Return the public names without a docstring: functions, classes, and what is in classes."""
    return [
        name
        for module in MODULES
        for own in names(module)
        for name, value in _with_members(f"{module}.{own}", _objects(module)[own])
        if not (inspect.getdoc(value) or "").strip()
    ]


def _with_members(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, str):  # a version: text has str's docstring, which says nothing of it
        return
    yield name, value
    if not inspect.isclass(value):
        return
    own_bases = [base for base in value.__mro__ if base.__module__.startswith("optimplug")]
    # What a trainer's class has already, it documents too.
    others = {member for base in set(value.__mro__) - set(own_bases) for member in vars(base)}
    members = {member: own for base in reversed(own_bases) for member, own in vars(base).items()}
    for member, own in members.items():
        is_code = inspect.isroutine(inspect.unwrap(getattr(own, "__func__", own)))
        if (
            not member.startswith("_")
            and member not in others
            and (is_code or isinstance(own, property))
        ):
            # As help() does, with the docstring of a base where there is none of its own.
            yield f"{name}.{member}", getattr(value, member)
