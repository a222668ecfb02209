"""Going on from a checkpoint of Lightning's, of a recipe's run or of any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from optimplug.errors import StateError
from optimplug.lightning.internals import loaded_checkpoint
from optimplug.lightning.package import Callback, LightningModule, Trainer
from optimplug.recipe import Horizon, Run
from optimplug.recipe.checkpoint.policy import Resume
from optimplug.recipe.checkpoint.saved import read_state

__all__ = ["Resumes"]

_OPTIMIZERS, _SCHEDULERS = "optimizer_states", "lr_schedulers"


class Resumes(Callback):
    """Lets a run take over what a checkpoint holds, before Lightning loads it.

    Lightning matches optimizers and schedulers by position, and settings come back with them.
    What the run has taken over is put in their place, so that Lightning loads just that.

    Args:
        run: what goes on.
        how: the policy.

    Raises:
        ArgumentError: it does not go with what the recipe says.
    """

    def __init__(self, run: Run, how: Resume) -> None:
        self._run = run
        self._how = how.within(run.recipe.spec)
        self._settings: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over, where the checkpoint has been read: callbacks may have added groups by now.

        Raises:
            StateError: the policy does not allow it, or the state does not fit.
        """
        groups = self._run.optimizer.param_groups
        self._settings = [{k: v for k, v in g.items() if k != "params"} for g in groups]
        self._take_over(trainer, loaded_checkpoint(trainer))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Do the same where the strategy reads it only now, as those that shard do.

        Raises:
            StateError: likewise.
        """
        if trainer.training and self._settings:
            self._take_over(trainer, checkpoint)

    def _take_over(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        run = self._run
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        # Stochastic weight averaging that was under way puts a scheduler of its own there.
        place = schedulers.index(run.scheduler) if run.scheduler in schedulers else None
        state = None if place is None else self._optimizer_state(trainer, checkpoint)
        if place is None or state is None:
            return
        updates, saved = _updates(checkpoint), checkpoint.get(_SCHEDULERS) or []
        found = read_state({"optimizer": state, "scheduler": _schedule(saved, place, schedulers)})
        run.go_on_from(replace(found, updates=updates), self._how)
        if self._how.policy == "weights":
            self._lay_over_the_rest(trainer, updates)
        if _OPTIMIZERS in checkpoint:
            states = [*checkpoint[_OPTIMIZERS]]
            states[trainer.optimizers.index(run.optimizer)] = run.optimizer.state_dict()
            checkpoint[_OPTIMIZERS] = states
        # One that is new here has its own state, and not that of another in its place.
        held = [config.scheduler for config in trainer.lr_scheduler_configs]
        others = dict(enumerate(saved)) if len(saved) == len(held) else {}
        checkpoint[_SCHEDULERS] = [
            others.get(i, scheduler.state_dict()) if i != place else scheduler.state_dict()
            for i, scheduler in enumerate(held)
        ]

    def _optimizer_state(
        self, trainer: Trainer, checkpoint: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Return what was saved of the optimizer; None where there is nothing to go on from."""
        optimizer = self._run.optimizer
        if not checkpoint or optimizer not in trainer.optimizers:
            return None
        if _OPTIMIZERS in checkpoint:
            states, place = checkpoint[_OPTIMIZERS], trainer.optimizers.index(optimizer)
            if not isinstance(states, list) or len(states) != len(trainer.optimizers):
                count = len(states) if isinstance(states, list) else states
                raise StateError(
                    f"the checkpoint has the states of {count} optimizers, but the module has "
                    f"{len(trainer.optimizers)}; give it as many as were saved"
                )
            found: Mapping[str, Any] = states[place]
            return found
        if trainer.strategy.lightning_restore_optimizer:
            return None  # it holds the model alone, which Lightning refuses in words of its own
        # The strategy has loaded it already, and with it the settings.
        found = optimizer.state_dict()
        for group, own in zip(optimizer.param_groups, self._settings, strict=True):
            group.update(own)
        return found

    def _lay_over_the_rest(self, trainer: Trainer, updates: int) -> None:
        """Let a schedule that begins anew end where the run does."""
        run, before = self._run, self._run.scheduler
        whole = run.horizon or Horizon()
        if whole.total_steps is not None and updates < whole.total_steps:
            run.schedule_over(Horizon(whole.total_steps - updates, whole.steps_per_epoch))
            for config in trainer.lr_scheduler_configs:
                if config.scheduler is before:
                    config.scheduler = run.scheduler


def _schedule(saved: list[Any], place: int, schedulers: list[Any]) -> Any:
    """Return the state of the schedule that goes on: in its place, or else a recipe's."""
    if len(saved) == len(schedulers):
        return saved[place]
    ours = [state for state in saved if isinstance(state, Mapping) and "fingerprint" in state]
    return ours[0] if len(ours) == 1 else {}


def _updates(checkpoint: Mapping[str, Any]) -> int:
    """Return how many updates each optimizer had; Lightning counts those of all."""
    steps = checkpoint.get("global_step")
    each = len(checkpoint.get(_OPTIMIZERS) or [None])
    return steps // max(1, each) if isinstance(steps, int) else 0
