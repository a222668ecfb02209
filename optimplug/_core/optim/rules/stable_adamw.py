"""StableAdamW: AdamW whose rate yields where a tensor's gradients outrun their second moments."""

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

__all__ = ["StableAdamW", "StableAdamWRule"]


@dataclass(frozen=True)
class StableAdamWRule(Rule):
    """The math of :class:`StableAdamW`, with its variants."""

    maximize: bool = False
    decays: bool = False

    scope: ClassVar = "tensor"
    takes_complex: ClassVar = False
    temporaries: ClassVar = 3
    state: ClassVar = (StateSpec("exp_avg"), StateSpec("exp_avg_sq", code="unsigned"))

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        beta1, beta2 = (_debiased(beta, t) for beta in hyper["betas"])
        return {
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "eps": hyper["eps"],
            "lr": hyper["lr"],
            "weight_decay": hyper["weight_decay"],
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if self.maximize:
            g = g.neg()
        m.lerp_(g, k["one_minus_beta1"])
        v.mul_(k["beta2"]).addcmul_(g, g, value=k["one_minus_beta2"])
        denom = v.sqrt()
        excess = g.div(denom.clamp_min(k["eps"])).rms()
        minus_rate = -(excess.clamp_min(1.0).reciprocal() * k["lr"])
        if self.decays:
            p.mul_(minus_rate * k["weight_decay"] + 1.0)
        p.add_(m.div(denom.add_(k["eps"])), alpha=minus_rate)


def _debiased(beta: Any, t: float) -> Any:
    """Return the decay with which a running mean is free of bias: 0 at the first update."""
    return (beta**t - beta) / (beta**t - 1)


_rule = lru_cache(StableAdamWRule)  # asked for at every step, for every group


class StableAdamW(Optimizer):
    r"""StableAdamW: AdamW that lowers its rate for a tensor whose gradients have grown suddenly.

    .. math::
        \hat\beta_i &= \beta_i \frac{1 - \beta_i^{t-1}}{1 - \beta_i^t} \\
        m_t &= \hat\beta_1 m_{t-1} + (1 - \hat\beta_1)\, g_t \qquad
            v_t = \hat\beta_2 v_{t-1} + (1 - \hat\beta_2)\, g_t^2 \\
        \eta_t &= \gamma \big/ \max\!\left(1,
            \mathrm{RMS}\!\left( g_t / \max(\sqrt{v_t}, \epsilon) \right)\right) \\
        \theta_t &= (1 - \eta_t \lambda)\, \theta_{t-1}
            - \eta_t\, \frac{m_t}{\sqrt{v_t} + \epsilon}

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\epsilon` =
    ``eps``, :math:`\lambda` = ``weight_decay``, :math:`g_t` the gradient (its negative with
    ``maximize``). RMS is the root of the mean square over the whole tensor, also of one of which
    each process has a part.

    It is AdamW with the update clipping of Adafactor, which makes a clipping of gradients
    unnecessary. Its usual rate is AdamW's. State of each parameter: ``step``, ``exp_avg``,
    ``exp_avg_sq``, as AdamW's.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        betas: decay rates of the two running means, each in [0, 1).
        eps: added to the denominator, and the least that a gradient is compared with, >= 0.
        weight_decay: decay per step relative to the rate :math:`\eta_t`, >= 0.
        maximize: ascend instead of descend.
        foreach: as in :class:`~optimplug.optim.Adam`.
        max_grad_norm: clip the global gradient norm to this inside the step; None: no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: as in :class:`~optimplug.optim.Adam`, with the next two.
        rounding_seed: likewise.
        state_dtype: likewise.

    Raises:
        ArgumentError: a value breaks its rule; at a step, a parameter is complex or a flat shard of
            FullyShardedDataParallel's.
        GradientError: at a step, a gradient is sparse.

    Example:
        >>> import torch
        >>> from optimplug.optim import StableAdamW
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = StableAdamW([w], lr=0.1, weight_decay=0.0)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.9000], requires_grad=True)

    Source: Wortsman et al., "Stable and low-precision training for large-scale vision-language
    models", https://arxiv.org/abs/2304.13013. The paper's betas are (0.9, 0.95 to 0.999); these
    defaults, and that there is a rate for each tensor also of the decay, are those of the package
    torch-optimi. Of its options these are not here: ``decouple_lr`` with ``max_lr``, and
    ``kahan_sum``, which it switches on by itself for narrow types. It counts steps for a group,
    here each parameter counts its own, so one whose gradient is missing now and then differs.
    """

    facts: ClassVar = Facts(
        purpose="AdamW that survives sudden large gradients, without clipping",
        rate=(1, 1),
        paper="Stable and low-precision training for large-scale vision-language models",
        link="https://arxiv.org/abs/2304.13013",
        step=a_rate,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals()))

    @staticmethod
    def rule(hyper: Hyper) -> StableAdamWRule:
        return _rule(bool(hyper["maximize"]), bool(hyper["weight_decay"] != 0))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_betas(hyper)
        check_not_negative(hyper, eps="epsilon value", weight_decay="weight_decay value")
