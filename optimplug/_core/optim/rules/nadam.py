"""NAdam."""

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
from optimplug._core.optim.rule import Hyper, Operand, Rule, ScalarSpec, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype

__all__ = ["NAdam", "NAdamRule"]


@dataclass(frozen=True)
class NAdamRule(Rule):
    """The math of :class:`NAdam`, with its variants."""

    maximize: bool = False
    decays: bool = False
    decoupled: bool = False

    temporaries: ClassVar = 3
    scalars: ClassVar = (ScalarSpec("mu_product", lambda hyper: 1.0, is_product=True),)
    state: ClassVar = (StateSpec("exp_avg"), StateSpec("exp_avg_sq", code="unsigned"))

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        lr, (beta1, beta2) = hyper["lr"], hyper["betas"]
        mu, mu_next = _momentum(hyper, t), _momentum(hyper, t + 1)
        product = hyper["next_mu_product"]
        return {
            "weight_decay": hyper["weight_decay"],
            "decay": 1 - lr * hyper["weight_decay"],
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "bias_correction2": 1 - beta2**t,
            "eps": hyper["eps"],
            "minus_grad_rate": -lr * (1.0 - mu) / (1.0 - product),
            "minus_mean_rate": (-lr * mu_next) / (1.0 - product * mu_next),
        }

    def next_scalars(self, hyper: Hyper, t: float) -> dict[str, Any]:
        return {"mu_product": _momentum(hyper, t)}

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if self.maximize:
            g = g.neg()
        if self.decays and self.decoupled:
            p.mul_(k["decay"])
        elif self.decays:
            g = g.add(p, alpha=k["weight_decay"])
        m.lerp_(g, k["one_minus_beta1"])
        v.mul_(k["beta2"]).addcmul_(g, g, value=k["one_minus_beta2"])
        denominator = v.div(k["bias_correction2"]).sqrt_().add_(k["eps"])
        p.addcdiv_(g, denominator, value=k["minus_grad_rate"])
        p.addcdiv_(m, denominator, value=k["minus_mean_rate"])


def _momentum(hyper: Hyper, t: float) -> Any:
    return hyper["betas"][0] * (1.0 - 0.5 * (0.96 ** (t * hyper["momentum_decay"])))


_rule = lru_cache(NAdamRule)  # asked for at every step, for every group


class NAdam(Optimizer):
    r"""NAdam: Adam with Nesterov's momentum, which grows over the first updates.

    .. math::
        \mu_t &= \beta_1 (1 - \tfrac12 \cdot 0.96^{t \psi}) \qquad
            P_t = \textstyle\prod_{i \le t} \mu_i \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \qquad
            v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
        \theta_t &= \theta_{t-1} - \gamma
            \left( \frac{1 - \mu_t}{1 - P_t}\, g_t + \frac{\mu_{t+1}}{1 - P_{t+1}}\, m_t \right)
            \Big/ \left( \sqrt{v_t / (1 - \beta_2^t)} + \epsilon \right)

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\epsilon` =
    ``eps``, :math:`\psi` = ``momentum_decay``, :math:`g_t` the gradient (its negative with
    ``maximize``). ``weight_decay`` :math:`\lambda` adds :math:`\lambda \theta_{t-1}` to the
    gradient; with ``decoupled_weight_decay`` it multiplies the parameter by
    :math:`1 - \gamma \lambda` before the step.

    Its usual rate is Adam's. State of each parameter: ``step``, ``mu_product`` (:math:`P_t`),
    ``exp_avg``, ``exp_avg_sq``, as torch's.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        betas: decay rates of the two running means, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0.
        momentum_decay: how fast the momentum reaches ``betas[0]``, >= 0.
        decoupled_weight_decay: decay as AdamW does.
        foreach: as in :class:`~optimplug.optim.Adam`.
        maximize: ascend instead of descend.
        capturable: refused: there is no operator that does the whole update on the device.
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
        >>> from optimplug.optim import NAdam
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = NAdam([w], lr=0.1)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.8944], requires_grad=True)

    Source: Dozat, "Incorporating Nesterov Momentum into Adam",
    https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. Its state, and that the product is kept
    in float32, are torch's.
    """

    facts: ClassVar = Facts(
        purpose="Adam with a look ahead; often a little quicker at first",
        rate=(1, 2),
        paper="Incorporating Nesterov Momentum into Adam",
        link="https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
        step=a_rate,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
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
    def rule(hyper: Hyper) -> NAdamRule:
        decays = bool(hyper["weight_decay"] != 0)
        return _rule(bool(hyper["maximize"]), decays, bool(hyper["decoupled_weight_decay"]))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_betas(hyper)
        check_not_negative(
            hyper,
            eps="epsilon value",
            weight_decay="weight_decay value",
            momentum_decay="momentum_decay value",
        )
