"""AdEMAMix: Adam that mixes a second, much slower mean of the gradients into its direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from optimplug._core.optim.facts import Facts, a_rate
from optimplug._core.optim.hyperparameters import (
    check_betas,
    check_lengths,
    check_not_negative,
    check_rate,
    length_of,
    passed_on,
)
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype

__all__ = ["AdEMAMix", "AdEMAMixRule"]


@dataclass(frozen=True)
class AdEMAMixRule(Rule):
    """The math of :class:`AdEMAMix`."""

    maximize: bool = False

    temporaries: ClassVar = 4
    state: ClassVar = (
        StateSpec("exp_avg"),
        StateSpec("exp_avg_sq", code="unsigned"),
        StateSpec("exp_avg_slow"),
    )

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        lr, (beta1, beta2, beta3) = hyper["lr"], hyper["betas"]
        return {
            "decay": 1 - lr * hyper["weight_decay"],
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "one_minus_beta3": 1 - _slowing(beta1, beta3, _share(t, length_of(hyper, "t_beta3"))),
            "alpha": hyper["alpha"] * _share(t, length_of(hyper, "t_alpha")),
            "correction1": 1 - beta1**t,
            "sqrt_correction2": (1 - beta2**t) ** 0.5,
            "eps": hyper["eps"],
            "minus_lr": -lr,
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        fast, v, slow = state["exp_avg"], state["exp_avg_sq"], state["exp_avg_slow"]
        if self.maximize:
            g = g.neg()
        if k["decay"] != 1:
            p.mul_(k["decay"])
        fast.lerp_(g, k["one_minus_beta1"])
        v.mul_(k["beta2"]).addcmul_(g, g, value=k["one_minus_beta2"])
        slow.lerp_(g, k["one_minus_beta3"])
        denom = v.sqrt().div_(k["sqrt_correction2"]).add_(k["eps"])
        direction = fast.div(k["correction1"]).add_(slow, alpha=k["alpha"])
        p.addcdiv_(direction, denom, value=k["minus_lr"])


def _share(t: float, ramp: float | None) -> float:
    """Return how much of a ramp is behind at update ``t``: from 0 to 1, and 1 where none is."""
    return min(t / ramp, 1.0) if ramp else 1.0


def _slowing(beta1: Any, beta3: Any, share: float) -> Any:
    """Return the decay on the way from ``beta1`` to ``beta3``.

    What grows evenly is the time in which a mean forgets, which is as ``-1 / log(beta)``.
    """
    if share >= 1:
        return beta3
    memory = (1 - share) * _inverse_log(beta1) + share * _inverse_log(beta3)
    return math.e ** (1 / memory) if memory != 0 else memory


def _inverse_log(beta: Any) -> Any:
    if not beta > 0:
        return beta  # 0, the limit: what decays at once remembers for no time
    return 1 / (beta.log() if isinstance(beta, Tensor) else math.log(beta))


_rule = lru_cache(AdEMAMixRule)  # asked for at every step, for every group


class AdEMAMix(Optimizer):
    r"""AdEMAMix: Adam whose direction holds a fast and a slow running mean of the gradients.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad \hat m_t = m_t / (1 - \beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \qquad \hat v_t = v_t / (1 - \beta_2^t) \\
        s_t &= \beta_3(t)\, s_{t-1} + (1 - \beta_3(t))\, g_t \\
        \theta_t &= (1 - \gamma \lambda)\, \theta_{t-1}
            - \gamma\, \frac{\hat m_t + \alpha(t)\, s_t}{\sqrt{\hat v_t} + \epsilon}

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2, \beta_3)` = ``betas``, :math:`\epsilon`
    = ``eps``, :math:`\lambda` = ``weight_decay``, :math:`g_t` the gradient (its negative with
    ``maximize``). Over the first ``t_alpha`` and ``t_beta3`` updates of a parameter

    .. math::
        \alpha(t) = \alpha \min(1, t / T_\alpha), \qquad
        \frac{1}{\ln \beta_3(t)} = \Bigl(1 - \frac{t}{T_{\beta_3}}\Bigr) \frac{1}{\ln \beta_1}
            + \frac{t}{T_{\beta_3}} \frac{1}{\ln \beta_3}

    so that the slow mean begins as the fast one. Without these ramps a run may diverge early; the
    paper's are as long as the run.

    Rates are about AdamW's, though the step may be up to :math:`1 + \alpha` times as large. State
    of each parameter: ``step``, ``exp_avg``, ``exp_avg_sq``, ``exp_avg_slow``, half more than
    AdamW's.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        betas: decay of the fast mean, of the squares, and of the slow mean per step, each in
            [0, 1); three numbers or three tensors.
        alpha: weight of the slow mean, >= 0; the paper's good values are 4 to 10. 5 is the default
            of bitsandbytes and pytorch_optimizer too; the authors' code has 2.
        t_alpha: over how many updates ``alpha`` grows from 0; None: no ramp. In a recipe this may
            be a part of the run: ``60%``, ``2 epochs``.
        t_beta3: over how many updates the slow mean becomes slow, likewise; None: no ramp.
        eps: added to the denominator, >= 0.
        weight_decay: decay per step relative to ``lr``, >= 0. As in :class:`AdamW` and
            bitsandbytes it is not 0 where nothing is said; in the authors' code it is.
        maximize: ascend instead of descend.
        foreach: as in :class:`~optimplug.optim.Adam`.
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
        >>> from optimplug.optim import AdEMAMix
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = AdEMAMix([w], lr=0.1, weight_decay=0.0, t_alpha=100, t_beta3=100)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.9000], requires_grad=True)

    Source: Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older",
    https://arxiv.org/abs/2409.03137. ``t_alpha`` and ``t_beta3`` are named as in bitsandbytes and
    the Hugging Face Trainer (``alpha_warmup``, ``beta3_warmup`` in the authors' code, both in one
    ``t_alpha_beta3`` in pytorch_optimizer), the state as in pytorch_optimizer. The ramp of
    :math:`\beta_3` is the paper's; in the authors' code a constant of 1e-8 beside :math:`\beta`
    lengthens what it remembers by one part in
    ten thousand. Each parameter counts its own updates, as in the authors' code;
    pytorch_optimizer counts those of the group, whether or not a gradient was there.
    """

    facts: ClassVar = Facts(
        purpose="long runs: a second, slow mean remembers old gradients",
        rate=(1, 1),
        paper="The AdEMAMix Optimizer: Better, Faster, Older",
        link="https://arxiv.org/abs/2409.03137",
        not_for="short runs, whose slow mean has nothing to remember",
        step=lambda hyper, size: a_rate(hyper, size) * (1 + hyper["alpha"]),
    )

    lengths = ("t_alpha", "t_beta3")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor, float | Tensor] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: float | None = None,
        t_beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
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
    def rule(hyper: Hyper) -> AdEMAMixRule:
        return _rule(bool(hyper["maximize"]))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_betas(hyper, 3)
        check_not_negative(
            hyper, alpha="alpha value", eps="epsilon value", weight_decay="weight_decay value"
        )
        check_lengths(hyper, *AdEMAMix.lengths)
