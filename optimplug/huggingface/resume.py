"""Going on with a recipe where a Trainer without one has stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from optimplug.errors import StateError
from optimplug.huggingface.other_state import take_over
from optimplug.recipe import RecipeScheduler, Run

__all__ = ["resume"]


def resume(checkpoint: Path, run: Run, groups: Sequence[Sequence[str]], updates: int) -> str | None:
    """Go on from a checkpoint, if it is not of a recipe and so not for the Trainer to load.

    What a run without a recipe has of the optimizer's state is loaded by parameter name. The
    schedule goes to the update where the run was.

    Args:
        checkpoint: the folder.
        run: the recipe's; its optimizer's groups name their parameters.
        groups: the parameters of each group of the Trainer's own optimizer, in its order.
        updates: how many there were; not asked for where the saved schedule knows.

    Returns:
        One line that says what has changed; None if the checkpoint is of a recipe.

    Raises:
        StateError: a part of the checkpoint is missing, or the optimizer's state does not fit, or
            is neither AdamW's nor that of a recipe's optimizer. Nothing has changed then.
    """
    if not (checkpoint / SCHEDULER_NAME).is_file():
        return _without_state(checkpoint, run.scheduler, updates)
    schedule = torch.load(checkpoint / SCHEDULER_NAME, map_location="cpu", weights_only=True)
    if "fingerprint" in schedule:
        run.scheduler.check_state(schedule)  # before the Trainer loads the optimizer's
        return None
    saved = _optimizer_state(checkpoint)
    taken = take_over(saved, run.optimizer, groups)
    # Torch's ReduceLROnPlateau has no base_lrs, and counts evaluations.
    run.scheduler.go_to(schedule["last_epoch"] if "base_lrs" in schedule else updates)
    kind = "whose schedule was the Trainer's own" if taken.by_a_recipe else "without a recipe"
    return (
        f"{checkpoint.name} is of a run {kind}, with {_summary(saved['param_groups'])}; "
        f"from update {run.scheduler.last_epoch} on the recipe applies, with "
        f"{_summary(run.optimizer.param_groups)}; the optimizer's state is taken over by parameter "
        "name"
        + (f", but for {taken.left} parameters that the recipe freezes" if taken.left else "")
    )


def _without_state(checkpoint: Path, scheduler: RecipeScheduler, updates: int) -> str:
    """Go on from a checkpoint of save_only_model; the Trainer would start the schedule anew."""
    if any("optimizer" in file.name for file in checkpoint.iterdir()):
        raise StateError(
            f"{checkpoint} has a state of the optimizer, but no {SCHEDULER_NAME}: the Trainer "
            "would load neither; bring that file back, or take the optimizer's away to start both "
            "anew"
        )
    scheduler.go_to(updates)
    return (
        f"{checkpoint.name} has no state of the optimizer or the schedule: the optimizer starts "
        f"anew, the schedule goes on from update {updates}"
    )


def _optimizer_state(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / OPTIMIZER_NAME
    if not file.is_file():
        raise StateError(
            f"{checkpoint} is of a run without a recipe, and has no {OPTIMIZER_NAME}: the state of "
            "a sharded optimizer cannot be taken over"
        )
    saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return saved


def _summary(groups: Sequence[Mapping[str, Any]]) -> str:
    rates = sorted({float(group["lr"]) for group in groups})
    span = " to ".join(f"{lr:.3g}" for lr in {rates[0]: 0, rates[-1]: 0})
    return f"{len(groups)} group{'s' if len(groups) > 1 else ''}, lr {span}"
