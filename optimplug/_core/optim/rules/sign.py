"""Lion: steps along the sign of a running mean of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from optimplug._core.optim.hyperparameters import check_betas, check_not_negative, check_rate
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec

__all__ = ["Lion", "LionRule"]


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


_rule = lru_cache(LionRule)  # asked for at every step, for every group


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
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        super().__init__(
            params, defaults, max_grad_norm=max_grad_norm, skip_nonfinite=skip_nonfinite
        )

    @staticmethod
    def rule(hyper: Hyper) -> LionRule:
        return _rule(bool(hyper["maximize"]))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_betas(hyper)
        check_not_negative(hyper, weight_decay="weight_decay value")
