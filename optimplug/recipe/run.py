"""Run: a recipe at work on a model, and what every training loop is built on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from optimplug._core.arguments import owner_of
from optimplug.errors import ArgumentError, StateError
from optimplug.recipe.schedule.scheduler import RecipeScheduler
from optimplug.recipe.text.durations import Horizon
from optimplug.recipe.updates import Updates

if TYPE_CHECKING:
    from optimplug.recipe.recipe import Recipe

__all__ = ["Run"]


class Run:
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
    gradients. :meth:`close` undoes both; so does the end of a ``with`` block.

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

    Raises:
        RecipeError: the rules do not fit the model, or the phases the horizon. The model is as it
            was then.

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
        self.recipe = recipe
        self.model = model
        self.horizon = horizon
        self._undo = ExitStack()
        self._closed = False
        self._scheduler: RecipeScheduler | None = None
        before = [p for p in model.parameters() if p.requires_grad]
        self.optimizer: torch.optim.Optimizer
        if horizon is None:
            self.optimizer = recipe.build_optimizer(model)
        else:
            self.optimizer, self._scheduler = recipe.build(model, horizon)
        frozen = [p for p in before if not p.requires_grad]
        self.on_close(lambda: _let_train(frozen))
        self.updates = Updates(self.optimizer)
        self.on_close(self.updates.close)

    @property
    def closed(self) -> bool:
        """Whether the run is over: :meth:`close` has undone what it had put in place."""
        return self._closed

    @property
    def scheduler(self) -> RecipeScheduler:
        """The schedule of the run, a scheduler of torch's kind.

        Raises:
            ArgumentError: there is none yet, as the run was made without a horizon.
        """
        if self._scheduler is None:
            raise ArgumentError(
                "the run has no schedule before it has a horizon; call run.schedule_over(horizon)"
            )
        return self._scheduler

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
            ArgumentError: it is another optimizer than the run's. Nothing has changed then.
        """
        stepped = self.optimizer if optimizer is None else optimizer
        if owner_of(stepped) is not owner_of(self.optimizer):
            raise ArgumentError(
                "optimizer must be the run's own, or a wrapper of it: its groups are those that "
                "the schedule is for (got another one); give run.optimizer to what wraps it"
            )
        scheduler = self.recipe.build_scheduler(stepped, horizon)
        if self._scheduler is not None:
            self._scheduler.close()
            scheduler.go_to(0)  # the one before may have left the groups at other rates
        self._scheduler, self.horizon, self.optimizer = scheduler, horizon, stepped
        return scheduler

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do all that belongs to an update: clip, step, move the schedule on, clear the gradients.

        Clipping is part of the optimizer's step (``max_grad_norm``).

        Args:
            closure: computes the loss and its gradients anew, within the step.

        Returns:
            What the optimizer's step returned: the loss of the closure, None without one.
        """
        self._check_open()
        loss: Any = self.optimizer.step(closure)
        self.updated()
        self.optimizer.zero_grad()
        return loss

    def updated(self) -> bool:
        """Move the schedule on if the optimizer was updated since the last call.

        To be called after every step that may have been an update. One that a GradScaler skipped
        is none, and so is a batch whose gradients are only accumulated.

        Returns:
            Whether there was an update.
        """
        self._check_open()
        happened = self.updates.take() > 0
        if happened:
            self.scheduler.step()
        return happened

    def validated(self, metrics: Mapping[str, Any]) -> None:
        """Tell the schedule of a validation, once it is complete; rates change at once if need be.

        Args:
            metrics: by name; others than the schedule follows are not looked at.

        Raises:
            ArgumentError: a plateau is active and its metric is missing. Nothing has changed then.
        """
        self._check_open()
        self.scheduler.step_metric(metrics)

    def train(self) -> None:
        """Let the optimizer be ready to train, where it has such a mode, as schedule-free ones do.

        The model's own mode is the caller's.
        """
        self._set_mode("train")

    def eval(self) -> None:
        """Let the optimizer put the weights in place that are validated and saved, if they differ.

        The model's own mode is the caller's.
        """
        self._set_mode("eval")

    def _set_mode(self, mode: str) -> None:
        switch = getattr(owner_of(self.optimizer), mode, None)
        if switch is not None:
            switch()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer and of the schedule: primitives and tensors alone.

        The tensors are the optimizer's own, as in torch's state dicts: save or copy them before the
        run goes on.
        """
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state, of a run or of an optimizer alone.

        With the state of an optimizer alone, the schedule stays where it is and sets the rates.

        Args:
            state_dict: what :meth:`state_dict` returned, or an optimizer's.

        Raises:
            StateError: it does not fit, and says what. Nothing has changed then.
        """
        optimizer_state, schedule_state = _parts(state_dict)
        if schedule_state is None:
            schedule_state = self.scheduler.state_dict()
        self.scheduler.check_state(schedule_state)
        with _kept_on_error(owner_of(self.optimizer)):
            self.optimizer.load_state_dict(optimizer_state)
            self.scheduler.load_state_dict(schedule_state)
        self.updates.take()  # what came before the state is no update after it

    def on_close(self, undo: Callable[[], Any]) -> None:
        """Have something undone when the run is closed: the latest first.

        Args:
            undo: takes away what was put on the model, the optimizer or a trainer.
        """
        self._undo.callback(undo)

    def close(self) -> None:
        """Undo all that the run has put on the model and the optimizer; a second time is allowed.

        Parameters that it froze require gradients again. State can still be read and loaded, but
        the schedule is not moved on any more.
        """
        self._closed = True
        if self._scheduler is not None:
            self._scheduler.close()
        self._undo.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ArgumentError(
                "the run is closed and moves no schedule any more; start another one: "
                "recipe.start(model, horizon)"
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _let_train(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(True)


def _parts(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Return the state of the optimizer and, if it is there, that of the schedule."""
    if isinstance(state_dict, Mapping):
        if {"optimizer", "scheduler"} <= state_dict.keys():
            return state_dict["optimizer"], state_dict["scheduler"]
        if {"state", "param_groups"} <= state_dict.keys():
            return dict(state_dict), None
    given = type(state_dict).__name__
    if isinstance(state_dict, Mapping):
        given = f"the keys {sorted(map(str, state_dict))}"
    raise StateError(
        "a state must be that of a run, with the keys 'optimizer' and 'scheduler', or of an "
        f"optimizer, with 'state' and 'param_groups' (got {given})"
    )


@contextmanager
def _kept_on_error(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Give an optimizer, of any class, back what it had if a state cannot be loaded."""
    # Loading puts new objects in place of these two; so these stay what they were.
    before = {"state": optimizer.state, "param_groups": optimizer.param_groups}
    try:
        yield
    except Exception as error:
        vars(optimizer).update(before)
        if isinstance(error, StateError):
            raise
        raise StateError(
            f"the state does not fit {type(optimizer).__name__}: {type(error).__name__}: {error}"
        ) from error
