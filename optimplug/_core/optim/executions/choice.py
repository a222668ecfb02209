"""Which execution takes a batch. It is decided here, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.capture import (
    are_on_device,
    capture_refusal,
    refuse_in_capture,
)
from optimplug._core.optim.executions.compiled import Compiled
from optimplug._core.optim.executions.compiled_whole import CompiledWhole
from optimplug._core.optim.executions.execution import Execution, Ready
from optimplug._core.optim.executions.foreach import Foreach
from optimplug._core.optim.executions.fused import FUSED_DEVICES, Fused, ReadyFused
from optimplug._core.optim.executions.loop import Differentiable, Loop
from optimplug._core.optim.executions.triton.execution import ReadyTriton, Triton
from optimplug._core.optim.executions.triton.norm import DeviceNorm, norm_on_device
from optimplug._core.optim.executions.triton.there import DEVICES, triton_serves
from optimplug._core.optim.executions.triton.whole.execution import TritonWhole
from optimplug._core.optim.rule import Hyper, Rule
from optimplug._core.optim.step.counters import CountOn
from optimplug.errors import ArgumentError

__all__ = [
    "CHOICES",
    "DeviceNorm",
    "check_capturable",
    "check_choices",
    "chosen",
    "devices_asked_for",
    "devices_that_count",
    "is_compiled",
    "may_be_recorded",
    "norm_on_device",
    "prepare",
    "waits_for_nothing",
]

Choices = Mapping[str, Any]
"""An optimizer's defaults, among them what the user has chosen of :data:`CHOICES`."""

CHOICES = ("foreach", "fused", "capturable", "differentiable")
"""The arguments by which a user chooses: for all groups together, and for this process alone."""


_COMPILED = (Compiled(), CompiledWhole())
_TRITON = (Triton(), TritonWhole())
_CAPTURABLE = (Triton(capturable=True), TritonWhole(capturable=True))


def is_compiled(rule: Rule) -> bool:
    """Tell whether a rule is compiled, where a machine has what that needs."""
    return any(way.compiles(rule) for way in _COMPILED)


def prepare(batch: Batch, choices: Choices, skips: bool = False) -> Ready | None:
    """Make a batch ready in the first way that takes it; all that can fail fails here.

    Args:
        batch: what is to be updated.
        choices: the optimizer's.
        skips: whether a step is left out by the norm of its gradients.

    Returns:
        None where the parameters have no longer one form, and are to be put together anew.
    """
    looked, capturable = False, bool(choices.get("capturable"))
    for execution in _in_order(*chosen(choices), capturable, skips and capturable):
        if capturable and isinstance(execution, Fused) and not _fused_captures(batch):
            continue
        if capturable and not isinstance(execution, Fused | Triton):
            refuse_in_capture("gradients laid out like their parameters, and settings that fit,")
        # What reads memory past torch looks at it again by itself wherever it has moved.
        if not (looked or isinstance(execution, Triton | Compiled)):
            if not batch.has_its_form:
                return None
            looked = True
        ready = execution.prepare(batch)
        if ready is not None:
            return ready
    raise AssertionError("the loop takes every batch")


def chosen(choices: Choices) -> tuple[bool | None, bool | None, bool | None]:
    """Return what says which executions are tried: ``foreach``, ``fused``, ``differentiable``."""
    return choices.get("foreach"), choices.get("fused"), choices.get("differentiable")


def waits_for_nothing(ready: Sequence[Ready]) -> bool:
    """Tell whether all of these leave it to the device to skip a step."""
    return bool(ready) and all(isinstance(each, ReadyTriton) for each in ready)


def may_be_recorded(ready: Ready) -> bool:
    """Tell whether a CUDA graph may record this way, with what is skipped told by the device."""
    return isinstance(ready, ReadyFused) or (isinstance(ready, ReadyTriton) and ready.is_capturable)


