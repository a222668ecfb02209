"""AdamW: adaptive moments, with weight decay apart from the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Rule, Scalar, T
from optimplug.errors import ArgumentError

__all__ = ["AdamRule", "AdamW"]


@dataclass(frozen=True)
class AdamRule(Rule):
    """The math of :class:`AdamW`, and its two variants."""

    amsgrad: bool = False
    maximize: bool = False

    @property
    def state(self) -> tuple[str, ...]:
        names = ("exp_avg", "exp_avg_sq")
        return (*names, "max_exp_avg_sq") if self.amsgrad else names

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, float]:
        lr, (beta1, beta2) = hyper["lr"], hyper["betas"]
        # A tensor lr is computed with in its own precision, as in torch; hence float() only here.
        return {
            "decay": float(1 - lr * hyper["weight_decay"]),
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "sqrt_correction2": (1 - beta2**t) ** 0.5,
            "eps": hyper["eps"],
            "minus_step_size": float(-(lr / (1 - beta1**t))),
        }

    def update(self, p: T, g: T, state: Mapping[str, T], k: Mapping[str, Scalar]) -> None:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if self.maximize:
            g = g.neg()
        if k["decay"] != 1:
            p.mul_(k["decay"])
        m.lerp_(g, k["one_minus_beta1"])
        v.mul_(k["beta2"]).addcmul_(g, g, value=k["one_minus_beta2"])
        if self.amsgrad:
            v = state["max_exp_avg_sq"].clamp_min_(v)
        denom = v.sqrt().div_(k["sqrt_correction2"]).add_(k["eps"])
        p.addcdiv_(m, denom, value=k["minus_step_size"])


class AdamW(Optimizer):
    r"""AdamW: Adam whose weight decay does not pass through the moments.

    .. math::
        \theta_t &= (1 - \gamma \lambda)\, \theta_{t-1}
            - \gamma\, \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad \hat m_t = m_t / (1 - \beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \qquad \hat v_t = v_t / (1 - \beta_2^t)

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\epsilon` =
    ``eps``, :math:`\lambda` = ``weight_decay``, :math:`g_t` the gradient (its negative with
    ``maximize``). With ``amsgrad``, :math:`\hat v_t` takes the largest :math:`v` so far.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        betas: decay of the two moments per step, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decay per step relative to ``lr``, >= 0.
        amsgrad: divide by the largest second moment so far.
        maximize: ascend instead of descend.
        foreach: True or None: all tensors together through ``torch._foreach_*``; False: one tensor
            after the other, bit for bit as ``torch.optim.AdamW(foreach=False)``.
        max_grad_norm: clip the global gradient norm to this inside the step; None: no clipping.

    Raises:
        ArgumentError: a value breaks its rule.
        GradientError: at a step, a gradient is sparse.

    Example:
        >>> import torch
        >>> from optimplug.optim import AdamW
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = AdamW([w], lr=0.1, weight_decay=0.0)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.9000], requires_grad=True)

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization",
    https://arxiv.org/abs/1711.05101. As in torch and unlike the paper, the decay is multiplied by
    ``lr``. AMSGrad: https://openreview.net/forum?id=ryQu7f-RZ.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults, max_grad_norm=max_grad_norm)

    @staticmethod
    def rule(hyper: Hyper) -> AdamRule:
        return AdamRule(amsgrad=bool(hyper["amsgrad"]), maximize=bool(hyper["maximize"]))

    @staticmethod
    def check(hyper: Hyper) -> None:
        lr, eps, weight_decay = hyper["lr"], hyper["eps"], hyper["weight_decay"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ArgumentError(f"Tensor lr must be 1-element (got shape {tuple(lr.shape)})")
        if not lr >= 0.0:
            raise ArgumentError(f"Invalid learning rate: {lr}; must be >= 0")
        if not eps >= 0.0:
            raise ArgumentError(f"Invalid epsilon value: {eps}; must be >= 0")
        if not weight_decay >= 0.0:
            raise ArgumentError(f"Invalid weight_decay value: {weight_decay}; must be >= 0")
        if len(hyper["betas"]) != 2:
            raise ArgumentError(f"Invalid betas: {hyper['betas']}; must be two numbers in [0, 1)")
        for i, beta in enumerate(hyper["betas"]):
            if not 0.0 <= beta < 1.0:
                raise ArgumentError(
                    f"Invalid beta parameter at index {i}: {beta}; must be in [0, 1)"
                )
