"""OneCycleLR: one rise and one long fall over the whole run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch.optim import Optimizer

from optimplug._core.arguments import require_count, require_number, require_one_of, require_rates
from optimplug._core.lr_scheduler.cyclic import MomentumLR
from optimplug.errors import ArgumentError

__all__ = ["OneCycleLR", "anneal"]


def anneal(start: Sequence[float], end: Sequence[float], pct: float, how: str) -> list[float]:
    """Return what lies between each start and end, ``pct`` of the way, along a cosine or a line.

    Example:
        >>> anneal([0.0, 1.0], [1.0, 0.0], 0.25, "linear")
        [0.25, 0.75]
    """
    if how == "linear":
        return [(b - a) * pct + a for a, b in zip(start, end, strict=True)]
    left = math.cos(math.pi * pct) + 1
    return [b + (a - b) / 2.0 * left for a, b in zip(start, end, strict=True)]


def _total(total_steps: Any, epochs: Any, steps_per_epoch: Any) -> int:
    """Return the length of the cycle, from whichever arguments tell it."""
    if epochs is None or steps_per_epoch is None:
        if total_steps is None:
            raise ArgumentError("total_steps must be given, or epochs and steps_per_epoch both")
        return require_count("total_steps", total_steps, least=1)
    product = require_count("epochs", epochs, least=1)
    product *= require_count("steps_per_epoch", steps_per_epoch, least=1)
    if total_steps is not None and total_steps != product:
        wanted = f"epochs * steps_per_epoch = {product}, or left out"
        raise ArgumentError(f"total_steps must be {wanted} (got {total_steps!r})")
    return product


def _phases(total: int, share: float, three: bool) -> list[dict[str, Any]]:
    """Return what each phase goes to, and when it is there, in torch's own form."""
    up, down = (share * total - 1, "max"), (total - 1, "min")
    middle = [(2 * share * total - 2, "initial")] if three else []
    low, phases = "initial", []
    for end, to in [up, *middle, down]:
        at = {"start": low == "max", "end": to == "max"}  # where momentum is at its base
        phases.append(
            {"end_step": float(end), "start_lr": f"{low}_lr", "end_lr": f"{to}_lr"}
            | {f"{k}_momentum": f"{'base' if top else 'max'}_momentum" for k, top in at.items()}
        )
        low = to
    return phases


