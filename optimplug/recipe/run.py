"""Run: a recipe at work on a model, and what every training loop is built on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from optimplug._core.arguments import owner_of
from optimplug.errors import ArgumentError
from optimplug.recipe.checkpoint.adopt import Target, resume_from, tell
from optimplug.recipe.checkpoint.order import Order
from optimplug.recipe.checkpoint.policy import Policy, Resume
from optimplug.recipe.checkpoint.resumption import Resumption
from optimplug.recipe.checkpoint.saved import Saved, read_state
from optimplug.recipe.clipped import leave_steps
from optimplug.recipe.parameters.frozen import FreezeWatch, follow_copies, freezings_in
from optimplug.recipe.parameters.wrappers import without_wrappers
from optimplug.recipe.schedule.scheduled import ScheduledOptimizer
from optimplug.recipe.schedule.scheduler import RecipeScheduler
from optimplug.recipe.text.durations import Horizon, require_horizon

if TYPE_CHECKING:
    from optimplug.recipe.recipe import Recipe

__all__ = ["Run"]


class Run(ScheduledOptimizer):
    """A recipe at work on a model: its optimizer and its schedule, for whatever trains.

    :meth:`Recipe.start` makes one in a loop of one's own::

        run = recipe.start(model, Horizon(total_steps=1000))
        for batch in batches:
            model(**batch).loss.backward()
            run.step()

    A trainer that steps the optimizer by itself says so with :meth:`updated` afterwards. One that
    asks for the optimizer before it knows how long it will train makes a run without a horizon, and
    gives it to :meth:`schedule_over` later. Whoever validates calls :meth:`validated`.

    A run listens to its optimizer by hooks, and parameters that the recipe freezes stop requiring
    gradients, until another recipe is built on the model. :meth:`close` undoes both; so does the
    end of a ``with`` block. What an adapter puts on the user's objects, it has undone there too, by
    :meth:`on_close`.

    Args:
        recipe: what is carried out.
        model: what is trained.
        horizon: how long; None to call :meth:`schedule_over` later.

    Attributes:
        recipe: as given.
        model: as given.
        horizon: how long the run is; None until it is known.
        optimizer: the recipe's, or what has taken its place in :meth:`schedule_over`.
        updates: counts the updates that really happened, for a trainer that steps the scheduler by
            itself.
        training: whether :meth:`train` was called last, and not :meth:`eval`. A run begins so.
        resumption: what became of the checkpoint that it has gone on from, if any.

    Raises:
        RecipeError: the rules do not fit the model, or the phases the horizon. The model is as it
            was then.
        ArgumentError: the horizon is no Horizon.

    Example:
        >>> from optimplug import Horizon, Recipe
        >>> recipe = Recipe.load({"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": "linear"})
        >>> model = nn.Linear(2, 1)
        >>> with recipe.start(model, Horizon(total_steps=4)) as run:
        ...     for _ in range(2):
        ...         model(torch.ones(1, 2)).sum().backward()
        ...         run.step()
        ...         print(run.scheduler.get_last_lr())
        [0.75]
        [0.5]
    """

    def __init__(self, recipe: Recipe, model: nn.Module, horizon: Horizon | None = None) -> None:
        if horizon is not None:
            require_horizon(horizon)
        self.recipe = recipe
        self.model = model
        self.horizon = horizon
        self.resumption: Resumption | None = None
        if horizon is None:
            super().__init__(recipe.build_optimizer(model))
        else:
            super().__init__(*recipe.build(model, horizon))
        self.on_close(partial(leave_steps, self.optimizer))
        for freezing in freezings_in(model):  # this recipe's: it has undone those before it
            self.on_close(freezing.release)
        follow_copies(model)
        own = (p for group in self._owner.param_groups for p in group["params"])
        self._frozen_by_others = FreezeWatch(model, own)
        self.train()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do all that belongs to an update: clip, step, move the schedule on, clear the gradients.

        Clipping is part of the optimizer's step (``max_grad_norm``).

        Args:
            closure: computes the loss and its gradients anew, within the step.

        Returns:
            What the optimizer's step returned: the loss of the closure, None without one.

        Raises:
            ArgumentError: the run is closed, or a later recipe on the same model has frozen what
                this one trains. Nothing has changed then.
        """
        self._check_frozen()
        return super().step(closure)

    def updated(self) -> bool:
        """Move the schedule on by as many updates as there were since the last call.

        It is as :meth:`ScheduledOptimizer.updated`.

        Raises:
            ArgumentError: as :meth:`step`.
        """
        self._check_frozen()
        return super().updated()

    def _check_frozen(self) -> None:
        """Refuse to train on without what another recipe has frozen since."""
        if not self.closed and (names := self._frozen_by_others.frozen_since()):
            more = f", and {len(names) - 3} more" if len(names) > 3 else ""
            raise ArgumentError(
                "another recipe was built on this model since the run began, and has frozen what "
                f"this run trains: {', '.join(names[:3])}{more}; close that one's run first, or "
                "write both as rules of one recipe (each with its own optimizer, if need be)"
            )

    def schedule_over(
        self, horizon: Horizon, optimizer: torch.optim.Optimizer | None = None
    ) -> RecipeScheduler:
        """Lay the schedule over a horizon; it starts at 0, in place of one that was there.

        Args:
            horizon: how long the run is.
            optimizer: what is stepped from now on, where a trainer has wrapped the run's optimizer
                (accelerate does).

        Returns:
            The scheduler.

        Raises:
            RecipeError: the phases do not fit the horizon. Nothing has changed then.
            ArgumentError: it is another optimizer than the run's, or the run is closed. Nothing has
                changed then.
        """
        self._check_open()
        require_horizon(horizon)
        stepped = self.optimizer if optimizer is None else optimizer
        # Every wrapper (accelerate's, Fabric's) shows the groups of what it wraps.
        if owner_of(stepped).param_groups is not self._owner.param_groups:
            raise ArgumentError(
                "optimizer must be the run's own, or a wrapper of it: its groups are those that "
                "the schedule is for (got another one); give run.optimizer to what wraps it"
            )
        scheduler = self.recipe.build_scheduler(self._owner, horizon)
        if self._scheduler is not None:
            self._scheduler.close()
            scheduler.go_to(0)  # the one before may have left the groups at other rates
        self._scheduler, self.horizon, self.optimizer = scheduler, horizon, stepped
        return scheduler

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        resume: Policy | None = None,
        rewarm: int | str | None = None,
    ) -> Resumption:
        """Go on from a checkpoint: a run's state, or that of an optimizer alone.

        A state belongs to names, not to positions. Of an optimizer alone, the schedule stays where
        it is under ``exact``, and goes on from the update that the moments have counted under
        ``adapt``. The mode is that in which the state was saved: of a schedule-free optimizer, call
        :meth:`train` before the next step, unless that was the last call before it was saved.

        Args:
            state_dict: what :meth:`state_dict` returned, or an optimizer's, of torch.optim as well,
                with names or without.
            resume: ``exact``: the same names, groups, optimizers, settings, schedule and horizon,
                or an error that shows what is otherwise. ``adapt``: state goes to parameters by
                name, settings are the recipe's, the schedule goes on from the same update over this
                run's horizon. ``weights``: optimizer and schedule begin anew. None: as the recipe
                says, which is ``exact`` if it says nothing.
            rewarm: under ``adapt``, for how long a rate that would jump goes from what it was to
                what the schedule has, in a straight line: ``"2%"`` of this run, ``"1 epoch"``, a
                number of updates; 0 not at all. Parameters that nothing has moved before begin at
                0. A climb that is under way as a run is saved goes on when that is resumed. None:
                as the recipe says.

        Returns:
            What was taken over, and what is otherwise now; the log ``optimplug`` has it as well.

        Raises:
            StateError: the policy does not allow it, or it does not fit, and it says what. Nothing
                has changed then.
            ArgumentError: ``resume`` is none of the three, or is ``weights`` for a run that has
                begun; ``rewarm`` is no duration, or ``resume`` is not ``adapt``. Nothing has
                changed then.

        Example:
            >>> from optimplug import Horizon, Recipe
            >>> recipe = Recipe({"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": "linear"})
            >>> model = nn.Linear(2, 1)
            >>> done = recipe.start(model, Horizon(total_steps=4))
            >>> done.scheduler.go_to(3)
            >>> run = recipe.start(model, Horizon(total_steps=12))
            >>> found = run.load_state_dict(done.state_dict(), resume="adapt", rewarm=2)
            >>> [run.scheduler.rates(t)[0] for t in (3, 4, 5, 6)]
            [0.25, 0.4583..., 0.5833..., 0.5]
        """
        return self.go_on_from(read_state(state_dict), Resume.read(resume, rewarm))

    def would_change(self, saved: Saved) -> Resumption:
        """Take over a checkpoint under ``adapt``, and say nothing in the log: for a preview.

        Raises:
            StateError: it does not fit.
        """
        rewarm = self.recipe.spec.resuming.rewarm
        return resume_from(saved, self._target(()), Resume("adapt", rewarm))

    def go_on_from(
        self, saved: Saved, how: Resume | None = None, orders: Sequence[Order] = ()
    ) -> Resumption:
        """Do the same with what a trainer has read of its own checkpoint.

        Args:
            saved: what it holds.
            how: the policy; None: as the recipe says.
            orders: names for a state without any, as a trainer's own optimizer would have had them:
                each time those of every group.

        Raises:
            StateError: as above.
            ArgumentError: as above.
        """
        settled = (how or Resume()).within(self.recipe.spec)
        self.resumption = resume_from(saved, self._target(orders), settled)
        self._loaded(None if settled.policy == "weights" else saved.training)
        tell(self.resumption)
        return self.resumption

    def _target(self, orders: Sequence[Order]) -> Target:
        parameters = dict(without_wrappers(self.model).named_parameters())
        return Target(self.optimizer, self.scheduler, self.horizon, parameters, orders)
