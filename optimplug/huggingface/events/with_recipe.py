"""A Trainer whose optimizer and schedule are a recipe's: what is done at each event."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer

from optimplug._core.optim.gradients import global_norm
from optimplug.errors import ArgumentError, RecipeError
from optimplug.huggingface.added import by_either_name, plain_names
from optimplug.huggingface.arguments import (
    report_replaced,
    resolve_log_groups,
    resolve_recipe,
    resolve_resume,
)
from optimplug.huggingface.conflicts import (
    refuse_arguments,
    refuse_other_optimizers,
    refuse_other_schedule,
    tell_of_clipping,
    trains_its_loss,
)
from optimplug.huggingface.console import short_lines
from optimplug.huggingface.evaluations import check_evaluations, has_teller, of_main_process
from optimplug.huggingface.events.internals import TrainerEvents
from optimplug.huggingface.horizon import horizon_of
from optimplug.huggingface.internals import updates_before
from optimplug.huggingface.reports import (
    check_logs,
    go_on_reporting,
    is_report,
    keeping_unreported,
    report,
)
from optimplug.huggingface.resume import Checkpoint, load_but_for_schedule, resume
from optimplug.huggingface.whole import check_whole
from optimplug.recipe import Horizon, Plan, Recipe, RecipeScheduler, Run
from optimplug.recipe.checkpoint.policy import Policy, Resume
from optimplug.recipe.logged import LoggedGroups, group_values
from optimplug.recipe.parameters.frozen import require_gradients
from optimplug.recipe.parameters.wrappers import without_wrappers
from optimplug.recipe.text.reader import Source

__all__ = ["WithRecipe"]


class WithRecipe(TrainerEvents):
    """Runs a recipe in the Trainer that it stands before in the bases."""

    run: Run | None = None
    """The recipe at work; None before the first ``train``, which makes the optimizer.

    A later ``train`` goes on with the same optimizer, and lays the schedule anew. Another model
    (``model_init``), or a recipe with another optimizer or other groups, makes another run, and
    closes this one. ``run.close()`` undoes what the run has put on the model and the optimizer; a
    ``train`` after that begins a new one.
    """

    def __init__(
        self,
        *args: Any,
        recipe: Source | Recipe | None = None,
        resume: Policy | None = None,
        rewarm: int | str | None = None,
        log_groups: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self._given = None if recipe is None else Recipe.load(recipe)
        self._resume = Resume.read(resume, rewarm)
        self._steps_per_epoch: int | None = None
        self._log_groups = LoggedGroups(log_groups)
        self._used_rates: dict[str, float] = {}
        self._trainable: dict[str, str] = {}  # by the Trainer's own name for each, ours
        super().__init__(*args, **kwargs)
        refuse_other_optimizers(cast(Trainer, self))
        refuse_arguments(self.args)
        self.recipe = resolve_recipe(self._given, self.args)
        resolve_log_groups(self._log_groups, self.args)  # refuses two that differ
        self._resolved_from = copy.deepcopy(getattr(self.args, "recipe", None))
        self._reported = report_replaced(self.args, self.recipe)

    def planned(self, horizon: Horizon) -> None:
        """Keep what ``create_scheduler`` is not told: it is given the updates of the run alone."""
        self._steps_per_epoch = horizon.steps_per_epoch

    def plan(self) -> Plan:
        """Return what the recipe will do here: to the model, and to what a loss has of its own.

        Raises:
            RecipeError: the rules do not fit the model, or the phases the run.
        """
        horizon = horizon_of(cast(Trainer, self))
        model = cast(nn.Module, self.model)
        return by_either_name(model, self._loss(), lambda m: self.recipe.plan(m, horizon))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the recipe's optimizer, a new one where the recipe says other things by now."""
        if self.run is not None:
            self._resolve_again()
        if self.optimizer is None or (self.run is not None and self._is_over(self.run)):
            self._start_run(cast(nn.Module, self.model if model is None else model))
        self._own_run()  # an optimizer that was put in its place is refused before it trains
        for callback in self.callback_handler.callbacks:
            if getattr(callback, "finds_rates", False):  # it needs the losses
                callback.trainer = self
        return cast(torch.optim.Optimizer, self.optimizer)

    def _is_over(self, run: Run) -> bool:
        """Tell whether a run is closed, or its optimizer is not what the recipe says by now."""
        ours, theirs = (
            r.spec.model_copy(update={"schedule": [], "resume": "exact"})
            for r in (self.recipe, run.recipe)
        )
        return run.closed or ours != theirs

    def _start_run(self, model: nn.Module) -> None:
        if self.run is not None:
            self.run.close(interrupted=True)  # its end, if it had one, has been told of
        self._resolve_again()
        plain = plain_names(model, self._loss())
        trained = require_gradients(plain)
        names = {p: name for name, p in without_wrappers(plain).named_parameters() if p in trained}
        run = by_either_name(model, self._loss(), partial(Run, self.recipe))
        try:
            resolve_log_groups(self._log_groups, self.args).check([run.optimizer])
        except ArgumentError:
            run.close()
            raise
        self.run = run
        own = without_wrappers(self.run.model).named_parameters()
        self._trainable = {names[p]: name for name, p in own if p in names}
        self.optimizer = self.run.optimizer
        if self.is_world_process_zero():
            tell_of_clipping(self.args, self.recipe)

    def _loss(self) -> object:
        """Return what the Trainer trains beside its model, if it does."""
        return getattr(self, "loss", None) if trains_its_loss(type(self)) else None

    def _resolve_again(self) -> None:
        """Heed arguments that have changed since; what has been said need not be said again."""
        refuse_arguments(self.args)
        of_arguments = getattr(self.args, "recipe", None)
        if of_arguments != self._resolved_from:
            self.recipe = resolve_recipe(self._given, self.args)
            self._resolved_from = copy.deepcopy(of_arguments)
        self._reported = report_replaced(self.args, self.recipe, told=self._reported)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the recipe's schedule, laid over the updates of the run."""
        if self.lr_scheduler is None:
            horizon = Horizon(num_training_steps, self._steps_per_epoch)
            stepped = self.optimizer if optimizer is None else optimizer
            run = self._own_run()
            run.recipe = self.recipe  # the user may have given another one between two trainings
            scheduler = run.schedule_over(horizon, stepped)
            if scheduler.counts_validations:
                check_evaluations(self.args, partial(RecipeError.at, "schedule"))
            if monitors := scheduler.training_monitors:
                error = partial(RecipeError.at, "schedule")
                check_logs(self.args, num_training_steps, monitors, error)
            self.lr_scheduler = scheduler
            self.renew_schedule()
        return cast(torch.optim.lr_scheduler.LRScheduler, self.lr_scheduler)

    def _own_run(self) -> Run:
        """Return the run.

        Raises:
            RecipeError: there is none, as the optimizer was made in another way, or not at all.
        """
        if self.run is None and self.optimizer is None:
            raise RecipeError.at(
                "recipe",
                "the trainer has no optimizer yet; call create_optimizer() before "
                "create_scheduler(), or leave both to train()",
            )
        if self.run is None:
            raise RecipeError.at(
                "recipe",
                "the trainer has another optimizer than the recipe's; leave create_optimizer and "
                "trainer.optimizer to RecipeTrainer, or use a Trainer with optimizers=build(...)",
            )
        return self.run

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train as the Trainer does, from a checkpoint that was written whole.

        Raises:
            StateError: it was not.
        """
        check_whole(resume_from_checkpoint, self.args.output_dir)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # The Trainer sets the mode of an optimizer itself where it trains and evaluates. Going through
    # the run, `run.training` is true as well; and saving, it leaves to us.

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on a batch as the Trainer does, with the weights that are trained with."""
        run = self._own_run()
        if run.closed:
            raise ArgumentError(
                "trainer.run was closed during train(): nothing clips, freezes or is told of "
                "evaluations any more; call trainer.run.close() after train()"
            )
        refuse_other_schedule(cast(Trainer, self), self.recipe)
        go_on_reporting(cast(Trainer, self), run)
        run.train()
        return super().training_step(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does, the weights that are validated."""
        if self.run is not None:
            self.run.eval()
        return super().evaluation_loop(*args, **kwargs)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save as the Trainer does; of a schedule-free optimizer, the weights that are validated.

        The optimizer's state, which is saved after the model, is of the same mode then, so that
        both fit together. The next training step goes back to the other.
        """
        if self.run is not None:
            self.run.eval()
        super().save_model(*args, **kwargs)

    def trained(self) -> None:
        """Leave the weights that are validated; those of the best checkpoint are such as well."""
        self._own_run().eval()
        if isinstance(self.lr_scheduler, RecipeScheduler):
            self.lr_scheduler.tell_if_never_told()

    def saving(self, save: Callable[[], None]) -> None:
        """Let the checkpoint hold what goes into the next report of the training's loss."""
        with keeping_unreported(cast(Trainer, self)):
            save()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does; beside the rate of the first group, those of all.

        The reporters have each group that ``log_groups`` names; the console has no longer line.
        """
        if "learning_rate" not in logs:
            super().log(logs, start_time)
            return
        logged = resolve_log_groups(self._log_groups, self.args)
        monitored = _monitored(cast(Trainer, self), logged)
        with short_lines(cast(Trainer, self)):
            super().log({**logs, **self._used_rates, **monitored}, start_time)
        if is_report(logs):
            report(cast(Trainer, self), self._own_run())

    def gradients_ready(self, model: nn.Module) -> torch.Tensor:
        """Measure the norm and change nothing: the optimizer clips, where the recipe says so."""
        trained = dict.fromkeys([*model.parameters(), *self._own_run().model.parameters()])
        return global_norm([p.grad for p in trained if p.grad is not None])

    def update_done(self) -> bool:
        """Note the rates that the update used."""
        logged = resolve_log_groups(self._log_groups, self.args)
        # The Trainer itself logs the rate of the first group, and so of a single one.
        several = len(self.optimizer.param_groups) > 1
        self._used_rates = group_values(self.optimizer, logged=logged) if several else {}
        return self._own_run().updates.take() > 0  # it is the Trainer that steps the schedule

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Tell the schedule, unless a MetricCallback does; or the trainer has one of its own."""
        recipes = isinstance(self.lr_scheduler, RecipeScheduler)
        if recipes and not has_teller(cast(Trainer, self)):
            self._own_run().validated(of_main_process(metrics))

    def loading(self, checkpoint: Path, load: Callable[[], None]) -> None:
        """Take over what a checkpoint has of both, by parameter name."""
        if self.is_deepspeed_enabled:
            load()
            return
        plain = plain_names(cast(nn.Module, self.model), self._loss())
        decayed = set(self.get_decay_parameter_names(plain))
        own = self._trainable.items()
        order = [
            [n for plain_n, n in own if (plain_n in decayed) == decays] for decays in (True, False)
        ]
        run, trainer = self._own_run(), cast(Trainer, self)
        found = Checkpoint(
            checkpoint,
            updates_before(trainer, checkpoint),
            order,
            is_sharded=bool(self.is_fsdp_enabled or self.is_fsdp_xla_enabled),
            load=partial(load_but_for_schedule, trainer, load),
        )
        resume(found, run, resolve_resume(self._resume, self.args))
        if isinstance(self.lr_scheduler, RecipeScheduler):
            self.lr_scheduler = run.scheduler


def _monitored(trainer: Trainer, logged: LoggedGroups) -> dict[str, float]:
    """Return what an OptimizerMonitor logs: itself, it would come after the reporters."""
    found: dict[str, float] = {}
    for callback in trainer.callback_handler.callbacks:
        if getattr(callback, "logs_updates", False):
            callback.values = logged.of(callback.values)  # it adds them itself where they are not
            found |= callback.values
    return found
