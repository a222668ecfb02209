"""Clipping for optimizers that do not clip: their step is wrapped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from optimplug import optim
from optimplug._core.internals import hooked_step, outside_graphs, unhooked_step
from optimplug._core.optim.gradients import (
    check_clipping,
    clip_coefficient,
    global_norm,
    refuse_flattened,
    scale_,
)
from optimplug.recipe.keywords import takes
from optimplug.recipe.lengths import with_lengths

__all__ = ["CLIPPING", "class_of", "clip_steps", "construct", "leave_steps"]

_ARGUMENTS = inspect.signature(optim.Optimizer).parameters
CLIPPING: Mapping[str, inspect.Parameter] = {
    name: _ARGUMENTS[name] for name in ("max_grad_norm", "skip_nonfinite")
}
"""What a recipe may say of any optimizer, by name, with the defaults."""
_OWN = ("max_grad_norm", "skip_nonfinite", "grad_norm", "skipped_steps")


def construct(
    cls: type[torch.optim.Optimizer], groups: Any, settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Construct an optimizer, which clips if the settings say so, whatever its class.

    One that has clipping of its own, by the same name, is left to it.

    Args:
        cls: its class.
        groups: its parameters, as torch's classes take them.
        settings: what a recipe says of the optimizer as a whole.

    Example:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = construct(torch.optim.SGD, [weight], {"lr": 0.1, "max_grad_norm": 1.0})
        >>> isinstance(optimizer, torch.optim.SGD), optimizer.max_grad_norm
        (True, 1.0)
    """
    settings = with_lengths(cls, settings)
    groups = [with_lengths(cls, g) if isinstance(g, dict) else g for g in groups]
    around = {name: settings[name] for name in CLIPPING if name in settings}
    around = {name: value for name, value in around.items() if not takes(cls, name)}
    optimizer = cls(groups, **{k: v for k, v in settings.items() if k not in around})
    if around:
        clip_steps(optimizer, **around)
    return optimizer


def clip_steps(
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float | None = None,
    skip_nonfinite: bool = False,
) -> None:
    """Let an optimizer of any class clip within its step, as those of optimplug.optim do.

    Just before it updates, :func:`torch.nn.utils.clip_grad_norm_` over all groups: after the
    closure, where there is one, and by the norm without the scale of a GradScaler, also where the
    optimizer unscales by itself. The gradients hold the clipped values afterwards. Of sharded ones
    the norm is that of the whole.

    The optimizer gets the attributes ``max_grad_norm``, ``skip_nonfinite``, ``grad_norm`` and
    ``skipped_steps``, and a class derived from its own, which copies and pickles keep.
    :func:`leave_steps` undoes it.

    Args:
        optimizer: of any class; one of optimplug.optim is told to do so by itself.
        max_grad_norm: what the global norm is clipped to; None for no clipping.
        skip_nonfinite: leave out a step whose norm is infinite or NaN. Where an optimizer computes
            its closure several times, the first one counts.

    Raises:
        ArgumentError: ``max_grad_norm`` is not above 0, or ``skip_nonfinite`` no bool. At a step:
            FSDP1 has flattened the parameters.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> clip_steps(optimizer, max_grad_norm=0.5)
        >>> optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["params"][0], optimizer.grad_norm
        (tensor([-0.5000], requires_grad=True), tensor(1.))
    """
    check_clipping(max_grad_norm, skip_nonfinite)
    if not isinstance(optimizer, optim.Optimizer):
        if max_grad_norm is None and not skip_nonfinite:
            return
        optimizer.__class__ = _clipping_class(class_of(optimizer))
    begun = {"grad_norm": None, "skipped_steps": 0}
    asked = {"max_grad_norm": max_grad_norm, "skip_nonfinite": skip_nonfinite}
    vars(optimizer).update(begun | asked)


def leave_steps(optimizer: torch.optim.Optimizer) -> None:
    """Undo :func:`clip_steps`; nothing may be there."""
    plain = class_of(optimizer)
    if type(optimizer) is not plain:
        optimizer.__class__ = plain
        for name in _OWN:
            vars(optimizer).pop(name, None)


