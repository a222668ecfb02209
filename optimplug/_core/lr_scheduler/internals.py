"""Every private part of torch's schedulers and of accelerate's that ours use, each with the reason.

Nothing here is promised by anybody: ``tests/test_internals.py`` tries each one, and names the
release that took it away.
"""

from __future__ import annotations

import functools
import sys
import types
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import EPOCH_DEPRECATION_WARNING, _warn_get_lr_called_within_step
from torch.optim.lr_scheduler import LRScheduler as _TorchScheduler

__all__ = [
    "NotedSteps",
    "calls_by_accelerate",
    "children_of",
    "first_step",
    "frames_inside",
    "note_steps",
    "noted_steps",
    "torchs_warning",
    "versions_of",
]


class NotedSteps:
    """What notes that an optimizer has been stepped, under the name where torch looks for it.

    torch's own schedulers wrap ``step`` for this; two kinds of schedulers on one optimizer must
    agree, so the names are torch's. A wrapper that is an optimizer by type alone runs no hooks: of
    such a one ``step`` is wrapped as well.

    Attributes:
        then: called after each step until it returns True, if it is given.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.then: Callable[[], bool] | None = None
        self._optimizer = weakref.ref(optimizer)
        self._versions = versions_of(optimizer)
        # Where torch's own has come first, it may have noted a step.
        if "_opt_called" not in vars(optimizer):
            optimizer._opt_called = False  # type: ignore[attr-defined]
        if hasattr(type(optimizer).step, "hooked") and hasattr(
            optimizer, "_optimizer_step_post_hooks"
        ):
            self._hook: Any = optimizer.register_step_post_hook(self._note)
        else:
            self._hook = _WrappedStep(optimizer, self._note)
        self._step = vars(optimizer).get("step")

    def _note(self, *ignored: object) -> None:
        optimizer = self._optimizer()
        if optimizer is not None:
            optimizer._opt_called = True  # type: ignore[attr-defined]
        # A number that grows would compile a compiled step again and again.
        if self.then is not None and not torch.compiler.is_compiling() and self.then():
            self.then = None

    @property
    def replaced(self) -> bool:
        """Whether somebody has put another ``step`` on the optimizer, as torch judges it."""
        optimizer = self._optimizer()
        step = vars(optimizer).get("step", self._step)
        own = getattr(step, "__func__", None) is getattr(type(optimizer), "step", None)
        return step is not self._step and not own and not hasattr(step, "_wrapped_by_lr_sched")

    @property
    def happened(self) -> bool:
        """Whether the optimizer was stepped, or somebody else has changed its parameters for it.

        The two halves of a step of SAM are never called ``step``.
        """
        optimizer = self._optimizer()
        if optimizer is None or getattr(optimizer, "_opt_called", True):
            return True
        return versions_of(optimizer) != self._versions

    def forget(self) -> None:
        """Leave the optimizer as it was before."""
        self._hook.remove()
        for name in ("_opt_called", "_noted_steps"):
            vars(self._optimizer()).pop(name, None)


class _WrappedStep:
    """A ``step`` with something that is called before it; see :class:`NotedSteps`."""

    def __init__(self, optimizer: torch.optim.Optimizer, before: Callable[[], None]) -> None:
        step = optimizer.step
        # By a bound method of its own the optimizer would hold itself.
        bound = weakref.WeakMethod(step) if hasattr(step, "__func__") else lambda: step

        @functools.wraps(getattr(step, "__func__", step))
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            before()
            return cast(Any, bound())(*args, **kwargs)

        wrapper._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
        self._wrapper, self._optimizer = weakref.ref(wrapper), weakref.ref(optimizer)
        self._held = vars(optimizer).get("step")
        optimizer.step = wrapper  # type: ignore[method-assign]

    def remove(self) -> None:
        held = vars(self._optimizer())
        if held.get("step") is self._wrapper():
            del held["step"]
            held |= {} if self._held is None else {"step": self._held}


def note_steps(optimizer: torch.optim.Optimizer) -> NotedSteps:
    """Let an optimizer note that it has been stepped; however many ask, it does so once."""
    noted = noted_steps(optimizer)
    if noted is None:
        noted = optimizer._noted_steps = NotedSteps(optimizer)  # type: ignore[attr-defined]
    return noted


def noted_steps(optimizer: torch.optim.Optimizer) -> NotedSteps | None:
    """Return what :func:`note_steps` has put on an optimizer."""
    return vars(optimizer).get("_noted_steps")


def versions_of(optimizer: torch.optim.Optimizer) -> int:
    """Return a number that changes with any change in place of the optimizer's parameters."""
    params = (p for group in optimizer.param_groups for p in group["params"])
    return sum(p._version for p in params if not p.is_inference())


@functools.cache
def torchs_warning(of: str) -> str:
    """Return what torch's schedulers warn of, in torch's own words.

    It has a name for one of its texts only; the others are heard from it.

    Args:
        of: "epoch", "replaced" (another ``step`` of the optimizer), "order" (the scheduler is
            stepped first) or "get_lr" (asked for outside of a step).
    """
    if of == "epoch":
        return EPOCH_DEPRECATION_WARNING
    step = types.SimpleNamespace() if of == "replaced" else _marked
    optimizer = types.SimpleNamespace(step=step, param_groups=[])
    stand_in: Any = types.SimpleNamespace(
        _step_count=1, last_epoch=0, optimizer=optimizer, _get_lr_called_within_step=False
    )
    stand_in.get_lr = stand_in._update_lr = lambda *ignored: []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if of == "get_lr":
            _warn_get_lr_called_within_step(stand_in)
        else:
            _TorchScheduler.step(stand_in)
    return str(caught[0].message)


def _marked() -> None: ...


_marked._wrapped_by_lr_sched = True  # type: ignore[attr-defined]


def frames_inside() -> int:
    """Return how many frames further out than here somebody calls this package, or torch.

    Counted from the caller of this: what a warning takes as ``stacklevel``.
    """
    inside = str(Path(torch.__file__).parent), str(Path(__file__).parents[2])
    frame, frames = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, frames = frame.f_back, frames + 1
    return frames


def calls_by_accelerate(scheduler: object, frames: int = 4) -> int:
    """Return how often accelerate's wrapper calls ``step`` of its scheduler for one update.

    It says so nowhere: it is the caller, at most so many frames further out, that tells. 1 where
    somebody else calls.
    """
    module = sys.modules.get("accelerate.scheduler")
    frame = sys._getframe(1) if module is not None else None
    for _ in range(frames):
        frame = frame and frame.f_back
        if frame and frame.f_code is module.AcceleratedScheduler.step.__code__:  # type: ignore[union-attr]
            wrapper = frame.f_locals["self"]
            alike = wrapper.split_batches or not wrapper.step_with_optimizer
            if wrapper.scheduler is not scheduler or alike:
                return 1
            return int(module.AcceleratorState().num_processes)  # type: ignore[union-attr]
    return 1


def children_of(scheduler: _TorchScheduler) -> list[Any]:
    """Return the schedulers that one of torch's is made of; most are made of none."""
    return list(getattr(scheduler, "_schedulers", ()))


def first_step(scheduler: _TorchScheduler) -> None:
    """Let a scheduler of torch's take its first step again, as its own SequentialLR does."""
    scheduler.last_epoch = -1
    scheduler._initial_step()
