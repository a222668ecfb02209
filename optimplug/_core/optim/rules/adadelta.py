"""Adadelta: steps in the units of the parameter, from running means of squares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from optimplug._core.optim.facts import Facts
from optimplug._core.optim.hyperparameters import check_not_negative, check_rate, passed_on
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug.errors import ArgumentError

__all__ = ["Adadelta", "AdadeltaRule"]


@dataclass(frozen=True)
class AdadeltaRule(Rule):
    """The math of :class:`Adadelta`, with its variants."""

    maximize: bool = False
    decays: bool = False
    """Whether weight decay goes into the gradient; see :class:`.sgd.SGDRule`."""

    temporaries: ClassVar = 4
    state: ClassVar = (
        StateSpec("square_avg", code="unsigned"),
        StateSpec("acc_delta", code="unsigned"),
    )

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        return {
            "weight_decay": hyper["weight_decay"],
            "rho": hyper["rho"],
            "one_minus_rho": 1 - hyper["rho"],
            "eps": hyper["eps"],
            "minus_lr": -hyper["lr"],
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        if self.maximize:
            g = g.neg()
        if self.decays:
            g = g.add(p, alpha=k["weight_decay"])
        v = state["square_avg"].mul_(k["rho"]).addcmul_(g, g, value=k["one_minus_rho"])
        std = v.add(k["eps"]).sqrt_()
        delta = state["acc_delta"].add(k["eps"]).sqrt_().div_(std).mul_(g)
        state["acc_delta"].mul_(k["rho"]).addcmul_(delta, delta, value=k["one_minus_rho"])
        p.add_(delta, alpha=k["minus_lr"])


_rule = lru_cache(AdadeltaRule)  # asked for at every step, for every group


class Adadelta(Optimizer):
    r"""Adadelta: the size of a step is that of the steps before it.

    .. math::
        g_t &\leftarrow g_t + \lambda\, \theta_{t-1} \\
        v_t &= \rho\, v_{t-1} + (1 - \rho)\, g_t^2 \\
        \Delta_t &= \sqrt{\frac{u_{t-1} + \epsilon}{v_t + \epsilon}}\; g_t, \qquad
        u_t = \rho\, u_{t-1} + (1 - \rho)\, \Delta_t^2 \\
        \theta_t &= \theta_{t-1} - \gamma\, \Delta_t

    with :math:`\gamma` = ``lr``, :math:`\rho` = ``rho``, :math:`\epsilon` = ``eps``,
    :math:`\lambda` = ``weight_decay``, :math:`g_t` the gradient (its negative with ``maximize``).

    State of each parameter: ``step``, ``square_avg`` (:math:`v`), ``acc_delta`` (:math:`u`). The
    rate is a factor of steps that find their own size: 1 is the paper's.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        rho: how much of the running means stays at each step, in [0, 1].
        eps: added under both roots, >= 0; it is what the first steps come from.
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
        >>> from optimplug.optim import Adadelta
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = Adadelta([w], rho=0.0, eps=0.04)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.8004], requires_grad=True)

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", https://arxiv.org/abs/1212.5701.
    """

    facts: ClassVar = Facts(
        purpose="steps that find their own size",
        rate=None,
        paper="ADADELTA: An Adaptive Learning Rate Method",
        link="https://arxiv.org/abs/1212.5701",
        rate_means="a factor of steps that find their own size; the paper's is 1",
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
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
    def rule(hyper: Hyper) -> AdadeltaRule:
        return _rule(bool(hyper["maximize"]), bool(hyper["weight_decay"] != 0))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        if not 0.0 <= hyper["rho"] <= 1.0:
            raise ArgumentError(f"Invalid rho value: {hyper['rho']}; must be in [0, 1]")
        check_not_negative(hyper, eps="epsilon value", weight_decay="weight_decay value")
