"""What a step needs that a CUDA graph records, to be done again at each replay.

A replay does what the device was told, and nothing that the host did meanwhile. So within a capture
nothing waits for the device, nothing is laid out anew, and what is uploaded comes from memory that
is written once and held for as long as the optimizer lives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.rule import Hyper, Rule
from optimplug.errors import ArgumentError

__all__ = [
    "are_on_device",
    "capture_refusal",
    "is_capturing",
    "refuse_in_capture",
]


def is_capturing() -> bool:
    """Tell whether what is done now is recorded in a CUDA graph."""
    return _is_recorded()  # by way of this module: without a GPU, tests play that it is


def _is_recorded() -> bool:
    # Where torch is made without CUDA, to ask would raise.
    begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return begun and torch.cuda.is_current_stream_capturing()


def refuse_in_capture(what: str) -> None:
    """Refuse what would have to be made within a capture.

    Raises:
        ArgumentError: a graph is being captured.
    """
    if is_capturing():
        raise ArgumentError(
            f"within a CUDA graph a step must find {what} as the step before has left it: call "
            "step() once outside of the capture, with gradients for the same parameters and the "
            "same settings, before each capture; and within one only once, where gradients are new"
        )


def capture_refusal(rule: Rule, hyper: Hyper) -> str | None:
    """Return why a rule can not be captured as kernels of ours; None where it can.

    Args:
        rule: of a group, with its storage.
        hyper: the group's settings.
    """
    if rule.only_sparse:
        return "it takes sparse gradients, whose number of rows only the host knows"
    if rule.scope == "matrix":
        return "what it does to whole matrices is done by torch's operators, one shape at a time"
    if rule.draws:
        return "rounding='stochastic' draws by the host's count: every replay would draw the same"
    if rule.counts_in_groups:
        return "its groups count or learn on the host, which a replay does not reach"
    if rule.codes and any(spec.over is not None for spec in rule.state):
        return "no kernel has moments in 8 bits beside means over rows and columns"
    try:
        _try_out(rule, hyper)
    except (RuntimeError, TypeError, ValueError) as error:
        return f"its numbers are computed on the host ({error})"
    return None


def are_on_device(hyper: Hyper) -> bool:
    """Tell whether one of several numbers under one name is a tensor on a device, as ``betas``."""
    several = (v for key, v in hyper.items() if isinstance(v, tuple | list) and key != "params")
    return any(isinstance(v, Tensor) and not v.is_cpu for value in several for v in value)


def _try_out(rule: Rule, hyper: Hyper) -> None:
    """Compute a rule's numbers from counts and rates of which nobody can ask the values.

    Who asks, or decides something by one, gets an error of torch's: RuntimeError, TypeError or
    ValueError.
    """
    unknown = torch.ones(2, dtype=torch.float64, device="meta")
    given = {key: _unknown(value) for key, value in hyper.items() if key != "params"}
    kept = {f"{prefix}{spec.name}": unknown for spec in rule.scalars for prefix in ("", "next_")}
    known = {**given, **kept, "lr": unknown}
    # What counts no steps asks whether this is the first, which the host knows.
    t = unknown if rule.counts_steps else 2.0
    rule.next_scalars(known, t)
    rule.coefficients(known, t)


def _unknown(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_unknown, value))
    if not isinstance(value, Tensor) or value.numel() != 1:
        return value
    return float(value) if value.is_cpu else torch.ones((), dtype=torch.float64, device="meta")
