"""What is known of an optimizer beside its code: what it is for, its usual rate, its paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from optimplug._core.optim.rule import Hyper

__all__ = ["Facts", "Rates", "Step", "a_rate"]


class Rates(NamedTuple):
    """Between which rates an optimizer is commonly run; beyond them, a plan warns."""

    least: float
    most: float
    why: str
    """What the rate of this optimizer is, that others are probably not meant."""


Step: TypeAlias = Callable[[Hyper, float], float | None]
"""How far an element moves in a step: by the hyperparameters, and by the root mean square of the
elements of its parameter. None: that depends on the size of the gradients."""


def a_rate(hyper: Hyper, size: float) -> float:
    """Tell that an element moves by ``lr``, whatever the size of its gradients and of the weights.

    So it is where a gradient is divided by a mean of its own size, or its sign is taken.
    """
    return float(hyper["lr"])


_ADAMWS_LARGEST = 1.5e-3
"""What AdamW is run with in fine-tuning is 1e-5 to 1e-3, with some room."""


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
    rates: Callable[[Hyper], Rates] | None = None
    """Its common rates, where they follow from its hyperparameters and not from :attr:`rate`."""
    sharded: bool = True
    """Whether its parameters may be in parts in several processes."""
    step: Step | None = None
    """How far an element moves under a steady gradient, which is the furthest that it usually does,
    its weight decay left out; None where that depends on the size of the gradients."""
    lr_only_begins: bool = False
    """Whether ``lr`` has no effect after the first step, so that a schedule of it has none."""

    def common_rates(self, hyper: Hyper) -> Rates | None:
        """Return between which rates it is commonly run; None where any may be meant.

        Args:
            hyper: its hyperparameters.

        Example:
            >>> facts = Facts("half the memory", (0.1, 0.33), "Lion", "https://arxiv.org")
            >>> facts.common_rates({}).most
            0.0005
        """
        if self.rates is not None:
            return self.rates(hyper)
        # A rate below its own only learns more slowly. AdamW's is the one that is at hand, and for
        # an optimizer that takes less it is too large.
        if self.rate is None or self.rate[1] >= 1:
            return None
        least, most = self.rate
        why = f"its usual rate is {least:g} to {most:g} times AdamW's"
        return Rates(0.0, float(f"{most * _ADAMWS_LARGEST:.1g}"), why)
