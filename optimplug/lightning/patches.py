"""What a run replaces on a module, an optimizer and a trainer for the time of a fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from optimplug.lightning.package import LightningModule, Trainer
from optimplug.recipe.parameters.wrappers import without_wrappers
from optimplug.recipe.schedule.scheduled import ScheduledOptimizer

__all__ = [
    "clips_by_itself",
    "follow_added_groups",
    "is_replaced",
    "leave_clipping_to",
    "replace",
    "replaced",
    "save_in_eval_mode",
    "step_after_updates",
]

_STEP = "lr_scheduler_step"
_CLIP = "configure_gradient_clipping"


class _Replacement:
    """A function in place of a method; a copy of the object has the method again, and no run."""

    def __init__(self, method: Callable[..., Any], function: Callable[..., Any]) -> None:
        self._method = method
        self.__wrapped__ = function  # by which Lightning asks whether a method is overridden

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:  # which copy and pickle go by
        return _unchanged, (self._method,)


def _unchanged(method: Callable[..., Any]) -> Callable[..., Any]:
    return method


def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Put a function in place of a method of one object; return what puts that back."""
    before = {key: value for key, value in vars(owner).items() if key == name}
    setattr(owner, name, _Replacement(getattr(owner, name), function))

    def put_back() -> None:
        vars(owner).pop(name, None)
        vars(owner).update(before)

    return put_back


def replace(run: ScheduledOptimizer, owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Put a function in place of a method of one object, until the run is closed."""
    run.on_close(replaced(owner, name, function))


def is_replaced(owner: Any, name: str) -> bool:
    """Tell whether there is a function in place of a method of one object."""
    return isinstance(vars(owner).get(name), _Replacement)


def step_after_updates(module: LightningModule, run: ScheduledOptimizer) -> None:
    """Let Lightning ask the run to step its schedule, which it does only after an update.

    Lightning steps a scheduler also after an update that AMP skipped.
    """
    if getattr(type(module), _STEP) is not getattr(LightningModule, _STEP):
        warnings.warn(
            f"{type(module).__name__}.{_STEP} is not called for the recipe's scheduler, which "
            "is stepped once per update",
            UserWarning,
            stacklevel=4,
        )
    others = getattr(module, _STEP)

    def step(scheduler: Any, metric: Any) -> None:
        if scheduler is run.scheduler:
            run.updated()
        else:
            others(scheduler, metric)

    replace(run, module, _STEP, step)


def leave_clipping_to(module: LightningModule, run: ScheduledOptimizer) -> None:
    """Keep the trainer from clipping the gradients of a recipe's optimizer, and of no other."""
    if clips_by_itself(module):
        return
    clip_others = getattr(module, _CLIP)

    def clip(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        if optimizer is not run.optimizer:
            clip_others(optimizer, *args, **kwargs)

    replace(run, module, _CLIP, clip)


def clips_by_itself(module: LightningModule) -> bool:
    """Tell whether the module has clipping of its own."""
    return getattr(type(module), _CLIP) is not getattr(LightningModule, _CLIP)


def follow_added_groups(model: nn.Module, run: ScheduledOptimizer) -> None:
    """Take in groups without names, and let them follow the schedule from the rate they come with.

    Lightning's finetuning callbacks unfreeze a backbone by adding one. torch refuses it in an
    optimizer whose parameters are named, as a recipe's are.

    Args:
        model: whose names the recipe is written in.
        run: of the optimizer that they join.
    """
    optimizer = run.optimizer
    add = optimizer.add_param_group
    named = any("param_names" in group for group in optimizer.param_groups)

    def add_named(group: dict[str, Any]) -> None:
        names = {id(p): name for name, p in without_wrappers(model).named_parameters()}
        params = group["params"]
        found = [params] if isinstance(params, torch.Tensor) else list(params)
        if named and all(id(p) in names for p in found):
            group = {**group, "params": [(names[id(p)], p) for p in found]}
        add(group)
        run.scheduler.admit()

    replace(run, optimizer, "add_param_group", add_named)


def save_in_eval_mode(
    trainer: Trainer, run: ScheduledOptimizer, in_batch: Callable[[], bool]
) -> None:
    """Let checkpoints hold the weights that are validated, of an optimizer that has others too.

    Lightning reads the weights before it calls any hook, so the method itself is replaced.

    Args:
        trainer: saves.
        run: of the optimizer.
        in_batch: tells whether training goes on at once; else the next batch changes the mode.
    """
    if not run.has_modes:
        return
    save = trainer.save_checkpoint

    def save_evaluated(*args: Any, **kwargs: Any) -> None:
        trains_on = run.training and in_batch()
        run.eval()
        try:
            save(*args, **kwargs)
        finally:
            if trains_on:
                run.train()

    replace(run, trainer, "save_checkpoint", save_evaluated)
