"""Adamax: Adam whose steps are scaled by a running maximum of the gradient."""

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
)
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype

__all__ = ["Adamax", "AdamaxRule"]


@dataclass(frozen=True)
class AdamaxRule(Rule):
    """The math of :class:`Adamax`, with its variants."""

    maximize: bool = False
    decays: bool = False
    """Whether weight decay goes into the gradient; see :class:`.sgd.SGDRule`."""

    temporaries: ClassVar = 3
    state: ClassVar = (StateSpec("exp_avg"), StateSpec("exp_inf", code="unsigned"))

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        beta1, beta2 = hyper["betas"]
        return {
            "weight_decay": hyper["weight_decay"],
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "eps": hyper["eps"],
            "minus_step_size": -(hyper["lr"] / (1 - beta1**t)),
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        if self.maximize:
            g = g.neg()
        if self.decays:
            g = g.add(p, alpha=k["weight_decay"])
        m = state["exp_avg"].lerp_(g, k["one_minus_beta1"])
        u = state["exp_inf"].mul_(k["beta2"]).clamp_min_(g.abs().add_(k["eps"]))
        p.addcdiv_(m, u, value=k["minus_step_size"])


_rule = lru_cache(AdamaxRule)  # asked for at every step, for every group


class Adamax(Optimizer):
    r"""Adamax: Adam with a running maximum in the place of the root of the second moment.

    .. math::
        g_t &\leftarrow g_t + \lambda\, \theta_{t-1} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
        u_t &= \max(\beta_2 u_{t-1},\; |g_t| + \epsilon) \\
        \theta_t &= \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t}\, \frac{m_t}{u_t}

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\epsilon` =
    ``eps``, :math:`\lambda` = ``weight_decay``, :math:`g_t` the gradient (its negative with
    ``maximize``).

    State of each parameter: ``step``, ``exp_avg``, ``exp_inf``. Its usual rate is about twice that
    of Adam.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        betas: decay of the mean and of the maximum per step, each in [0, 1).
        eps: added to the size of the gradient, >= 0.
        weight_decay: added to the gradient per unit of the parameter, >= 0.
        capturable: refused: there is no operator that does the whole update on the device.
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
        GradientError: at a step, a gradient is sparse.

    Example:
        >>> import torch
        >>> from optimplug.optim import Adamax
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = Adamax([w], lr=0.1)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.9000], requires_grad=True)

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", section 7.1,
    https://arxiv.org/abs/1412.6980. As in torch and unlike the paper, ``eps`` keeps the divisor
    from 0.
    """

    facts: ClassVar = Facts(
        purpose="Adam where a rare large gradient must not vanish among small ones: embeddings",
        rate=(1, 2),
        paper="Adam: A Method for Stochastic Optimization",
        link="https://arxiv.org/abs/1412.6980",
        step=a_rate,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals()))

    @staticmethod
    def rule(hyper: Hyper) -> AdamaxRule:
        return _rule(bool(hyper["maximize"]), bool(hyper["weight_decay"] != 0))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_not_negative(hyper, eps="epsilon value", weight_decay="weight_decay value")
        check_betas(hyper)
