"""Checkpoints in files: of a loop, of Lightning, of the Trainer. Reading one runs no code."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from optimplug.errors import StateError
from optimplug.recipe.checkpoint.saved import Saved, read_state

__all__ = ["load_file", "newest_whole", "not_whole", "read_file"]

_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"  # in a folder of the Trainer's


def load_file(file: Path, alone: bool = False) -> Any:
    """Return what a file holds, on the CPU: tensors and plain values.

    Args:
        file: to be read.
        alone: whether it is a checkpoint by itself, so that others may lie beside it.

    Raises:
        StateError: it cannot be read, or holds something else.
    """
    if not file.exists():
        raise StateError(f"{file}: there is no such file or folder")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises anything over a damaged file
        reason = next(iter(str(error).splitlines()), "it ends too early")
        cause = "is damaged, or holds more than tensors and plain values"
        if not_whole(file) is not None:
            cause = "was not written to its end, or is no file of torch.save"
        other = newest_whole(file) if alone else None
        earlier = "an earlier checkpoint" if other is None else f"the newest whole one: {other}"
        raise StateError(
            f"{file} cannot be read: {type(error).__name__}: {reason}; it {cause}; go on from "
            f"{earlier}"
        ) from error


def not_whole(file: Path) -> str | None:
    """Return what shows that a file of torch.save's was not written whole; None if nothing does.

    Such a file is a zip file, whose table of contents is written last.
    """
    try:
        whole = zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # a table that is there, but makes no sense
        whole = False
    return None if whole else "ends too early"


def newest_whole(path: Path, damage: Callable[[Path], str | None] = not_whole) -> Path | None:
    """Return the newest checkpoint beside one that is whole itself; None where there is none.

    Args:
        path: a file or a folder.
        damage: returns what shows that a checkpoint was not written whole.
    """
    others = (
        other
        for other in path.parent.iterdir()
        if other != path and other.suffix == path.suffix and other.is_dir() == path.is_dir()
    )
    # Of files that were written within one tick of the file system's clock, the last by its name.
    newest = sorted(others, key=lambda other: (other.stat().st_mtime_ns, _counted(other)))
    return next((other for other in reversed(newest) if damage(other) is None), None)


def _counted(path: Path) -> list[tuple[int, str]]:
    """Return a name's parts in an order in which 10 comes after 9."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", path.name)]


def read_file(path: Path) -> dict[str, Saved]:
    """Return the optimizers' states in a checkpoint, each with its schedule's.

    Args:
        path: a file, of a run's or an optimizer's state, of a dict with such in it, or of
            Lightning; or a folder of the Trainer's.

    Returns:
        By where each stands in it; ``""`` for one that is all there is.

    Raises:
        StateError: it cannot be read, or there is none.
    """
    content = _folder(path) if path.is_dir() else load_file(path, alone=True)
    found = {where: _read(where, state, path) for where, state in _states(content)}
    if not found:
        keys = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise StateError(f"{path} has no state of a run or of an optimizer (got {keys})")
    steps = content.get("global_step") if isinstance(content, Mapping) else None
    if isinstance(steps, int):  # Lightning counts the updates of all optimizers
        return {k: replace(saved, updates=steps // len(found)) for k, saved in found.items()}
    return found


def _read(where: str, state: Any, path: Path) -> Saved:
    try:
        return read_state(state)
    except StateError as error:
        at = f", under {where}" if where else ""
        raise StateError(f"{path}{at}: {error}") from None


def _folder(folder: Path) -> Any:
    if not (folder / _OPTIMIZER).is_file():
        raise StateError(f"{folder} has no {_OPTIMIZER}: it is no checkpoint of the Trainer's")
    optimizer = load_file(folder / _OPTIMIZER)
    if not (folder / _SCHEDULER).is_file():
        return optimizer
    return {"optimizer": optimizer, "scheduler": load_file(folder / _SCHEDULER)}


def _states(content: Any) -> Iterator[tuple[str, Any]]:
    """Walk what looks like a state, each with where it stands."""
    if not isinstance(content, Mapping):
        return
    if _is_state(content):
        yield "", content
        return
    states = content.get("optimizer_states")
    if isinstance(states, list):
        yield from _of_lightning(states, content.get("lr_schedulers"))
        return
    for key, part in content.items():
        if _is_state(part):
            yield str(key), part


def _of_lightning(states: list[Any], schedules: Any) -> Iterator[tuple[str, Any]]:
    fit = isinstance(schedules, list) and len(schedules) == len(states)
    for i, state in enumerate(states):
        where = "" if len(states) == 1 else f"optimizer_states[{i}]"
        yield where, {"optimizer": state, "scheduler": schedules[i] if fit else {}}


def _is_state(part: Any) -> bool:
    keys = part.keys() if isinstance(part, Mapping) else set()
    return {"optimizer", "scheduler"} <= keys or {"state", "param_groups"} <= keys
