"""RAdam: Adam that adapts its steps only when its variance is known well enough."""

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

__all__ = ["RAdam", "RAdamRule"]


@dataclass(frozen=True)
class RAdamRule(Rule):
    """The math of :class:`RAdam`, with its variants."""

    maximize: bool = False
    decoupled: bool = False
    """Whether weight decay acts on the parameter, apart from the gradient."""
    decays: bool = False
    """Whether it goes into the gradient; see :class:`.sgd.SGDRule`."""

    temporaries: ClassVar = 4
    state: ClassVar = (StateSpec("exp_avg"), StateSpec("exp_avg_sq", code="unsigned"))

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        lr, (beta1, beta2) = hyper["lr"], hyper["betas"]
        correction2 = 1 - beta2**t
        rectification = _rectification(beta2, t)
        return {
            "decay": 1 - lr * hyper["weight_decay"] if self.decoupled else hyper["weight_decay"],
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "correction1": 1 - beta1**t,
            "sqrt_correction2": correction2**0.5,
            "eps": hyper["eps"],
            "lr": lr,
            "rectification": rectification,
            "plain": float(rectification == 0),
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if self.maximize:
            g = g.neg()
        if self.decoupled and k["decay"] != 1:
            p.mul_(k["decay"])
        elif self.decays:
            g = g.add(p, alpha=k["decay"])
        m.lerp_(g, k["one_minus_beta1"])
        v.mul_(k["beta2"]).addcmul_(g, g, value=k["one_minus_beta2"])
        step = m.div(k["correction1"]).mul_(k["lr"])
        if k["rectification"] != 0:
            adaptive = v.sqrt().add_(k["eps"]).reciprocal_().mul_(k["sqrt_correction2"])
            adaptive = adaptive.mul_(step).mul_(k["rectification"])
            # Some tensors of a batch may have come further than others.
            step = adaptive.add_(step, alpha=k["plain"]) if k["plain"] != 0 else adaptive
        p.add_(step, alpha=-1.0)


def _rectification(beta2: Any, t: float) -> Any:
    """Return the factor for the variance of the step; 0 where too little is known for one."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * (beta2**t) / (1 - beta2**t)
    if not rho > 5.0:
        return 0.0
    return ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5


_rule = lru_cache(RAdamRule)  # asked for at every step, for every group


class RAdam(Optimizer):
    r"""RAdam: Adam whose adaptive steps are rectified by what is known of their variance.

    .. math::
        \rho_\infty &= 2 / (1 - \beta_2) - 1, \qquad
            \rho_t = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t) \\
        r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\rho_\infty}
            {(\rho_\infty - 4)(\rho_\infty - 2)\rho_t}} \\
        \theta_t &= \theta_{t-1} - \gamma\, \hat m_t\, r_t
            \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v_t} + \epsilon}
            \quad \text{where } \rho_t > 5, \text{ else }
            \theta_{t-1} - \gamma\, \hat m_t

    with the moments :math:`\hat m_t` and :math:`v_t` of :class:`~optimplug.optim.Adam`,
    :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\epsilon` = ``eps``. The
    first steps (five, with the default betas) go along the mean alone.

    State of each parameter: ``step``, ``exp_avg``, ``exp_avg_sq``. Its rate is that of Adam; it
    needs no warm-up.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        betas: decay of the two means per step, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: added to the gradient per unit of the parameter, >= 0.
        decoupled_weight_decay: apply the decay to the parameter instead, as AdamW does.
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
        >>> from optimplug.optim import RAdam
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = RAdam([w], lr=0.1)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.7000], requires_grad=True)

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond",
    https://arxiv.org/abs/1908.03265. As in torch, ``eps`` is added before the correction of the
    second moment, and 5 is the bound of :math:`\rho_t`, where the paper has 4.
    """

    facts: ClassVar = Facts(
        purpose="Adam without a warm-up",
        rate=(1, 1),
        paper="On the Variance of the Adaptive Learning Rate and Beyond",
        link="https://arxiv.org/abs/1908.03265",
        step=a_rate,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
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
    def rule(hyper: Hyper) -> RAdamRule:
        decoupled = bool(hyper["decoupled_weight_decay"])
        decays = not decoupled and bool(hyper["weight_decay"] != 0)
        return _rule(bool(hyper["maximize"]), decoupled, decays)

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_not_negative(hyper, eps="epsilon value", weight_decay="weight_decay value")
        check_betas(hyper)
