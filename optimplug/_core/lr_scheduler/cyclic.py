"""CyclicLR, and how momentum is cycled against the rate."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

from torch.optim import Optimizer

from optimplug._core.arguments import owner_of, require_number, require_one_of, require_rates
from optimplug._core.lr_scheduler.factor import AbsoluteLR
from optimplug._core.lr_scheduler.groups import has_momentum, set_momentum
from optimplug.errors import ArgumentError

__all__ = ["CyclicLR", "MomentumLR", "triangle"]


class MomentumLR(AbsoluteLR):
    """What CyclicLR and OneCycleLR share: rates of their own, and momentum that cycles with them.

    Momentum is ``momentum``, or the first of ``betas``. A group's own is kept beside it as
    ``initial_momentum``.
    """

    cycle_momentum: bool
    base_momentums: list[float]
    max_momentums: list[float]

    _own_bases = False
    _per_group: tuple[str, ...] = ("max_lrs", "base_momentums", "max_momentums")

    def momentums(self, t: int) -> list[float]:
        """Return the momentum of every group at step ``t``, in the optimizer's order."""
        raise NotImplementedError

    def _set_up_momentum(self, optimizer: Optimizer, cycled: bool, low: Any, high: Any) -> None:
        self.cycle_momentum = bool(cycled)
        if cycled and not any(map(has_momentum, owner_of(optimizer).param_groups)):
            raise ArgumentError("cycle_momentum must be False where there is no momentum or betas")
        self.base_momentums = require_rates("base_momentum", low, optimizer) if cycled else []
        self.max_momentums = require_rates("max_momentum", high, optimizer) if cycled else []

    def _initial_step(self) -> None:
        bounds = zip(self._groups, self.base_momentums, self.max_momentums, strict=False)
        for group, low, high in bounds:  # for whoever reads them there, as in torch
            if has_momentum(group):
                group |= {"base_momentum": low, "max_momentum": high}
        super()._initial_step()

    def _write(self, rates: list[float], held: list[Any]) -> None:
        super()._write(rates, held)
        self._cycle()

    def _cycle(self) -> None:
        momentums = self.momentums(self.last_epoch) if self.cycle_momentum else []
        for group, momentum in zip(self._groups, momentums, strict=False):
            if has_momentum(group):
                set_momentum(group, momentum)

    def _restore(self, state_dict: dict[str, Any]) -> None:
        super()._restore(state_dict)
        if not state_dict["_last_momentum"]:  # torch's
            self._cycle()


def _whole(cycle: float) -> float:
    return 1.0


def _halved(cycle: float) -> float:
    return float(0.5 ** (cycle - 1))


def triangle(t: float, *, total_size: float, step_ratio: float) -> tuple[int, float]:
    """Return the number of the cycle, from 1, and the height in it: up from 0 to 1, and down.

    Example:
        >>> [triangle(t, total_size=4.0, step_ratio=0.5) for t in range(6)]
        [(1, 0.0), (1, 0.5), (1, 1.0), (1, 0.5), (2, 0.0), (2, 0.5)]
    """
    cycle = math.floor(1 + t / total_size)
    x = 1.0 + t / total_size - cycle
    return cycle, x / step_ratio if x <= step_ratio else (x - 1) / (step_ratio - 1)