def _fused_captures(batch: Batch) -> bool:
    """Tell whether a graph may record torch's operator, which takes such numbers from the host."""
    return batch.rule.fused_captures and not any(map(are_on_device, batch.hypers))


def devices_that_count(choices: Choices) -> CountOn:
    """Return which devices count: where torch's operators do a whole rule, which read the count.

    What a kernel of ours needs of the count is computed on the host, unless a graph may record it.
    """
    if choices.get("capturable"):
        return CountOn(tuple(DEVICES), every_rule=True)
    if not _may_fuse(*chosen(choices)):
        return CountOn()
    # Where CUDA has not begun yet, nothing stands there; to ask about it would make it begin.
    begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    counted_here = begun and triton_serves(torch.device("cuda"))
    return CountOn(("cpu",) if counted_here else FUSED_DEVICES)


def _may_fuse(foreach: bool | None, fused: bool | None, differentiable: bool | None) -> bool:
    return foreach is None and not differentiable if fused is None else fused


@lru_cache
def _in_order(
    foreach: bool | None,
    fused: bool | None,
    differentiable: bool | None,
    capturable: bool,
    skips: bool,
) -> tuple[Execution, ...]:
    """Return the executions to try, the fastest that the user allows first."""
    if differentiable:
        return (Differentiable(),)
    one_pass: tuple[Execution, ...] = ()
    if capturable:
        # A captured step reads rates and counts on the device, as torch's operators do; but these
        # leave it to the host what a step that is left out has counted.
        one_pass = (*(() if skips else (Fused(),)), *_CAPTURABLE)
    elif _may_fuse(foreach, fused, differentiable):
        one_pass = (*_TRITON, *_COMPILED, Fused())
    return (*one_pass, Loop()) if foreach is False else (*one_pass, Foreach(), Loop())


def devices_asked_for(choices: Choices) -> tuple[str, tuple[str, ...]] | None:
    """Return the choice that binds parameters to some devices, and these; None if there is none."""
    if choices.get("capturable"):
        return "capturable", tuple(DEVICES)
    return ("fused", FUSED_DEVICES) if choices.get("fused") else None


def check_capturable(rule: Rule, hyper: Hyper, skips: bool, device: torch.device | None) -> None:
    """Refuse ``capturable=True`` where a CUDA graph could not record a step.

    Args:
        rule: of a group, with its storage, for some of its parameters.
        hyper: the group's settings.
        skips: whether a step is left out by the norm of its gradients.
        device: that of these parameters; None where there are none yet.

    Raises:
        ArgumentError: neither an operator of torch's nor a kernel of ours could do all of it.
    """
    if rule.fused_captures and not skips and not are_on_device(hyper):
        return
    why = capture_refusal(rule, hyper)
    if why is None and device is not None and not triton_serves(device):
        why = "the device has no Triton, which its kernels are made with"
    if why is not None:
        raise ArgumentError(
            "capturable=True needs a step that the device does by itself, and this one is not: "
            f"{why}; leave it out"
        )


def check_choices(choices: Choices) -> None:
    """Refuse choices that contradict each other, as torch does.

    Raises:
        ArgumentError: they do, or one is none of True, False and None.
        RuntimeError: where torch raises that.
    """
    fuse, many = choices.get("fused"), choices.get("foreach")
    for key in CHOICES:
        if not isinstance(choices.get(key), bool | None):
            raise ArgumentError(f"{key} must be True, False or None (got {choices[key]!r})")
    if fuse and choices.get("differentiable"):
        raise RuntimeError("`fused` does not support `differentiable`")
    if fuse and many:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if many and choices.get("differentiable"):
        raise ArgumentError("foreach=True does not support differentiable=True; leave it out")
    if choices.get("capturable") and (fuse is False or many is not None):
        raise ArgumentError(
            "capturable=True chooses the execution itself; leave foreach and fused out"
        )
    if choices.get("capturable") and choices.get("differentiable"):
        raise ArgumentError("capturable=True does not support differentiable=True")