class OneCycleLR(MomentumLR):
    r"""Raise the rate to a maximum, then lower it to far below where it began; once.

    .. math:: \eta(t) = b + (a - b)\, \frac{1 + \cos(\pi u)}{2}, \qquad u = \frac{t - s}{e - s}

    from :math:`a` to :math:`b` while :math:`t` goes from :math:`s` to :math:`e`, with
    :math:`\eta_{max}` = ``max_lr``, :math:`N` = ``total_steps``, :math:`p` = ``pct_start``: first
    from :math:`\eta_{max}` / ``div_factor`` to :math:`\eta_{max}` at :math:`e = p N - 1`, then to
    :math:`\eta_{max}` / ``div_factor`` / ``final_div_factor`` at :math:`e = N - 1`. With
    ``three_phase`` it first comes back to where it began, at :math:`e = 2 p N - 2`.
    With ``anneal_strategy`` "linear" it is a line: :math:`\eta(t) = a + (b - a)\, u`. Momentum goes
    from ``max_momentum`` to ``base_momentum`` and back.

    Args:
        optimizer: the optimizer whose groups are scheduled. Their own rates are not used.
        max_lr: the maximum, a rate for all groups or a list with one for each.
        total_steps: steps in the cycle, >= 1. One more may be taken, which goes on past the end.
        epochs: epochs in the cycle, instead of ``total_steps``, with the next.
        steps_per_epoch: steps in an epoch.
        pct_start: the part of the cycle that is spent rising, in [0, 1].
        anneal_strategy: "cos" or "linear".
        cycle_momentum: whether momentum (the first of ``betas``, or ``momentum``) is cycled.
        base_momentum: momentum at the maximum of the rate, for all groups or a list.
        max_momentum: momentum at the start and the end, likewise.
        div_factor: how many times smaller than the maximum the first rate is, > 0.
        final_div_factor: how many times smaller than the first rate the last is, > 0.
        three_phase: whether the fall is symmetric to the rise, with a third phase after it.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: a value breaks its rule, a list has not an entry for each group,
            ``total_steps`` contradicts the other two, or there is no momentum to cycle. Also at a
            step past the end.

    Example:
        >>> import torch
        >>> from optimplug.optim.lr_scheduler import OneCycleLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
        >>> scheduler = OneCycleLR(optimizer, max_lr=1.0, total_steps=8, pct_start=0.5)
        >>> for _ in range(8):
        ...     optimizer.step()
        ...     lr, momentum = scheduler.get_last_lr()[0], optimizer.param_groups[0]["momentum"]
        ...     print(round(lr, 4), round(momentum, 4))
        ...     scheduler.step()
        0.04 0.95
        0.28 0.925
        0.76 0.875
        1.0 0.85
        0.8536 0.8646
        0.5 0.9
        0.1465 0.9354
        0.0 0.95

    Source: Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large
    Learning Rates", https://arxiv.org/abs/1708.07120. The paper has three phases; two, as by
    default here and in torch, are fastai's.
    """

    _per_group = (*MomentumLR._per_group, "min_lrs")

    _length = "total_steps"

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        first = require_number("div_factor", div_factor, "a number > 0", lambda n: n > 0)
        last = require_number("final_div_factor", final_div_factor, "a number > 0", lambda n: n > 0)
        self.max_lrs = require_rates("max_lr", max_lr, optimizer)
        self.base_lrs = [most / first for most in self.max_lrs]
        self.min_lrs = [base / last for base in self.base_lrs]
        self.total_steps = _total(total_steps, epochs, steps_per_epoch)
        share = require_number("pct_start", pct_start, "between 0 and 1", lambda p: 0 <= p <= 1)
        self._schedule_phases = _phases(self.total_steps, share, three_phase)
        self._anneal_func_type = anneal_strategy
        require_one_of("anneal_strategy", anneal_strategy, ("cos", "linear"))
        self._set_up_momentum(optimizer, cycle_momentum, base_momentum, max_momentum)
        super().__init__(optimizer, last_epoch, verbose)

    def rates(self, t: int) -> list[float]:
        """Return the closed form of every group at step ``t``, in the optimizer's order."""
        bounds = {"initial_lr": self.base_lrs, "max_lr": self.max_lrs, "min_lr": self.min_lrs}
        return self._between(t, "lr", bounds)

    def momentums(self, t: int) -> list[float]:
        """Return the momentum of every group at step ``t``, in the optimizer's order."""
        bounds = {"base_momentum": self.base_momentums, "max_momentum": self.max_momentums}
        return self._between(t, "momentum", bounds)

    def _between(self, t: int, what: str, bounds: dict[str, list[float]]) -> list[float]:
        start, phases = 0.0, self._schedule_phases
        for phase in phases[:-1]:
            if t <= phase["end_step"]:
                break
            start = phase["end_step"]
        else:
            phase = phases[-1]
        length = phase["end_step"] - start
        pct = (t - start) / length if length else 1.0  # a phase without length is over
        low, high = bounds[phase[f"start_{what}"]], bounds[phase[f"end_{what}"]]
        return anneal(low, high, pct, self._anneal_func_type)

    @staticmethod
    def _annealing_cos(start: float, end: float, pct: float) -> float:
        return anneal([start], [end], pct, "cos")[0]

    @staticmethod
    def _annealing_linear(start: float, end: float, pct: float) -> float:
        return anneal([start], [end], pct, "linear")[0]

    def _completed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        state = super()._completed(state_dict)
        old = state.pop("anneal_func", None)  # torch once saved the function
        if old is not None:
            self.__dict__.setdefault("_anneal_func_type", "cos")
            state["_anneal_func_type"] = getattr(old, "__name__", "").removeprefix("_annealing_")
        return state

    def _check_next(self, metrics: Any) -> None:
        self._check_jump(self.last_epoch + 1)

    def _check_jump(self, t: int) -> None:
        if t > self.total_steps:
            raise ArgumentError(f"total_steps = {self.total_steps} must cover every step")