class CyclicLR(MomentumLR):
    r"""Let the rate go up and down between two bounds, and momentum the other way.

    .. math:: \eta(t) = \eta_{base} + (\eta_{max} - \eta_{base})\, h(t)\, s

    with :math:`\eta_{base}` = ``base_lr``, :math:`\eta_{max}` = ``max_lr``, :math:`h` a triangle
    from 0 up to 1 in ``step_size_up`` steps and down again in ``step_size_down``, and :math:`s` the
    scale: 1 in mode "triangular", :math:`2^{1 - c}` in cycle :math:`c = 1, 2, ...` in mode
    "triangular2", :math:`\gamma^t` in mode "exp_range", or ``scale_fn`` of :math:`c` or :math:`t`.
    Momentum is :math:`\mu_{max} - (\mu_{max} - \mu_{base})\, h(t)\, s`.

    Args:
        optimizer: the optimizer whose groups are scheduled. Their own rates are not used.
        base_lr: the lower bound, a rate for all groups or a list with one for each.
        max_lr: the upper bound, likewise.
        step_size_up: steps from the lower bound to the upper, > 0.
        step_size_down: steps back, >= 0; left out, as many as up.
        mode: "triangular", "triangular2" or "exp_range"; not used with ``scale_fn``.
        gamma: factor of one step in mode "exp_range".
        scale_fn: a function to the scale, instead of a mode.
        scale_mode: whether ``scale_fn`` takes the number of the "cycle", from 1, or of the step,
            from 0: "iterations".
        cycle_momentum: whether momentum (the first of ``betas``, or ``momentum``) is cycled.
        base_momentum: momentum at the upper bound of the rate, for all groups or a list.
        max_momentum: momentum at the lower bound of the rate, likewise.
        last_epoch: number of steps already taken, minus one; -1 starts anew.
        verbose: print every group's rate at each update.

    Raises:
        ArgumentError: a value breaks its rule, a list has not an entry for each group, or there is
            no momentum to cycle.

    Example:
        >>> import torch
        >>> from optimplug.optim.lr_scheduler import CyclicLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
        >>> scheduler = CyclicLR(optimizer, base_lr=0.1, max_lr=0.5, step_size_up=2)
        >>> for _ in range(5):
        ...     optimizer.step()
        ...     lr, momentum = scheduler.get_last_lr()[0], optimizer.param_groups[0]["momentum"]
        ...     print(round(lr, 4), round(momentum, 4))
        ...     scheduler.step()
        0.1 0.9
        0.3 0.85
        0.5 0.8
        0.3 0.85
        0.1 0.9

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks",
    https://arxiv.org/abs/1506.01186. The paper cycles the rate alone.
    """

    _functions = ("_scale_fn_custom",)
    _modes = ("triangular", "triangular2", "exp_range")

    _length = "total_size"

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | list[float],
        max_lr: float | list[float],
        step_size_up: float = 2000,
        step_size_down: float | None = None,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: Literal["cycle", "iterations"] = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.8,
        max_momentum: float | list[float] = 0.9,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.base_lrs = require_rates("base_lr", base_lr, optimizer)
        self.max_lrs = require_rates("max_lr", max_lr, optimizer)
        up = require_number("step_size_up", step_size_up, "a number > 0", lambda n: n > 0)
        down = up if step_size_down is None else step_size_down
        down = require_number("step_size_down", down, "a number >= 0", lambda n: n >= 0)
        self.total_size = up + down
        self.step_ratio = up / self.total_size
        self.gamma = require_number("gamma", gamma)
        if not (scale_fn is None or callable(scale_fn)):
            raise ArgumentError(f"scale_fn must be a function (got {scale_fn!r})")
        self._scale_fn_custom = scale_fn
        self.mode = mode if scale_fn else require_one_of("mode", mode, self._modes)
        by = require_one_of("scale_mode", scale_mode, ("cycle", "iterations"))
        self.scale_mode = by if scale_fn else "iterations" if mode == "exp_range" else "cycle"
        self._set_up_momentum(optimizer, cycle_momentum, base_momentum, max_momentum)
        super().__init__(optimizer, last_epoch, verbose)

    def _moves_by(self, updates: int) -> bool:
        # A function of the user's is for the steps that are taken, and asked no others.
        return self._scale_fn_custom is None and super()._moves_by(updates)

    def scale_fn(self, x: float) -> float:
        """Return the scale of a cycle or a step, whichever ``scale_mode`` says."""
        return float(self._scale_fn_ref(x))

    @property
    def _scale_fn_ref(self) -> Callable[[float], float]:
        """The function that is in use, under torch's name for it."""
        if self._scale_fn_custom is not None:
            return self._scale_fn_custom
        if self.mode == "triangular2":
            return _halved
        return functools.partial(pow, self.gamma) if self.mode == "exp_range" else _whole

    def _swung(self, t: int, low: list[float], high: list[float]) -> list[float]:
        """Return what is added to the low bounds, or taken from the high ones, at step ``t``."""
        cycle, height = triangle(t, total_size=self.total_size, step_ratio=self.step_ratio)
        scale = self.scale_fn(cycle if self.scale_mode == "cycle" else t)
        return [(most - least) * height * scale for least, most in zip(low, high, strict=True)]

    def rates(self, t: int) -> list[float]:
        """Return the closed form of every group at step ``t``, in the optimizer's order."""
        swung = self._swung(t, self.base_lrs, self.max_lrs)
        return [base + more for base, more in zip(self.base_lrs, swung, strict=True)]

    def momentums(self, t: int) -> list[float]:
        """Return the momentum of every group at step ``t``, in the optimizer's order."""
        swung = self._swung(t, self.base_momentums, self.max_momentums)
        return [most - less for most, less in zip(self.max_momentums, swung, strict=True)]
