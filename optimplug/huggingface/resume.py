"""Going on from a checkpoint of the Trainer's, of a recipe's run or of any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from optimplug.errors import StateError
from optimplug.recipe import Horizon, Run
from optimplug.recipe.checkpoint.file import load_file
from optimplug.recipe.checkpoint.order import Order
from optimplug.recipe.checkpoint.policy import Resume
from optimplug.recipe.checkpoint.saved import Saved, read_state

__all__ = ["Checkpoint", "load_but_for_schedule", "resume"]


class Checkpoint(NamedTuple):
    """A checkpoint of the Trainer's, and what the Trainer knows of it."""

    folder: Path
    updates: int
    """How many there were."""
    order: Order
    """The parameters of each group of the Trainer's own optimizer."""
    is_sharded: bool
    """Whether this run keeps the state in parts, as FSDP does."""
    load: Callable[[], Mapping[str, Any]]
    """Lets the Trainer load the optimizer by itself, as only it can where that is sharded; returns
    the state of the schedule, which is left as it is."""


def resume(checkpoint: Checkpoint, run: Run, given: Resume) -> None:
    """Go on from a checkpoint, and say what has changed.

    Args:
        checkpoint: of a run with a recipe, or without one.
        run: the recipe's; its optimizer's groups name their parameters.
        given: the policy, what may be otherwise. Under ``weights`` the schedule is laid over the
            updates that are left.

    Raises:
        StateError: a part of the checkpoint is missing, the policy does not allow what is
            otherwise, or the state does not fit. The run is as it was then.
        ArgumentError: the policy does not go with what the recipe says.
    """
    how = given.within(run.recipe.spec)
    if how.policy == "weights":
        run.go_on_from(read_state(_nothing(run)), how)
        _lay_over_the_rest(run, checkpoint.updates)
        return
    folder = checkpoint.folder
    if not (folder / SCHEDULER_NAME).is_file():
        _without_state(checkpoint, run, how)
    elif (folder / OPTIMIZER_NAME).is_file():
        state = {
            "optimizer": load_file(folder / OPTIMIZER_NAME),
            "scheduler": load_file(folder / SCHEDULER_NAME),
        }
        run.go_on_from(_saved(state, checkpoint), how, [checkpoint.order])
    elif checkpoint.is_sharded:
        _as_loaded(checkpoint, run, how)
    else:
        raise StateError(
            f"{folder} has no {OPTIMIZER_NAME}: the state of a sharded optimizer cannot be taken "
            "over by a run that is not sharded; go on under FSDP, or give resume='weights' to let "
            "the optimizer begin anew"
        )


def load_but_for_schedule(trainer: Trainer, load: Callable[[], None]) -> Mapping[str, Any]:
    """Let a Trainer load a checkpoint, and return the state of the schedule, which stays as it is.

    Args:
        trainer: whose schedule it is.
        load: does what the Trainer would do.
    """
    running: Any = trainer
    scheduler, unloaded = trainer.lr_scheduler, _Unloaded()
    running.lr_scheduler = unloaded
    try:
        load()
    finally:
        running.lr_scheduler = scheduler
    return unloaded.state


class _Unloaded:
    """Stands where the Trainer loads the state of a schedule, and keeps that."""

    state: Mapping[str, Any] = {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = state


def _saved(state: Mapping[str, Any], checkpoint: Checkpoint) -> Saved:
    saved = read_state(state)
    last = (saved.schedule or {}).get("last_epoch")
    # Torch's ReduceLROnPlateau has no base_lrs, and counts evaluations. What the Trainer steps
    # counts updates, without those that AMP has skipped.
    steps = last if isinstance(last, int) and "base_lrs" in (saved.schedule or {}) else None
    return replace(saved, updates=checkpoint.updates if steps is None else steps)


def _as_loaded(checkpoint: Checkpoint, run: Run, how: Resume) -> None:
    """Take over what the Trainer has loaded by itself, with the run's own settings."""
    owner = run.optimizer
    own = [{k: v for k, v in g.items() if k != "params"} for g in owner.param_groups]
    schedule = checkpoint.load()
    found = owner.state_dict()
    for group, settings in zip(owner.param_groups, own, strict=True):
        group.update(settings)
    run.go_on_from(_saved({"optimizer": found, "scheduler": schedule}, checkpoint), how)


def _without_state(checkpoint: Checkpoint, run: Run, how: Resume) -> None:
    """Go on from a checkpoint of save_only_model; the Trainer would start the schedule anew."""
    folder = checkpoint.folder
    if any("optimizer" in file.name for file in folder.iterdir()):
        raise StateError(
            f"{folder} has a state of the optimizer, but no {SCHEDULER_NAME}: the Trainer would "
            "load neither; bring that file back, or take the optimizer's away to start both anew"
        )
    if how.policy == "exact":
        raise StateError(
            f"{folder.name} has no state of the optimizer or the schedule (it was saved with "
            "save_only_model), and resume='exact' lets nothing change; give resume='adapt' to let "
            f"the optimizer begin anew and the schedule go on from update {checkpoint.updates}, or "
            "resume='weights' to let both begin anew"
        )
    note = f"{folder.name} has no state of the optimizer, which begins anew"
    run.go_on_from(replace(_saved(_nothing(run), checkpoint), notes=(note,)), how)


def _nothing(run: Run) -> dict[str, Any]:
    """Return the state of the run's optimizer before it has begun."""
    return {"state": {}, "param_groups": run.optimizer.state_dict()["param_groups"]}


def _lay_over_the_rest(run: Run, updates: int) -> None:
    """Let a schedule that begins anew end where the run does."""
    whole = run.horizon or Horizon()
    if whole.total_steps is not None and updates < whole.total_steps:
        left = Horizon(whole.total_steps - updates, whole.steps_per_epoch)
        run.schedule_over(left, run.optimizer)
