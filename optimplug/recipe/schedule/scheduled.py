"""An optimizer and its schedule, moved on together, saved together, and taken apart again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from optimplug._core.arguments import owner_of, warn
from optimplug.errors import ArgumentError
from optimplug.recipe.schedule.run_state import kept_on_error, parts_of_state
from optimplug.recipe.schedule.scheduler import RecipeScheduler
from optimplug.recipe.updates import Updates

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ScheduledOptimizer"]


class ScheduledOptimizer:
    """An optimizer and a recipe's schedule for it; :class:`optimplug.Run` without the recipe.

    It counts the optimizer's updates by a hook, which :meth:`close` takes away.

    Args:
        optimizer: of any class of ``torch.optim.Optimizer``.
        scheduler: its schedule; None where that is still to be made.

    Attributes:
        optimizer: what is stepped: as given, or a trainer's wrapper of it.
        updates: counts the updates that really happened.
        training: whether :meth:`train` was called last, and not :meth:`eval`.

    Example:
        >>> from optimplug import Horizon
        >>> from optimplug.recipe import build_scheduler
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = build_scheduler("linear", optimizer, Horizon(total_steps=4))
        >>> with ScheduledOptimizer(optimizer, scheduler) as scheduled:
        ...     scheduled.step()
        ...     scheduler.get_last_lr()
        [0.75]
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scheduler: RecipeScheduler | None = None
    ) -> None:
        self.optimizer = optimizer
        # What is stepped may be put into a wrapper later; this is what that steps in the end.
        self._owner = owner_of(optimizer)
        self.updates = Updates(self._owner)
        self.training = True
        self._scheduler = scheduler
        self._moved: tuple[RecipeScheduler | None, int] = (scheduler, 0)
        self._told_of_other_steps = False
        self._closed = False
        self._undo = ExitStack()
        self.on_close(self.updates.close)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has undone what was put in place."""
        return self._closed

    @property
    def scheduler(self) -> RecipeScheduler:
        """The schedule, a scheduler of torch's kind.

        Raises:
            ArgumentError: there is none yet, as a run was made without a horizon.
        """
        if self._scheduler is None:
            raise ArgumentError(
                "the run has no schedule before it has a horizon; call run.schedule_over(horizon)"
            )
        return self._scheduler

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do all that belongs to an update: clip, step, move the schedule on, clear the gradients.

        Clipping is part of the optimizer's step (``max_grad_norm``).

        Args:
            closure: computes the loss and its gradients anew, within the step.

        Returns:
            What the optimizer's step returned: the loss of the closure, None without one.
        """
        self._check_open()
        _ = self.scheduler  # without one, nothing may move: the error comes before the update
        loss: Any = self.optimizer.step(closure)
        self.updated()
        self.optimizer.zero_grad()
        return loss

    def updated(self) -> bool:
        """Move the schedule on by as many updates as there were since the last call.

        To be called after every step that may have been an update. One that a GradScaler skipped
        is none, and so is a batch whose gradients are only accumulated.

        Returns:
            Whether there was any.
        """
        self._check_open()
        scheduler = self.scheduler  # or else an error, before anything is counted
        new = self.updates.take()
        self._tell_of_other_steps(scheduler)
        for _ in range(new):
            scheduler.step()
            scheduler.tell_if_beyond()
        self._moved = (scheduler, scheduler.steps_taken)
        return new > 0

    def _tell_of_other_steps(self, scheduler: RecipeScheduler) -> None:
        """Warn, once, where somebody moves the schedule on as well."""
        last, known = self._moved
        others = scheduler.steps_taken - (known if last is scheduler else 0)
        if others > 0 and scheduler.changes and not self._told_of_other_steps:
            self._told_of_other_steps = True
            warn(
                "run.scheduler.step() is called beside run.step() or run.updated(), which move the "
                f"schedule on by themselves: it has taken {others} steps more than there were "
                "updates, and ends too early; leave scheduler.step() out"
            )

    def validated(self, metrics: Mapping[str, Any]) -> None:
        """Tell the schedule of a validation, once it is complete; rates change at once if need be.

        Args:
            metrics: by name, as :meth:`RecipeScheduler.step_metric` takes them.

        Raises:
            ArgumentError: a plateau is active and its metric is missing; or, at the first
                validation, one that a later phase follows. Nothing has changed then.
        """
        self._check_open()
        self.scheduler.step_metric(metrics)

    def trained(self, metrics: Mapping[str, Any]) -> None:
        """Tell the schedule what the training reports, for a plateau with ``of_training: true``.

        Each call is one that it counts: after as many updates each time as the loop logs its loss,
        say, with the mean over them. Validations are told by :meth:`validated`.

        Args:
            metrics: by name, with the prefix ``train_`` or without: ``{"loss": 0.3}``.

        Raises:
            ArgumentError: such a plateau is active and its metric is missing; or, at the first
                report, one that a later phase follows. Nothing has changed then.
        """
        self._check_open()
        self.scheduler.step_metric(metrics, of_training=True)

    @property
    def has_modes(self) -> bool:
        """Whether the optimizer has other weights to train with than to validate and to save."""
        # Ours can all be asked; another class with these methods has them for a purpose.
        other = callable(getattr(self._owner, "eval", None))
        return bool(getattr(self._owner, "has_modes", other))

    def train(self) -> None:
        """Let the optimizer put the weights in place that it trains with.

        Schedule-free optimizers have others than are validated; for any other this does nothing.
        The model's own mode is the caller's.
        """
        self._set_mode(training=True)

    def eval(self) -> None:
        """Let the optimizer put the weights in place that are validated and saved.

        Schedule-free optimizers have others than are trained with; for any other this does nothing.
        The model's own mode is the caller's.
        """
        self._set_mode(training=False)

    def _set_mode(self, training: bool) -> None:
        if self.has_modes:
            switch: Any = self._owner
            switch.train() if training else switch.eval()
        self.training = training

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer, of the schedule, and the mode that they are in.

        It holds primitives and tensors alone.

        The tensors are the optimizer's own, as in torch's state dicts: save or copy them before
        training goes on.
        """
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            **({} if self.training else {"training": False}),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Go on from a state, with a schedule or of an optimizer alone.

        With the state of an optimizer alone, the schedule stays where it is and sets the rates. The
        mode is that in which the state was saved: of a schedule-free optimizer, call :meth:`train`
        before the next step, unless that was the last call before it was saved.

        Args:
            state_dict: what :meth:`state_dict` returned, or an optimizer's.

        Raises:
            StateError: it does not fit, and says what. Nothing has changed then.
        """
        optimizer_state, schedule_state, training = parts_of_state(state_dict)
        if schedule_state is None:
            schedule_state = self.scheduler.state_dict()
        self.scheduler.check_state(schedule_state)
        with kept_on_error(self.optimizer, self._owner):
            self.optimizer.load_state_dict(optimizer_state)
            self.scheduler.load_state_dict(schedule_state)
        self._loaded(training)

    def _loaded(self, training: bool | None) -> None:
        """Go on in the mode in which a state was saved, where that is known."""
        mode = self.training if training is None else training
        groups = self._owner.param_groups
        self.training = all(group.get("train_mode", mode) for group in groups)
        self.updates.take()  # what came before the state is no update after it

    def on_close(self, undo: Callable[[], Any]) -> None:
        """Have something undone when this is closed: the latest first.

        Args:
            undo: takes away what was put on the model, the optimizer or a trainer.
        """
        self._check_open()
        self._undo.callback(undo)

    def close(self, interrupted: bool | None = None) -> None:
        """Undo all that was put on the optimizer, and on a run's model; twice is as once.

        State can still be read and loaded, but the schedule is not moved on any more.

        Args:
            interrupted: whether the run has not come to its end, so that nothing is said of a phase
                that has waited for validations in vain; None: whether an error is on its way.
        """
        if interrupted is None:
            interrupted = sys.exc_info()[0] is not None
        over = not (self._closed or interrupted or self._scheduler is None)
        self._closed = True
        with self._undo:  # which undoes the rest even if something here fails
            if self._scheduler is not None:
                self._scheduler.close()
        if over:
            self.scheduler.tell_if_never_told()

    def _check_open(self) -> None:
        if self._closed:
            raise ArgumentError(
                "the run is closed and moves no schedule any more; start another one: "
                "recipe.start(model, horizon)"
            )

    def __reduce__(self) -> NoReturn:  # which copy and pickle go by
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: it listens to one optimizer by "
            "hooks; save its state_dict(), and load that into another one"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(interrupted=error is not None)
