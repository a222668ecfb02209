"""Whether a checkpoint of the Trainer's was written whole: a run may be killed at any time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from optimplug.errors import StateError
from optimplug.recipe.checkpoint.file import newest_whole, not_whole

__all__ = ["check_whole"]

_NAMED = re.compile(r"checkpoint-\d+")


def check_whole(given: str | bool | None, output_dir: str | None) -> None:
    """Refuse to go on from a checkpoint that was not written whole.

    The Trainer writes a folder file by file, and takes the latest for the newest checkpoint.

    Args:
        given: the folder, or True for the latest in ``output_dir``; else there is none.
        output_dir: of the Trainer.

    Raises:
        StateError: it says what is missing, and names the newest one that is whole.
    """
    last: Callable[[str], str | None] = get_last_checkpoint
    found = last(output_dir) if given is True and output_dir else given
    folder = Path(found) if isinstance(found, str) else None
    if folder is None or not folder.is_dir():
        return  # the Trainer says so
    damage = _damage(folder)
    if damage is None:
        return
    other = newest_whole(folder, _damage)
    go_on = (
        "there is no whole one beside it: begin anew, without resume_from_checkpoint"
        if other is None
        else f"go on from the newest whole one: resume_from_checkpoint={str(other)!r}"
    )
    raise StateError(
        f"{folder} was not written whole, as if the run was stopped meanwhile: {damage}; {go_on}"
    )


def _damage(folder: Path) -> str | None:
    """Return what of a checkpoint is missing or ends too early; None if nothing is."""
    return next(_damages(folder), None)


def _damages(folder: Path) -> Iterator[str]:
    state = folder / TRAINER_STATE_NAME
    # It is written last. A model's folder of another name need not have it.
    if state.is_file() or _NAMED.fullmatch(folder.name):
        try:
            json.loads(state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            yield f"it has no {state.name}, which is written last"
        except ValueError:
            yield f"{state.name} ends too early"
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except SafetensorError as error:
                yield f"{file.name} ends too early ({error})"
        elif file.suffix in (".pt", ".pth", ".bin") and file.name != "training_args.bin":
            problem = not_whole(file)
            if problem is not None:
                yield f"{file.name} {problem}"
        elif file.is_dir() and [*file.glob("*.distcp")] and not (file / ".metadata").is_file():
            yield f"{file.name} has no .metadata, which is written last"
