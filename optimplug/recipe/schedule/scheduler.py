"""RecipeScheduler: applies the curves of a recipe to an optimizer's groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optimplug._core.arguments import owner_of, require_count, warn
from optimplug._core.lr_scheduler.groups import set_rate
from optimplug._core.lr_scheduler.internals import note_steps, noted_steps
from optimplug.errors import StateError
from optimplug.optim.lr_scheduler import LRScheduler
from optimplug.recipe.schedule.freeze import TimedFreeze
from optimplug.recipe.schedule.marks import keep_marks
from optimplug.recipe.schedule.memory import (
    Memory,
    factor_keys,
    memory_of,
    paired,
    remembered,
)
from optimplug.recipe.schedule.others import (
    check_own_values,
    own_values,
    restore_own_values,
    set_scheduled,
)
from optimplug.recipe.schedule.rewarm import (
    Climb,
    added_to,
    check_climbs,
    climbs_from,
    climbs_in,
    over,
    under_way,
)
from optimplug.recipe.schedule.timeline import RunSchedule
from optimplug.recipe.schedule.told import Told, check_unreported

__all__ = ["RecipeScheduler"]


class RecipeScheduler(LRScheduler):
    r"""The schedule of a recipe: one scheduler, stepped once per update.

    .. math:: \eta_g(t) = \eta_g \cdot c_g(t)

    with :math:`\eta_g` the group's own rate and :math:`c_g` the curve that it follows. Other
    hyperparameters that the recipe schedules follow curves of theirs likewise; their own values are
    kept in the group beside them, as ``initial_weight_decay``, say.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        run_schedule: the curves. They remember metrics: one run_schedule serves one scheduler.
        provenance: plain values that say where it comes from, for whoever reads a checkpoint; part
            of its state, and never read from one.

    Attributes:
        steps_taken: how many steps this object has taken; no part of its state.
        climbs: how rates go from what they were, where a run went on, to what they are now.
        unreported: what a trainer has gathered for the next report of the training's loss: the sum,
            and of how many updates; part of the state, for the trainer to go on with.

    Example:
        >>> from optimplug import Horizon, Recipe
        >>> plateau = {"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 0}
        >>> recipe = Recipe.load({"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": [plateau]})
        >>> optimizer, scheduler = recipe.build(torch.nn.Linear(2, 2), Horizon(total_steps=10))
        >>> for loss in (0.5, 0.6):
        ...     scheduler.step_metric({"loss": loss})
        ...     print(scheduler.get_last_lr())
        [1.0]
        [0.1]
    """

    _not_saved = (
        *LRScheduler._not_saved,
        *("_run_schedule", "_freeze", "_notes_steps", "_is_beyond", "steps_taken"),
        *("_keeps_marks", "provenance", "climbs", "_told"),
    )
    _catches_up = True

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        run_schedule: RunSchedule,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self._run_schedule = run_schedule
        self.provenance = {**(provenance or {}), "factors": [*map(list, factor_keys(run_schedule))]}
        self.climbs: list[Climb | None] = []
        self._told = Told(run_schedule)
        self._is_beyond = False
        self.steps_taken = 0
        self.fingerprint = str(run_schedule)
        self.unreported: list[Any] = [0.0, 0]
        # Whether it is this scheduler that first needs the optimizer's steps noted.
        self._notes_steps = noted_steps(owner_of(optimizer)) is None
        super().__init__(optimizer)
        self._freeze = TimedFreeze(self.optimizer, run_schedule.frozen_until, self._updates_done)
        self._keeps_marks = keep_marks(self.optimizer)

    def closed_form(self, base_lr: float, t: int) -> float:
        """Return the rate after ``t`` updates of a group that follows the shared schedule."""
        return base_lr * self._run_schedule.shared["lr"](t)

    def rates(self, t: int) -> list[float]:
        """Return the rate of every group after ``t`` updates, in the optimizer's order."""
        curves = [self._run_schedule.curves_in(group)["lr"] for group in self._groups]
        factors = {id(curve): curve(t) for curve in {id(c): c for c in curves}.values()}
        scheduled = [b * factors[id(c)] for b, c in zip(self.base_lrs, curves, strict=False)]
        return over(self.climbs, t, scheduled)

    def _advance(self, metrics: Any = None) -> None:
        super()._advance(metrics)
        if not self._is_initial:
            self.steps_taken += 1

    def tell_if_beyond(self) -> None:
        """Warn, once, of a step after the end of the run, over which the schedule was laid out."""
        total = self.total_steps
        if self._is_beyond or total is None or self.last_epoch <= total or not self.changes:
            return
        self._is_beyond = True
        warn(
            f"the schedule was laid out over {total} updates, and this is update "
            f"{self.last_epoch}: the phases are over, and the highest lr is now "
            f"{max(self._floats(), default=0.0):.3g}; give as Horizon.total_steps the updates of "
            "the whole run, those of all its epochs",
            frames=3,
        )

    def _updates_done(self) -> int:
        return self.last_epoch

    @property
    def total_steps(self) -> int | None:
        """Over how many updates it was laid out; None where that is not known."""
        return self._run_schedule.total_steps

    @property
    def monitors(self) -> frozenset[str]:
        """The metrics of validations that the schedule follows, in any phase."""
        return self._run_schedule.monitors(of_training=False)

    @property
    def awaited(self) -> frozenset[str]:
        """The metrics that the next validation must have.

        Of the first one, these are all that are followed at any time: a name that nobody knows
        would else end a run that is half done.
        """
        return self._told.awaited(self.last_epoch, of_training=False)

    def monitors_at(self, t: int) -> frozenset[str]:
        """Return the metrics that a validation after ``t`` updates must have."""
        return self._run_schedule.monitors(False, t)

    @property
    def training_monitors(self) -> frozenset[str]:
        """The metrics that the training reports and the schedule follows, in any phase."""
        return self._run_schedule.monitors(of_training=True)

    @property
    def awaited_of_training(self) -> frozenset[str]:
        """The metrics that the next report of the training must have; see :attr:`awaited`."""
        return self._told.awaited(self.last_epoch, of_training=True)

    def tell_if_never_told(self) -> None:
        """Warn, once, of phases that have waited in vain, as a run is over.

        That is where the schedule was told of no validation, or of nothing that the training
        reports, and a phase that would have followed it has begun.
        """
        self._told.warn_if_never(self.last_epoch)

    @property
    def counts_validations(self) -> bool:
        """Whether any phase does something only if it is told of validations."""
        return any(factor.every == "validation" for factor in self._run_schedule.factors())

    @property
    def freezes_for_a_time(self) -> bool:
        """Whether it keeps any group's weights as they are until some update."""
        return bool(self._run_schedule.frozen_until)

    @property
    def changes(self) -> bool:
        """Whether its steps change anything over the run."""
        phases = any(curve.phases for curve in self._run_schedule.all_curves())
        return phases or self.freezes_for_a_time

    def _is_forgotten(self, updates: int) -> bool:
        return self.changes  # it takes one step per update, and nothing else

    def step_metric(self, metrics: Mapping[str, Any], of_training: bool = False) -> None:
        """Tell of a validation, once it is complete; rates change at once if it is time.

        Where somebody else has set a rate, it changes by as much as its own would have.

        Args:
            metrics: by name, with the prefix ``eval_`` or ``val_`` or without, whichever the recipe
                has; others than the schedule follows are not looked at.
            of_training: whether these are no validation's, but what the training reports, for the
                plateaus that follow that; the prefix may be ``train_`` then. They move no other
                phase, and are nothing to a schedule without such plateaus.

        Raises:
            ArgumentError: a plateau is active and its metric is missing; or, at the first
                validation or report, one that a later phase follows. Nothing has changed then.
        """
        self._told.check(self.last_epoch, metrics, of_training)
        self._admit_groups()
        before = self.rates(self.last_epoch)
        self._told.take(self.last_epoch, metrics, of_training)
        after, held = self.rates(self.last_epoch), self._floats()
        self._set(after if held == before else self.chained(held, before, after))

    def admit(self) -> None:
        """Let groups that were added in mid-run go on from the rates that they hold now.

        Where the schedule stands at 0, what they hold is their own rate.
        """
        for group in self._groups[len(self.base_lrs) :]:
            factor = self._run_schedule.curves_in(group)["lr"](self.last_epoch)
            own = group.setdefault("initial_lr", float(group["lr"]) / (factor or 1.0))
            set_rate(group, own * factor)
        self._admit_groups()

    def go_to(self, t: int) -> None:
        """Be where the schedule is after ``t`` updates, whatever came before.

        What follows a metric or counts validations begins there.

        Raises:
            ArgumentError: ``t`` is not an int >= 0. Nothing has changed then.
        """
        t = require_count("t", t)
        self._step_count = t + 1
        self._jump(t)

    def memory_of(self, state_dict: Mapping[str, Any]) -> Memory:
        """Return what another schedule's state remembers, as far as its phases are here as well.

        Raises:
            StateError: it is no state of a recipe's schedule.
        """
        return memory_of(self._run_schedule, state_dict)

    def adopt(
        self,
        t: int,
        memory: Memory | None = None,
        was_told: bool = False,
        was_told_of_training: bool = False,
        climbs: Sequence[Climb | None] = (),
    ) -> None:
        """Be where the schedule is after ``t`` updates of a run that had another one.

        Args:
            t: how many there were.
            memory: what of that one's memory goes on.
            was_told: whether it was told of any validation.
            was_told_of_training: whether it was told of anything that the training reports.
            climbs: how rates still went to where that one had them.

        Raises:
            ArgumentError: ``t`` is no whole number of at least 0. Nothing has changed then.
        """
        t = require_count("t", t)  # before anything changes
        self.climbs = [*climbs]
        for factor, state in memory.kept if memory else ():
            factor.load(state)
        self._told.go_on(was_told, was_told_of_training)
        self.go_to(t)

    def climb_from(self, starts: Sequence[float], steps: int) -> dict[int, Climb]:
        """Let rates go from what they were to where the schedule has them, over some updates.

        Args:
            starts: what the rate of each group was.
            steps: how many updates it takes; at least one.

        Returns:
            The climbs of the groups of which it was another one.
        """
        now = self.rates(self.last_epoch)
        found = climbs_from(starts, now, self.last_epoch, steps)
        self.climbs = added_to(self.climbs, found, len(now))
        self.go_to(self.last_epoch)
        return found

    def _set(self, rates: list[float]) -> None:
        self._write(rates, [group["lr"] for group in self._groups])

    def _write(self, rates: list[float], held: list[Any]) -> None:
        super()._write(rates, held)
        set_scheduled(self._groups, self._run_schedule, self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state: primitives, and a fingerprint of the schedule."""
        own = {
            **self._told.state(),
            "_remembered": remembered(self._run_schedule),
            "_initial": own_values(self._groups, self._run_schedule),
            "_climbs": under_way(self.climbs, self.last_epoch),
        }
        return {**super().state_dict(), **own, "provenance": self._copied(self.provenance)}

    def _completed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        # A state of before it was noted is asked for all metrics once more. Where a state comes
        # from is for others to read.
        found = {
            "_was_told": False,
            "_was_told_of_training": False,
            "unreported": [0.0, 0],
            "_climbs": [],
            **super()._completed(state_dict),
        }
        return {**found, "provenance": self.provenance}

    def check_state(self, state_dict: Mapping[str, Any]) -> None:
        """Raise a StateError unless :meth:`load_state_dict` would take this state."""
        self._check_state(self._completed(state_dict))

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        if state_dict.get("fingerprint", self.fingerprint) != self.fingerprint:
            raise StateError(
                "the state was saved under another schedule: "
                f"{state_dict['fingerprint']!r}, but this one is {self.fingerprint!r}; give the "
                "same schedule, over a run of the same number of updates"
            )
        # Each factor judges its own; here they need not be alike.
        super()._check_state({**state_dict, "_remembered": [], "_climbs": []})
        check_climbs(state_dict["_climbs"], len(self._groups))
        for factor, state in paired(self._run_schedule, state_dict["_remembered"]):
            factor.check_state(state)
        check_unreported(state_dict["unreported"])
        check_own_values(state_dict["_initial"], len(self._groups))

    def _restore(self, state_dict: dict[str, Any]) -> None:
        states, values = state_dict.pop("_remembered"), state_dict.pop("_initial")
        del state_dict["provenance"]
        self.climbs = climbs_in(state_dict.pop("_climbs"))
        told = state_dict.pop("_was_told"), state_dict.pop("_was_told_of_training")
        self._told.go_on(*told)
        super()._restore(state_dict)
        for factor, state in paired(self._run_schedule, states):
            factor.load(state)
        restore_own_values(values, self._groups)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the schedule and what it has set in the groups; the argument stays as it is.

        Raises:
            StateError: the state is of another schedule or another number of groups. Nothing has
                changed then.
        """
        super().load_state_dict(state_dict)
        set_scheduled(self._groups, self._run_schedule, self.last_epoch)

    def close(self) -> None:
        """Take from the optimizer what this scheduler has put there; rates stay as they are."""
        if self._notes_steps:
            note_steps(self.optimizer).forget()
        self._notes_steps = False
        self._freeze.close()
        self._keeps_marks.remove()
