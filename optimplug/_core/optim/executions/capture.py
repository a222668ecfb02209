"""What a step needs that a CUDA graph records, to be done again at each replay.

A replay does what the device was told, and nothing that the host did meanwhile. So within a capture
nothing waits for the device, nothing is laid out anew, and what is uploaded comes from memory that
is written once and held for as long as the optimizer lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.rule import Hyper, Rule
from optimplug.errors import ArgumentError

__all__ = [
    "capture_refusal",
    "is_capturing",
    "refuse_in_capture",
    "settings_on_device",
    "settings_read",
]


def is_capturing() -> bool:
    """Tell whether what is done now is recorded in a CUDA graph."""
    return _is_recorded()


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
            "same settings, before each capture"
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
    try:
        settings_read(rule, hyper)
    except (RuntimeError, TypeError) as error:
        return f"its numbers are computed on the host ({error})"
    return None


def settings_on_device(hyper: Hyper) -> str | None:
    """Return why settings can not be read on a device; None where they are not."""
    there = [k for k, v in hyper.items() if isinstance(v, Tensor) and not v.is_cpu and k != "lr"]
    if not there:
        return None
    return f"{there[0]} is a tensor on {hyper[there[0]].device}, and the host decides by its value"


def settings_read(rule: Rule, hyper: Hyper) -> tuple[str, ...]:
    """Return which settings the numbers of a rule are computed from.

    They are computed from counts and settings of which nobody can ask the values.

    Raises:
        RuntimeError: it asks for one, or decides something by it.
        TypeError: likewise.
    """
    unknown = torch.ones(2, dtype=torch.float64, device="meta")
    given = {key: _unknown(value) for key, value in hyper.items() if key != "params"}
    known = _Recording({**given, "lr": unknown})
    kept = {f"{prefix}{spec.name}": unknown for spec in rule.scalars for prefix in ("", "next_")}
    known.settings.update(kept)
    # What counts no steps asks whether this is the first, which the host knows.
    t = unknown if rule.counts_steps else 2.0
    rule.next_scalars(known, t)
    rule.coefficients(known, t)
    return tuple(name for name in known.read if name not in kept)


def _unknown(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_unknown, value))
    if not isinstance(value, Tensor):
        return value
    return float(value) if value.is_cpu else torch.ones((), dtype=torch.float64, device="meta")


class _Recording(Mapping[str, Any]):
    """Settings that remember which of them somebody has read."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.read: dict[str, None] = {}

    def __getitem__(self, name: str) -> Any:
        self.read[name] = None
        return self.settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)
