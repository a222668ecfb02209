"""LAMB: Adam's direction, for each tensor as long as its weights allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from optimplug._core.optim.facts import Facts
from optimplug._core.optim.hyperparameters import (
    check_betas,
    check_not_negative,
    check_rate,
    passed_on,
)
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype

__all__ = ["LAMB", "LAMBRule"]


@dataclass(frozen=True)
class LAMBRule(Rule):
    """The math of :class:`LAMB`, with its variants."""

    maximize: bool = False
    decays: bool = False
    adapts: bool = False
    """Whether the step is scaled by the trust ratio."""
    trust_clip: bool = False

    scope: ClassVar = "tensor"
    takes_complex: ClassVar = False
    temporaries: ClassVar = 3
    state: ClassVar = (StateSpec("exp_avg"), StateSpec("exp_avg_sq", code="unsigned"))

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        beta1, beta2 = hyper["betas"]
        corrects = hyper["bias_correction"]
        return {
            "beta1": beta1,
            "grad_share": 1 - beta1 if hyper["grad_averaging"] else 1.0,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "correction1": 1 - beta1**t if corrects else 1.0,
            "sqrt_correction2": (1 - beta2**t) ** 0.5 if corrects else 1.0,
            "eps": hyper["eps"],
            "weight_decay": hyper["weight_decay"],
            "minus_lr": -hyper["lr"],
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if self.maximize:
            g = g.neg()
        m.mul_(k["beta1"]).add_(g, alpha=k["grad_share"])
        v.mul_(k["beta2"]).addcmul_(g, g, value=k["one_minus_beta2"])
        denom = v.sqrt().div_(k["sqrt_correction2"]).add_(k["eps"])
        step = m.div(k["correction1"]).div_(denom)
        if self.decays:
            step.add_(p, alpha=k["weight_decay"])
        p.add_(step, alpha=self._trust(p, step) * k["minus_lr"] if self.adapts else k["minus_lr"])

    def _trust(self, p: Operand, step: Operand) -> Any:
        """Return for each tensor by how much its step is scaled; 1 where either norm is 0."""
        weights = p.norm()
        ratio = (weights / step.norm().where_positive(weights)).where_positive(1.0)
        return ratio.clamp_max(1.0) if self.trust_clip else ratio


_rule = lru_cache(LAMBRule)  # asked for at every step, for every group


def _step(hyper: Hyper, size: float) -> float:
    ratio = size if hyper["weight_decay"] or hyper["always_adapt"] else 1.0
    return float(hyper["lr"]) * (min(1.0, ratio) if hyper["trust_clip"] else ratio)


class LAMB(Optimizer):
    r"""LAMB: Adam whose step is, for each tensor, in proportion to the norm of its weights.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad \hat m_t = m_t / (1 - \beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \qquad \hat v_t = v_t / (1 - \beta_2^t) \\
        u_t &= \hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda\, \theta_{t-1} \\
        \theta_t &= \theta_{t-1}
            - \gamma\, \frac{\lVert \theta_{t-1} \rVert}{\lVert u_t \rVert}\, u_t

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\epsilon` =
    ``eps``, :math:`\lambda` = ``weight_decay``, :math:`g_t` the gradient (its negative with
    ``maximize``). The norms are those of the whole tensor, also of one of which each process has a
    part. Their quotient, the trust ratio, is 1 where either of them is 0.

    It is made for large batches. A step changes a tensor by ``lr`` of its norm, so rates are larger
    than AdamW's: 5e-3 and more where AdamW has 1e-3. State of each parameter: ``step``,
    ``exp_avg``, ``exp_avg_sq``, as AdamW's.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        bias_correction: False: :math:`\hat m_t = m_t`, :math:`\hat v_t = v_t`.
        betas: decay rates of the two running means, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: how much of the weights is added to the direction, >= 0.
        grad_averaging: False: the gradient goes into :math:`m_t` whole, without
            :math:`1 - \beta_1`.
        trust_clip: the trust ratio is at most 1, as in LAMBC.
        always_adapt: also where ``weight_decay`` is 0; else the trust ratio is 1 there, for such
            parameters as norms and biases.
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
        >>> from optimplug.optim import LAMB
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> optimizer = LAMB([w], lr=0.1, weight_decay=0.0, always_adapt=True)
        >>> w.sum().backward()
        >>> optimizer.step()  # a tenth of the norm, in a direction of two equal parts
        >>> w
        tensor([2.6464, 3.6464], requires_grad=True)

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
    https://arxiv.org/abs/1904.00962. Arguments and defaults are those of timm's ``Lamb`` and apex's
    ``FusedLAMB``, whose ``use_nvlamb`` is ``always_adapt``, with two exceptions: they clip to
    ``max_grad_norm=1.0`` by default, which here must be asked for, as in every optimizer of this
    package; and they count steps for a group, here each parameter counts its own, so one whose
    gradient is missing now and then differs. The paper bounds the norm of the weights by a function
    that it leaves open; apex, timm and this class have none.
    """

    facts: ClassVar = Facts(
        purpose="very large batches: each tensor moves in proportion to its size",
        rate=(1, 10),
        paper="Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
        link="https://arxiv.org/abs/1904.00962",
        step=_step,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        grad_averaging: bool = True,
        *,
        trust_clip: bool = False,
        always_adapt: bool = False,
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
    def rule(hyper: Hyper) -> LAMBRule:
        decays = bool(hyper["weight_decay"] != 0)
        adapts = decays or bool(hyper["always_adapt"])
        return _rule(bool(hyper["maximize"]), decays, adapts, bool(hyper["trust_clip"]))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_betas(hyper)
        check_not_negative(hyper, eps="epsilon value", weight_decay="weight_decay value")
