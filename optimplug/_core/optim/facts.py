"""What is known of an optimizer beside its code: what it is for, its usual rate, its paper."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["Facts"]


class Facts(NamedTuple):
    """What a user must know of an optimizer before choosing it.

    What follows from its rule (state, executions, sharding) stands nowhere: it is derived, by
    :func:`optimplug._core.optim.profile.profile_of`.
    """

    purpose: str
    """What it is for, in a line."""
    rate: tuple[float, float] | None
    """Its usual rate in multiples of AdamW's, from the least to the most; None where its ``lr`` is
    not comparable."""
    paper: str
    """The title of what it was described in."""
    link: str
    """Where that is found."""
    rate_means: str = ""
    """What ``lr`` is, where that is no rate like AdamW's."""
    not_for: str = ""
    """What it is not made for."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Arguments with which it keeps more state than by default; empty where there are none."""
