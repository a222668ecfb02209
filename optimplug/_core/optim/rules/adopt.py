"""ADOPT: Adam that divides by the second moment of the gradients before this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any, ClassVar

from torch import Tensor

from optimplug._core.arguments import as_number
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
from optimplug.errors import ArgumentError

__all__ = ["ADOPT", "ADOPTRule"]


@dataclass(frozen=True)
class ADOPTRule(Rule):
    """The math of :class:`ADOPT`, with its variants."""

    maximize: bool = False
    decoupled: bool = False
    """Whether weight decay acts on the parameter, apart from the gradient."""
    decays: bool = False
    """Whether it goes into the gradient; see :class:`.sgd.SGDRule`."""

    temporaries: ClassVar = 3
    state: ClassVar = (StateSpec("exp_avg"), StateSpec("exp_avg_sq", code="unsigned"))

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        lr, (beta1, beta2) = hyper["lr"], hyper["betas"]
        # At the first update only the second moment begins. Beside parameters that are further the
        # rest is computed too, with scalars that change nothing: divided by no less than 1, where
        # nothing is there to divide by, then cut to 0.
        first = t <= 1
        exponent = hyper["clip_exp"]
        clip = 0.0 if first else inf if exponent is None else (t - 1) ** exponent
        decay = hyper["weight_decay"]
        if self.decoupled:
            decay = 1.0 if first else 1 - lr * decay
        return {
            "decay": decay,
            "floor": 1.0 if first else hyper["eps"],
            "clip": clip,
            "minus_clip": -clip,
            "one_minus_beta1": 0.0 if first else 1 - beta1,
            "minus_lr": 0.0 if first else -lr,
            "beta2": 1.0 if first else beta2,
            "one_minus_beta2": 1.0 if first else 1 - beta2,
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
        if k["clip"] != 0:  # else it is the first update of all
            normed = g.div(v.sqrt().clamp_min_(k["floor"]))
            m.lerp_(normed.clamp_min_(k["minus_clip"]).clamp_max_(k["clip"]), k["one_minus_beta1"])
            p.add_(m, alpha=k["minus_lr"])
        v.mul_(k["beta2"]).addcmul_(g, g, value=k["one_minus_beta2"])


_rule = lru_cache(ADOPTRule)  # asked for at every step, for every group


class ADOPT(Optimizer):
    r"""ADOPT: Adam that converges whatever :math:`\beta_2`, by not dividing by its own gradient.

    .. math::
        v_0 &= g_0^2 \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) \,\mathrm{clip}\Bigl(
            \frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)},\, -t^c,\, t^c \Bigr) \\
        \theta_t &= \theta_{t-1} - \gamma\, m_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\epsilon` =
    ``eps``, :math:`c` = ``clip_exp``, :math:`g_t` the gradient (its negative with ``maximize``),
    plus :math:`\lambda\, \theta_{t-1}` for :math:`\lambda` = ``weight_decay``; with ``decouple``
    :math:`\theta_{t-1}` is first multiplied by :math:`1 - \gamma \lambda` instead.

    The first update, that of :math:`g_0`, moves no parameter. Rates are AdamW's. State of each
    parameter: ``step``, ``exp_avg``, ``exp_avg_sq``, as AdamW's.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        betas: decay of the two means per step, each in [0, 1); two numbers or two tensors.
        eps: the least that is divided by, >= 0.
        clip_exp: which power of the number of steps bounds the quotient, >= 0; None: no bound. In
            timm the default is 0.333, with the authors 0.25.
        weight_decay: added to the gradient per unit of the parameter, >= 0.
        decouple: apply the decay to the parameter instead, as :class:`AdamW` does.
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
        >>> from optimplug.optim import ADOPT
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = ADOPT([w], lr=0.1)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([1.], requires_grad=True)
        >>> optimizer.step()
        >>> w
        tensor([0.9900], requires_grad=True)

    Source: Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any :math:`\beta_2` with the
    Optimal Rate", https://arxiv.org/abs/2411.02853, and the authors' code, where ``clip_lambda`` is
    a function of the number of steps, which no state dict could hold. Each parameter counts its own
    updates, as there and in timm. In pytorch_optimizer the group counts, the bound is that of
    one step later, and a decoupled decay acts on the first update too.
    """

    facts: ClassVar = Facts(
        purpose="Adam that converges with any beta2: noisy gradients",
        rate=(1, 1),
        paper="ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate",
        link="https://arxiv.org/abs/2411.02853",
        step=a_rate,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_exp: float | None = 0.25,
        weight_decay: float = 0.0,
        decouple: bool = False,
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
    def rule(hyper: Hyper) -> ADOPTRule:
        decoupled = bool(hyper["decouple"])
        decays = not decoupled and bool(hyper["weight_decay"] != 0)
        return _rule(bool(hyper["maximize"]), decoupled, decays)

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_betas(hyper)
        check_not_negative(hyper, eps="epsilon value", weight_decay="weight_decay value")
        exponent = as_number(hyper["clip_exp"])
        if hyper["clip_exp"] is not None and (exponent is None or not exponent >= 0):
            raise ArgumentError(
                f"Invalid clip_exp: {hyper['clip_exp']!r}; must be a number >= 0, or None for no "
                "bound"
            )
