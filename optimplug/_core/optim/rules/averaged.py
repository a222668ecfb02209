"""Schedule-free AdamW: the weights that are validated are an average of those that move."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.arguments import require_count, require_number
from optimplug._core.optim.facts import Facts
from optimplug._core.optim.hyperparameters import (
    check_betas,
    check_lengths,
    check_not_negative,
    check_rate,
    length_of,
    passed_on,
    refuse_learnt_rate,
)
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug.errors import ArgumentError

__all__ = [
    "COUNTED",
    "ScheduleFreeAdamW",
    "ScheduleFreeAdamWRule",
    "ScheduleFreeRule",
    "Z",
    "check_shared",
]

Z = StateSpec(
    "z", partial(torch.clone, memory_format=torch.preserve_format), code=None, is_point=True
)
"""The point that moves by the gradient; the weights are between it and the average."""
COUNTED = {"k": 0, "train_mode": False, "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0}
"""What a group counts by itself, as the reference does, beside its hyperparameters."""


@dataclass(frozen=True)
class ScheduleFreeRule(Rule):
    """What :class:`ScheduleFreeAdamW` and :class:`ScheduleFreeSGD` have in common."""

    maximize: bool = False
    decays: bool = False
    """Whether weight decay goes into the direction; see :class:`.sgd.SGDRule`."""

    counts_steps: ClassVar = False
    counts_in_groups: ClassVar = True
    temporaries: ClassVar = 3

    @abstractmethod
    def mixing(self, hyper: Hyper) -> Any:
        """Return how much of the average is in the weights that are trained with."""

    def next_settings(self, hyper: Hyper, totals: Mapping[str, float]) -> dict[str, Any]:
        if not hyper["train_mode"]:  # what makes the state alone is no update; see modes.check_mode
            return {}
        rate, highest, weight = _weighed(hyper)
        return {
            "k": hyper["k"] + 1,
            "scheduled_lr": float(rate),
            "lr_max": float(highest),
            "weight_sum": hyper["weight_sum"] + float(weight),
        }

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        rate, _, weight = _weighed(hyper)
        total = hyper["weight_sum"] + weight
        share = weight / total if total != 0 else 0.0
        return {
            "share": share,
            "decay": hyper["weight_decay"],
            "minus_rate": -rate,
            "y_rate": rate * (self.mixing(hyper) * (1 - share) - 1),
        }

    @staticmethod
    def _move(y: Operand, z: Operand, direction: Operand, k: Mapping[str, Any]) -> None:
        """Move both points that are kept; the average between them need not be computed."""
        y.lerp_(z, k["share"]).add_(direction, alpha=k["y_rate"])
        z.add_(direction, alpha=k["minus_rate"])


def _weighed(hyper: Hyper) -> tuple[Any, Any, Any]:
    """Return the rate of the next update, the highest so far, and its weight in the average."""
    count, warmup = hyper["k"] + 1, length_of(hyper, "warmup_steps") or 0
    rate = hyper["lr"] * (count / warmup if count <= warmup else 1.0)
    highest = max(rate, hyper["lr_max"])
    return rate, highest, count ** hyper["r"] * highest ** hyper["weight_lr_power"]


@dataclass(frozen=True)
class ScheduleFreeAdamWRule(ScheduleFreeRule):
    """The math of :class:`ScheduleFreeAdamW`."""

    state: ClassVar = (Z, StateSpec("exp_avg_sq", code="unsigned"))

    def mixing(self, hyper: Hyper) -> Any:
        return hyper["betas"][0]

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        beta2 = hyper["betas"][1]
        return {
            **super().coefficients(hyper, t),
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "correction2": 1 - beta2 ** (hyper["k"] + 1),
            "eps": hyper["eps"],
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        v = state["exp_avg_sq"]
        if self.maximize:
            g = g.neg()
        v.mul_(k["beta2"]).addcmul_(g, g, value=k["one_minus_beta2"])
        direction = g.div(v.div(k["correction2"]).sqrt_().add_(k["eps"]))
        if self.decays:
            direction.add_(p, alpha=k["decay"])
        self._move(p, state["z"], direction, k)


_adamw_rule = lru_cache(ScheduleFreeAdamWRule)  # asked for at every step, for every group


class ScheduleFreeAdamW(Optimizer):
    r"""Schedule-free AdamW: needs no decay of the rate, because it validates with an average.

    .. math::
        y_t &= \beta_1 x_t + (1 - \beta_1)\, z_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \qquad \hat v_t = v_t / (1 - \beta_2^t) \\
        z_{t+1} &= z_t
            - \gamma_t \bigl( g_t / (\sqrt{\hat v_t} + \epsilon) + \lambda\, y_t \bigr) \\
        x_{t+1} &= (1 - c_t)\, x_t + c_t\, z_{t+1}, \qquad
            c_t = \frac{w_t}{\sum_{i \le t} w_i}, \quad w_t = t^r \max_{i \le t} \gamma_i^p

    with :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\epsilon` = ``eps``, :math:`\lambda` =
    ``weight_decay``, :math:`r` = ``r``, :math:`p` = ``weight_lr_power``, :math:`g_t` the gradient
    at :math:`y_t` (its negative with ``maximize``), :math:`\gamma_t` = ``lr``, to which the first
    ``warmup_steps`` updates rise by equal steps.

    The parameters are :math:`y` while it trains, and :math:`x`, the average, while it validates and
    as weights are saved: call :meth:`train` where ``model.train()`` is called, and :meth:`eval`
    where ``model.eval()`` is and before saving. :class:`optimplug.Run`, the adapters for Lightning
    and Hugging Face, and the Trainer of transformers do. It begins in eval mode, so that a
    forgotten :meth:`train` is an error at the first step. Running statistics, those of BatchNorm,
    are of :math:`y`: let the model see some batches in its train mode after :meth:`eval`.

    Rates are 1 to 10 times those of AdamW with a schedule. Warm-up is worth having; it is
    ``warmup_steps``, and no scheduler is needed beside it. State of each parameter: ``z``,
    ``exp_avg_sq``, as much as AdamW's; of each group: ``k`` (its updates), ``lr_max``,
    ``weight_sum``, ``scheduled_lr`` (the rate of the last update), ``train_mode``. As in the
    reference a group counts for all its parameters, also for one without a gradient; but it begins
    to count with the first gradient of any, so that a group that is frozen for a time has its
    warm-up when it begins to move.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        betas: how much of the average is in the weights that are trained with, in (0, 1), and the
            decay of the mean of squares per step, in [0, 1); two numbers or two tensors.
        eps: added to the denominator, >= 0.
        weight_decay: pull of :math:`y` on the step relative to ``lr``, >= 0.
        warmup_steps: how many updates the rate takes to rise to ``lr``, >= 0; in a recipe also a
            part of the run, as ``6%``. None: 0.
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
        >>> from optimplug.optim import ScheduleFreeAdamW
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = ScheduleFreeAdamW([w], lr=0.1)
        >>> for _ in range(2):
        ...     optimizer.train()
        ...     optimizer.zero_grad()
        ...     (3 * w).sum().backward()
        ...     optimizer.step()
        ...     optimizer.eval()
        >>> w
        tensor([0.8500], requires_grad=True)

    Source: Defazio et al., "The Road Less Scheduled", https://arxiv.org/abs/2405.15682, and the
    package schedulefree, whose ``AdamWScheduleFree`` it equals, but for what is wrong there: that
    one writes into gradients, and a group that is added while it trains is left out of the next
    :meth:`eval`. Its choice of ``foreach`` is left to None here.
    """

    facts: ClassVar = Facts(
        purpose="AdamW without a schedule: the length of the run need not be known",
        rate=(1, 10),
        paper="The Road Less Scheduled",
        link="https://arxiv.org/abs/2405.15682",
        not_for="a schedule beside it; BatchNorm, whose statistics are of other weights",
    )

    lengths = ("warmup_steps",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.0025,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
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
    def rule(hyper: Hyper) -> ScheduleFreeAdamWRule:
        return _adamw_rule(bool(hyper["maximize"]), bool(hyper["weight_decay"] != 0))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_shared(hyper)
        check_not_negative(hyper, eps="epsilon value")
        check_betas(hyper)
        if hyper["betas"][0] == 0:
            raise ArgumentError(
                "Invalid beta parameter at index 0: 0; must be in (0, 1): the average, of which it "
                "is the share in the weights that are trained with, is found from those"
            )


def check_shared(hyper: Hyper) -> None:
    """Check what all schedule-free optimizers have.

    Raises:
        ArgumentError: a value breaks its rule.
    """
    check_rate(hyper)
    refuse_learnt_rate(hyper)
    check_lengths(hyper, "warmup_steps")
    check_not_negative(
        hyper,
        weight_decay="weight_decay value",
        weight_lr_power="weight_lr_power value",
    )
    # What a group has counted, which a state may bring.
    require_count("k", hyper["k"])
    require_number("weight_sum", hyper["weight_sum"], "a finite number >= 0", lambda w: w >= 0)
    require_number("lr_max", hyper["lr_max"])
    require_number("scheduled_lr", hyper["scheduled_lr"])
