"""Short lines in the console of a Trainer, whatever its reporters are given."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer

from optimplug.recipe.logged import console_logs

__all__ = ["NextLine", "short_lines"]

_CONSOLES = (PrinterCallback, ProgressCallback)


@contextmanager
def short_lines(trainer: Trainer) -> Iterator[None]:
    """Let the console of a trainer leave out groups where its line would be long.

    The Trainer gives its console the same as its reporters, and asks no one what to show.
    """
    with ExitStack() as undo:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, _CONSOLES):
                _replace(callback, "on_log", _shortened(callback.on_log), undo)
        yield


_awaited: list[dict[str, Any]] = []
"""Logs that somebody has asked to shorten, and that a console may be told of yet."""
_changed = ExitStack()
"""What the classes of consoles were before there were any."""


class NextLine:
    """Shortens the line of a log that is being told to one callback after another.

    A callback that is told of it knows neither the trainer nor its console, which is told later. So
    the classes of consoles are changed until this is left, or nobody holds it any more. Other logs
    go through as they are.
    """

    def __init__(self) -> None:
        self._own: list[dict[str, Any]] = []  # one at the most
        weakref.finalize(self, _await_no_more, self._own)  # a training that fails does not leave it

    def shorten(self, logs: dict[str, Any]) -> None:
        """Let the console that is told of these very logs leave out groups, if need be."""
        self.leave()
        if console_logs(logs) == logs:
            return
        if not _awaited:  # or else they are changed already, for somebody else
            for console in _CONSOLES:
                _replace(console, "on_log", _shortened_if_awaited(console.on_log), _changed)
        _awaited.append(logs)
        self._own.append(logs)

    def leave(self) -> None:
        """Leave consoles as they were, unless somebody else waits for one."""
        _await_no_more(self._own)


def _await_no_more(own: list[dict[str, Any]]) -> None:
    """Forget logs of somebody's own; those of others may be equal to them, or the same."""
    while own:
        logs = own.pop()
        place = next((i for i, each in enumerate(_awaited) if each is logs), None)
        if place is not None:  # a copy of a monitor has copies of its logs, which nobody awaits
            del _awaited[place]
    if not _awaited:
        _changed.close()


def _shortened_if_awaited(on_log: Callable[..., Any]) -> Callable[..., Any]:
    def told(*args: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        if logs is not None and any(each is logs for each in _awaited):
            return on_log(*args, logs=console_logs(logs), **kwargs)
        return on_log(*args, logs=logs, **kwargs)

    return told


def _shortened(on_log: Callable[..., Any]) -> Callable[..., Any]:
    def shortened(*args: Any, logs: dict[str, Any], **kwargs: Any) -> Any:
        return on_log(*args, logs=console_logs(logs), **kwargs)

    return shortened


def _replace(owner: Any, name: str, function: Callable[..., Any], undo: ExitStack) -> None:
    """Put a function in place of a method of an object or a class, until that is undone."""
    before = vars(owner).get(name)
    setattr(owner, name, function)
    undo.callback(
        delattr if before is None else setattr, owner, name, *([before] if before else [])
    )
