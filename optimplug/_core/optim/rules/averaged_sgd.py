"""Schedule-free SGD, with the averages of schedule-free AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from optimplug._core.optim.facts import Facts
from optimplug._core.optim.hyperparameters import passed_on
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand
from optimplug._core.optim.rules.averaged import COUNTED, ScheduleFreeRule, Z, check_shared
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug.errors import ArgumentError

__all__ = ["ScheduleFreeSGD", "ScheduleFreeSGDRule"]


@dataclass(frozen=True)
class ScheduleFreeSGDRule(ScheduleFreeRule):
    """The math of :class:`ScheduleFreeSGD`."""

    state: ClassVar = (Z,)

    def mixing(self, hyper: Hyper) -> Any:
        return hyper["momentum"]

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        if self.maximize:
            g = g.neg()
        if self.decays:
            g = g.add(p, alpha=k["decay"])
        self._move(p, state["z"], g, k)


_sgd_rule = lru_cache(ScheduleFreeSGDRule)


class ScheduleFreeSGD(Optimizer):
    r"""Schedule-free SGD: needs no decay of the rate, because it validates with an average.

    .. math::
        y_t &= \beta x_t + (1 - \beta)\, z_t \\
        z_{t+1} &= z_t - \gamma_t\, (g_t + \lambda\, y_t) \\
        x_{t+1} &= (1 - c_t)\, x_t + c_t\, z_{t+1}

    with :math:`\beta` = ``momentum``, :math:`\lambda` = ``weight_decay``, and all else, the modes
    too, as in :class:`~optimplug.optim.ScheduleFreeAdamW`.

    Rates are 10 to 50 times those of SGD with momentum and a schedule. State of each parameter:
    ``z``, as much as SGD's with momentum.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        momentum: how much of the average is in the weights that are trained with, in (0, 1).
        weight_decay: added to the gradient per unit of :math:`y`, >= 0.
        warmup_steps: as in :class:`~optimplug.optim.ScheduleFreeAdamW`, like all that follows.
        r: power of the update's number in its weight in the average.
        weight_lr_power: power of the highest rate so far in that weight, >= 0.
        foreach: as in :class:`~optimplug.optim.Adam`.
        maximize: ascend instead of descend.
        differentiable: autograd flows through the step.
        max_grad_norm: clip the global gradient norm to this inside the step; None: no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: as in :class:`~optimplug.optim.Adam`, with the next two.
        rounding_seed: likewise.
        state_dtype: likewise.

    Raises:
        ArgumentError: a value breaks its rule.
        ModeError: at a step, it is in eval mode.
        GradientError: at a step, a gradient is sparse.

    Example:
        >>> import torch
        >>> from optimplug.optim import ScheduleFreeSGD
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = ScheduleFreeSGD([w], lr=0.1)
        >>> optimizer.train()
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> optimizer.eval()
        >>> w
        tensor([0.7000], requires_grad=True)

    Source: as for :class:`~optimplug.optim.ScheduleFreeAdamW`; the package's ``SGDScheduleFree``.
    """

    facts: ClassVar = Facts(
        purpose="SGD without a schedule: the length of the run need not be known",
        rate=(100, 5000),
        paper="The Road Less Scheduled",
        link="https://arxiv.org/abs/2405.15682",
        not_for="a schedule beside it; BatchNorm, whose statistics are of other weights",
    )

    lengths = ("warmup_steps",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        warmup_steps: int | None = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals(), **COUNTED))

    @staticmethod
    def rule(hyper: Hyper) -> ScheduleFreeSGDRule:
        return _sgd_rule(bool(hyper["maximize"]), bool(hyper["weight_decay"] != 0))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_shared(hyper)
        if not 0.0 < hyper["momentum"] < 1.0:
            raise ArgumentError(
                f"Invalid momentum value: {hyper['momentum']}; must be between 0 and 1 exclusive"
            )
