"""The two commonest kinds of schedule: a factor on the rate, and a rate that is simply set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optimplug._core.lr_scheduler.base import LRScheduler

__all__ = ["AbsoluteLR", "FactorLR", "scaled"]


def scaled(base_lrs: Sequence[float], factor: float, minimum: float = 0.0) -> list[float]:
    """Return every rate with its height above the minimum scaled by a factor.

    Example:
        >>> scaled([1.0, 3.0], 0.5), scaled([1.0, 3.0], 0.5, minimum=1.0)
        ([0.5, 1.5], [1.0, 2.0])
    """
    if not minimum:
        return [base * factor for base in base_lrs]
    return [minimum + (base - minimum) * factor for base in base_lrs]


class FactorLR(LRScheduler):
    r"""A schedule that scales each group's own rate, from a minimum up, by a factor of time.

    .. math:: \eta(t) = \eta_{min} + (\eta_0 - \eta_{min})\, f(t)

    with :math:`\eta_0` the group's own rate, :math:`f` = :meth:`factor_at` and :math:`\eta_{min}` =
    ``eta_min``, which is 0 but for a subclass that sets it. The factor is computed once for all
    groups.
    """

    # The rates that were asked for last, beside all that they were computed from.
    __slots__ = ("_latest",)
    _latest: tuple[list[float], float, float, list[float]]

    def factor_at(self, t: int) -> float:
        """Return the factor at step ``t``, from 0."""
        raise NotImplementedError

    def _get_closed_form_lr(self) -> list[float]:
        """Return the rate of every group at ``last_epoch``: torch's name, for its subclasses."""
        return self.rates(self.last_epoch)

    def closed_form(self, base_lr: float, t: int) -> float:
        """Return the rate at step ``t`` (from 0) of a group whose own rate is ``base_lr``."""
        return scaled([base_lr], self.factor_at(t), self.eta_min)[0]

    def rates(self, t: int) -> list[float]:
        """Return the closed form of every group at step ``t``, in the optimizer's order."""
        factor = self.factor_at(t)
        # Each step asks for the rates of the one before as well.
        latest: Any = getattr(self, "_latest", None)
        if latest and latest[:3] == (self.base_lrs, factor, self.eta_min):
            kept: list[float] = latest[3]
            return kept
        rates = scaled(self.base_lrs, factor, self.eta_min)
        self._latest = (list(self.base_lrs), factor, self.eta_min, rates)
        return rates

    def chained(self, held: list[float], before: list[float], after: list[float]) -> list[float]:
        """Return what becomes of the rates; one whose own is the minimum follows the factor."""
        rates, least, t = super().chained(held, before, after), self.eta_min, self.last_epoch
        was = self.factor_at(t - 1) if t > 0 else 1.0
        if was and least in self.base_lrs:
            change = self.factor_at(t) / was
            for i, (base, lr) in enumerate(zip(self.base_lrs, held, strict=True)):
                rates[i] = least + (lr - least) * change if base == least else rates[i]
        return rates


class AbsoluteLR(LRScheduler):
    """A schedule that sets the rate to its closed form, whoever has changed it before."""

    _catches_up = True

    def _follow(self, held: list[Any]) -> list[float]:
        return self.rates(self.last_epoch)

    def _catch_up(self, known: int) -> None:
        # What a new group holds is overwritten, with all that others would have made of it.
        self.optimizer._overwritten = len(self._groups)  # type: ignore[attr-defined]
