"""Adam and AdamW: adaptive moments, with weight decay in the gradient or apart from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.internals import fused_adam, fused_adamw
from optimplug._core.optim.facts import Facts, a_rate
from optimplug._core.optim.hyperparameters import (
    arguments,
    check_betas,
    check_not_negative,
    check_rate,
    passed_on,
)
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import FusedCall, Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug.errors import ArgumentError

__all__ = ["Adam", "AdamRule", "AdamW"]


@dataclass(frozen=True)
class AdamRule(Rule):
    """The math of :class:`Adam` and :class:`AdamW`, with its variants."""

    amsgrad: bool = False
    maximize: bool = False
    decoupled: bool = False
    """Whether weight decay acts on the parameter, apart from the gradient."""
    decays: bool = False
    """Whether it goes into the gradient; see :class:`.sgd.SGDRule`."""

    variant_state: ClassVar = ("max_exp_avg_sq",)
    fused_dtypes: ClassVar = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

    @cached_property
    def state(self) -> tuple[StateSpec, ...]:
        moments = StateSpec("exp_avg"), StateSpec("exp_avg_sq", code="unsigned")
        largest = (StateSpec("max_exp_avg_sq", code="unsigned", late=True),) if self.amsgrad else ()
        return (*moments, *largest)

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        lr, (beta1, beta2) = hyper["lr"], hyper["betas"]
        return {
            "decay": 1 - lr * hyper["weight_decay"] if self.decoupled else hyper["weight_decay"],
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "sqrt_correction2": (1 - beta2**t) ** 0.5,
            "eps": hyper["eps"],
            "minus_step_size": -(lr / (1 - beta1**t)),
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
        if self.amsgrad:
            v = state["max_exp_avg_sq"].clamp_min_(v)
        denom = v.sqrt().div_(k["sqrt_correction2"]).add_(k["eps"])
        p.addcdiv_(m, denom, value=k["minus_step_size"])

    def fused(self, call: FusedCall) -> None:
        hyper = call.hyper
        operator = fused_adamw if self.decoupled else fused_adam
        operator(
            call.params,
            call.grads,
            call.state["exp_avg"],
            call.state["exp_avg_sq"],
            call.state.get("max_exp_avg_sq", []),
            call.steps,
            lr=hyper["lr"],
            beta1=float(hyper["betas"][0]),
            beta2=float(hyper["betas"][1]),
            weight_decay=float(hyper["weight_decay"]),
            eps=float(hyper["eps"]),
            amsgrad=self.amsgrad,
            maximize=self.maximize,
            grad_scale=call.grad_scale,
            found_inf=call.found_inf,
        )


_rule = lru_cache(AdamRule)  # asked for at every step, for every group


class Adam(Optimizer):
    r"""Adam: steps scaled by running means of the gradient and of its square.

    .. math::
        g_t &\leftarrow g_t + \lambda\, \theta_{t-1} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad \hat m_t = m_t / (1 - \beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \qquad \hat v_t = v_t / (1 - \beta_2^t) \\
        \theta_t &= \theta_{t-1} - \gamma\, \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\epsilon` =
    ``eps``, :math:`\lambda` = ``weight_decay``, :math:`g_t` the gradient (its negative with
    ``maximize``). With ``amsgrad``, :math:`\hat v_t` takes the largest :math:`v` so far.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        betas: decay of the two means per step, each in [0, 1); two numbers or two tensors.
        eps: added to the denominator, >= 0.
        weight_decay: added to the gradient per unit of the parameter, >= 0.
        amsgrad: divide by the largest second moment so far.
        foreach: True: all tensors together through ``torch._foreach_*``. False: one tensor after
            the other, bit for bit as ``torch.optim.Adam(foreach=False)``. None: the fastest
            execution that is right for each tensor.
        maximize: ascend instead of descend.
        capturable: the step can be captured in a CUDA graph; runs fused.
        differentiable: autograd flows through the step.
        fused: True: one pass over the memory, as in torch with gradient scaling inside. False:
            never. None: as for ``foreach``.
        decoupled_weight_decay: apply the decay to the parameter instead, as :class:`AdamW` does.
        max_grad_norm: clip the global gradient norm to this inside the step; None: no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: how a bfloat16 parameter takes an update: "nearest", as in torch, "exact" (float32
            weights of which the parameter is the visible half), "kahan" or "stochastic"; see
            :mod:`optimplug._core.optim.storage.stored`.
        rounding_seed: what "stochastic" draws by.
        state_dtype: how moments are kept: "float32", "bfloat16", "8bit" (a quarter of float32, for
            parameters of at least 4,096 elements), or None: as the parameter, and with another
            rounding than "nearest" in float32.
        compact_state: save moments that are kept in 8 bits as such, and not as float32.

    Raises:
        ArgumentError: a value breaks its rule.
        GradientError: at a step, a gradient is sparse.

    Example:
        >>> import torch
        >>> from optimplug.optim import Adam
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = Adam([w], lr=0.1)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.9000], requires_grad=True)

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization",
    https://arxiv.org/abs/1412.6980. AMSGrad: https://openreview.net/forum?id=ryQu7f-RZ.
    """

    facts: ClassVar = Facts(
        purpose="the usual choice where there is no weight decay",
        rate=(1, 1),
        paper="Adam: A Method for Stochastic Optimization",
        link="https://arxiv.org/abs/1412.6980",
        not_for="weight decay, which it scales like a gradient: take AdamW",
        options={"amsgrad": True},
        step=a_rate,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals()))

    @staticmethod
    def rule(hyper: Hyper) -> AdamRule:
        decoupled = bool(hyper["decoupled_weight_decay"])
        decays = not decoupled and bool(hyper["weight_decay"] != 0)
        return _rule(bool(hyper["amsgrad"]), bool(hyper["maximize"]), decoupled, decays)

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        if isinstance(hyper["lr"], Tensor) and hyper["foreach"] and not hyper["capturable"]:
            raise ArgumentError(
                "lr as a Tensor is not supported for capturable=False and foreach=True"
            )
        check_not_negative(hyper, eps="epsilon value", weight_decay="weight_decay value")
        check_betas(hyper)


class AdamW(Adam):
    r"""AdamW: Adam whose weight decay does not pass through the moments.

    .. math::
        \theta_t = (1 - \gamma \lambda)\, \theta_{t-1}
            - \gamma\, \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}

    with :math:`\lambda` = ``weight_decay``, and the moments of :class:`Adam` on the bare gradient.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: as in :class:`Adam`, like all that is not listed here.
        betas: as in :class:`Adam`.
        eps: as in :class:`Adam`.
        weight_decay: decay per step relative to ``lr``, >= 0.
        amsgrad: as in :class:`Adam`.
        maximize: as in :class:`Adam`.
        foreach: as in :class:`Adam`.
        capturable: as in :class:`Adam`.
        differentiable: as in :class:`Adam`.
        fused: as in :class:`Adam`.
        max_grad_norm: as in :class:`Adam`.
        skip_nonfinite: as in :class:`Adam`.

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
    ``lr``.
    """

    facts: ClassVar = Facts(
        purpose="the usual choice, above all for transformers",
        rate=(1, 1),
        paper="Decoupled Weight Decay Regularization",
        link="https://arxiv.org/abs/1711.05101",
        options={"amsgrad": True},
        step=a_rate,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **arguments(locals()), decoupled_weight_decay=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True  # also where the state is Adam's