def class_of(optimizer: torch.optim.Optimizer) -> type[torch.optim.Optimizer]:
    """Return the class of an optimizer, as it is without :func:`clip_steps`."""
    cls: type[torch.optim.Optimizer] = vars(type(optimizer)).get("unclipped", type(optimizer))
    return cls


_made: dict[type[torch.optim.Optimizer], type[torch.optim.Optimizer]] = {}


def _clipping_class(plain: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return a class like the plain one that clips; for each there is one."""
    if plain not in _made:
        _made[plain] = _derived(plain)
    return _made[plain]


def _derived(plain: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    # Hooks are for the whole step, so that one that is left out is a step for them as well.
    @hooked_step
    def step(self: Any, closure: Callable[[], Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        step_alone = unhooked_step(plain)
        if type(self) is plain:  # a method that was kept from before it was undone
            closing = () if closure is None else (closure,)
            return step_alone(self, *closing, *args, **kwargs)
        if closure is None:
            return step_alone(self, *args, **kwargs) if _clip(self) else None
        try:
            return step_alone(self, _clipping(self, closure), *args, **kwargs)
        except _SkippedError as skipped:
            return skipped.loss

    def reduced(self: Any, protocol: Any) -> Any:  # which copy and pickle go by
        if class_of(self) is not plain:  # a class that somebody has derived from this one
            return plain.__reduce_ex__(self, protocol)
        how: Any = plain.__reduce_ex__(self, protocol)
        make, arguments, *state = how
        known = tuple(plain if value is type(self) else value for value in arguments)
        kept = {name: getattr(self, name) for name in _OWN if name != "grad_norm"}
        return (_made_again, (make, known, kept), *state)

    # Not the name of the plain one: who looks for a class by its name would find two.
    name = f"Clipped{plain.__name__}"
    body = {
        "__doc__": plain.__doc__,
        "__module__": __name__,
        "__qualname__": f"_made.{name}",  # private, so no command line lists it
        "__reduce_ex__": reduced,
        "step": step,
        "unclipped": plain,
    }
    return type(name, (plain,), body)


def _made_again(
    make: Callable[..., Any], arguments: tuple[Any, ...], kept: Mapping[str, Any]
) -> Any:
    optimizer = make(*arguments)
    optimizer.__class__ = _clipping_class(class_of(optimizer))
    vars(optimizer).update(kept, grad_norm=None)
    return optimizer


class _SkippedError(BaseException):
    """Leaves a step in which a closure's gradients are not finite, past whoever catches errors."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss


def _clipping(optimizer: Any, closure: Callable[[], Any]) -> Callable[[], Any]:
    """Return a closure after which the gradients are clipped."""
    updates = False

    def clipped() -> Any:
        nonlocal updates
        loss = closure()
        # Once an optimizer that asks several times has moved, leaving would lose where it was.
        if not _clip(optimizer, may_skip=not updates):
            raise _SkippedError(loss)
        updates = True
        return loss

    return clipped


@outside_graphs  # in one, what is set on an optimizer is lost
@torch.no_grad()
def _clip(optimizer: Any, may_skip: bool = True) -> bool:
    """Clip, and return whether there is to be an update."""
    params = (p for group in optimizer.param_groups for p in group["params"])
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return True
    refuse_flattened(optimizer.param_groups)
    optimizer.grad_norm = norm = _unscaled(global_norm(grads), optimizer)
    if may_skip and optimizer.skip_nonfinite and not bool(torch.isfinite(norm)):
        optimizer.skipped_steps += 1
        return False
    if optimizer.max_grad_norm is not None:
        scale_(grads, clip_coefficient(norm, optimizer.max_grad_norm))
    return True


def _unscaled(norm: Tensor, optimizer: Any) -> Tensor:
    # GradScaler lends this for the time of a step, to those that unscale by themselves.
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    return norm if scale is None else norm / scale.to(norm.device)
