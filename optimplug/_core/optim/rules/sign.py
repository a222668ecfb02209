"""Optimizers that use the sign of a direction alone: Lion, and Rprop with steps of its own size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from optimplug._core.optim.facts import Facts, a_rate
from optimplug._core.optim.hyperparameters import (
    check_betas,
    check_not_negative,
    check_rate,
    passed_on,
    refuse_learnt_rate,
)
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug.errors import ArgumentError

__all__ = ["Lion", "LionRule", "Rprop", "RpropRule"]


@dataclass(frozen=True)
class LionRule(Rule):
    """The math of :class:`Lion`."""

    maximize: bool = False

    counts_steps: ClassVar = False
    temporaries: ClassVar = 3
    state: ClassVar = (StateSpec("exp_avg"),)

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        lr, (beta1, beta2) = hyper["lr"], hyper["betas"]
        return {
            "decay": 1 - lr * hyper["weight_decay"],
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "minus_lr": -lr,
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        m = state["exp_avg"]
        if self.maximize:
            g = g.neg()
        if k["decay"] != 1:
            p.mul_(k["decay"])
        direction = m.mul(k["beta1"]).add_(g, alpha=k["one_minus_beta1"]).sign_()
        p.add_(direction, alpha=k["minus_lr"])
        m.mul_(k["beta2"]).add_(g, alpha=k["one_minus_beta2"])


_lion_rule = lru_cache(LionRule)  # asked for at every step, for every group


class Lion(Optimizer):
    r"""Lion: every element moves by the rate, along the sign of a running mean.

    .. math::
        \theta_t &\leftarrow (1 - \gamma \lambda)\, \theta_{t-1} \\
        \theta_t &\leftarrow \theta_t
            - \gamma\, \mathrm{sign}(\beta_1 m_{t-1} + (1 - \beta_1)\, g_t) \\
        m_t &= \beta_2\, m_{t-1} + (1 - \beta_2)\, g_t

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\lambda` =
    ``weight_decay``, :math:`g_t` the gradient (its negative with ``maximize``). The sign of 0 is 0.

    Every step is as large as the rate, whatever the gradients: take 3 to 10 times less than for
    AdamW, and a weight decay 3 to 10 times larger, so that their product stays. State of each
    parameter: ``exp_avg`` alone, half of AdamW's.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        betas: how much of the running mean goes into the direction, and how much of it stays; each
            in [0, 1); two numbers or two tensors.
        weight_decay: decay per step relative to the current ``lr``, >= 0.
        maximize: ascend instead of descend.
        foreach: as in :class:`~optimplug.optim.Adam`.
        differentiable: autograd flows through the step; no gradient flows through a sign.
        max_grad_norm: clip the global gradient norm to this inside the step; None: no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: as in :class:`~optimplug.optim.Adam`, with the next two.
        rounding_seed: likewise.
        state_dtype: likewise.

    Raises:
        ArgumentError: a value breaks its rule.
        GradientError: at a step, a gradient is sparse.

    Example:
        >>> import torch
        >>> from optimplug.optim import Lion
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = Lion([w], lr=0.1)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.9000], requires_grad=True)

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms",
    https://arxiv.org/abs/2302.06675. The decay comes first, as in the authors' code; in the paper
    it is part of the step, and the result is the same. The package lion-pytorch has an option that
    divides the decay by one initial rate for all groups; here it always follows the group's rate.
    """

    facts: ClassVar = Facts(
        purpose="half of AdamW's memory, with large batches",
        rate=(0.1, 0.33),
        paper="Symbolic Discovery of Optimization Algorithms",
        link="https://arxiv.org/abs/2302.06675",
        not_for="small batches, where signs are noise",
        step=a_rate,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals()))

    @staticmethod
    def rule(hyper: Hyper) -> LionRule:
        return _lion_rule(bool(hyper["maximize"]))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_betas(hyper)
        check_not_negative(hyper, weight_decay="weight_decay value")


def _first_size(hyper: Hyper) -> float:
    return float(hyper["lr"])


@dataclass(frozen=True)
class RpropRule(Rule):
    """The math of :class:`Rprop`, with its variants."""

    maximize: bool = False

    temporaries: ClassVar = 6
    state: ClassVar = (
        StateSpec("prev", code=None),
        StateSpec("step_size", code=None, value=_first_size),
    )

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        (eta_minus, eta_plus), (least, most) = hyper["etas"], hyper["step_sizes"]
        return {"eta_minus": eta_minus, "eta_plus": eta_plus, "least": least, "most": most}

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        prev, size = state["prev"], state["step_size"]
        if self.maximize:
            g = g.neg()
        # Of these three, one is 1 and the others are 0, for each element.
        sign = g.mul(prev).sign_()
        turned, same = sign.neg().clamp_min_(0.0), sign.clamp_min_(0.0)
        neither = turned.add(same).neg_().add_(1.0)
        factor = same.mul_(k["eta_plus"]).add_(turned, alpha=k["eta_minus"]).add_(neither)
        size.mul_(factor).clamp_min_(k["least"]).clamp_max_(k["most"])
        # Where the sign has turned, nothing moves, and the next sign is compared with none.
        prev.mul_(0.0).add_(turned.neg_().add_(1.0).mul_(g))
        p.addcmul_(prev.sign(), size, value=-1.0)


_rprop_rule = lru_cache(RpropRule)  # asked for at every step, for every group


class Rprop(Optimizer):
    r"""Rprop: every element has a step size, that grows while the gradient keeps its sign.

    .. math::
        \eta_t &= \begin{cases}
            \min(\eta_{t-1}\, \eta_+,\; \eta_{max}) & \text{where } g_{t-1} g_t > 0 \\
            \max(\eta_{t-1}\, \eta_-,\; \eta_{min}),\; g_t \leftarrow 0
                & \text{where } g_{t-1} g_t < 0 \\
            \eta_{t-1} & \text{else} \end{cases} \\
        \theta_t &= \theta_{t-1} - \eta_t\, \mathrm{sign}(g_t)

    with :math:`\eta_0` = ``lr``, :math:`(\eta_-, \eta_+)` = ``etas``,
    :math:`(\eta_{min}, \eta_{max})` = ``step_sizes``, :math:`g_t` the gradient (its negative with
    ``maximize``). It is for gradients of all data at once: those of batches change their sign by
    chance.

    ``lr`` is where the sizes begin, and nothing after: a schedule of it has no effect on a
    parameter that has stepped. State of each parameter: ``step``, ``prev``, ``step_size``.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: the first step size, >= 0; a number or a tensor of one element.
        etas: what a size is multiplied by where the sign turns, in (0, 1), and where it stays, > 1.
        step_sizes: the smallest and the largest size.
        capturable: refused: there is no operator that does the whole update on the device.
        foreach: as in :class:`~optimplug.optim.Adam`.
        maximize: ascend instead of descend.
        differentiable: autograd flows through the step.
        max_grad_norm: clip the global gradient norm to this inside the step; None: no clipping. The
            sign stays, so only what becomes 0 is changed by it.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: as in :class:`~optimplug.optim.Adam`, with the next two.
        rounding_seed: likewise.
        state_dtype: likewise.

    Raises:
        ArgumentError: a value breaks its rule.
        GradientError: at a step, a gradient is sparse.

    Example:
        >>> import torch
        >>> from optimplug.optim import Rprop
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = Rprop([w], lr=0.1)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.9000], requires_grad=True)

    Source: Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning: the
    RPROP algorithm", https://doi.org/10.1109/ICNN.1993.298623.
    """

    facts: ClassVar = Facts(
        purpose="gradients of all data at once",
        rate=None,
        paper="A direct adaptive method for faster backpropagation learning: the RPROP algorithm",
        link="https://doi.org/10.1109/ICNN.1993.298623",
        rate_means="the first step size alone: a schedule has no effect",
        not_for="batches, whose signs change by chance",
        lr_only_begins=True,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals()))

    @staticmethod
    def rule(hyper: Hyper) -> RpropRule:
        return _rprop_rule(bool(hyper["maximize"]))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        refuse_learnt_rate(hyper)
        if not 0.0 < hyper["etas"][0] < 1.0 < hyper["etas"][1]:
            raise ArgumentError(
                f"Invalid eta values: {hyper['etas'][0]}, {hyper['etas'][1]}; "
                "must be in (0, 1) and > 1"
            )
        sizes = hyper["step_sizes"]
        if len(sizes) != 2 or not 0.0 <= sizes[0] <= sizes[1]:
            raise ArgumentError(
                f"Invalid step_sizes: {sizes}; must be the smallest and the largest, each >= 0"
            )
