"""ASGD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from optimplug._core.optim.facts import Facts
from optimplug._core.optim.hyperparameters import (
    check_not_negative,
    check_rate,
    passed_on,
    refuse_learnt_rate,
)
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, ScalarSpec, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype

__all__ = ["ASGD", "ASGDRule"]


def _first_rate(hyper: Hyper) -> float:
    return float(hyper["lr"])


@dataclass(frozen=True)
class ASGDRule(Rule):
    """The math of :class:`ASGD`, with its variants."""

    maximize: bool = False
    decays: bool = False

    scalars: ClassVar = (ScalarSpec("eta", _first_rate), ScalarSpec("mu", lambda hyper: 1.0))
    state: ClassVar = (StateSpec("ax", code=None, is_point=True),)

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        eta = hyper["eta"]
        return {
            "weight_decay": hyper["weight_decay"],
            "decay": 1 - hyper["lambd"] * eta,
            "minus_eta": -eta,
            "mu": hyper["mu"],
        }

    def next_scalars(self, hyper: Hyper, t: float) -> dict[str, Any]:
        lr, lambd = float(hyper["lr"]), hyper["lambd"]
        return {
            "eta": lr / ((1 + lambd * lr * t) ** hyper["alpha"]),
            "mu": 1 / max(1, t - hyper["t0"]),
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        ax = state["ax"]
        if self.maximize:
            g = g.neg()
        if self.decays:
            g = g.add(p, alpha=k["weight_decay"])
        p.mul_(k["decay"]).add_(g, alpha=k["minus_eta"])
        if k["mu"] != 1:
            ax.add_(ax.neg().add_(p).mul_(k["mu"]))
        else:
            ax.copy_(p)


_rule = lru_cache(ASGDRule)  # asked for at every step, for every group


class ASGD(Optimizer):
    r"""ASGD: gradient descent with a falling rate, and the average of the way beside it.

    .. math::
        \theta_t &= (1 - \lambda\, \eta_{t-1})\, \theta_{t-1} - \eta_{t-1}\, g_t \\
        \bar\theta_t &= \bar\theta_{t-1} + \mu_{t-1} (\theta_t - \bar\theta_{t-1}) \\
        \eta_t &= \frac{\gamma}{(1 + \lambda \gamma t)^\alpha} \qquad
            \mu_t = \frac{1}{\max(1,\, t - t_0)}

    with :math:`\gamma` = ``lr``, :math:`\eta_0` = :math:`\gamma`, :math:`\mu_0 = 1`,
    :math:`\lambda` = ``lambd``, :math:`\alpha` = ``alpha``, :math:`t_0` = ``t0``, :math:`g_t` the
    gradient (its negative with ``maximize``), to which ``weight_decay`` adds its share of
    :math:`\theta_{t-1}`. The average of the weights after :math:`t_0` is in the state, for the user
    to take: the weights are not replaced by it.

    ``lr`` reaches the weights one update late, through :math:`\eta`, as in torch; its usual size is
    SGD's. State of each parameter: ``step``, ``eta``, ``mu``, ``ax`` (the average).

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        lambd: how much of the parameter each update takes away, per unit of the rate.
        alpha: the power by which the rate falls.
        t0: after how many updates the average begins.
        weight_decay: added to the gradient per unit of the parameter, >= 0.
        foreach: as in :class:`~optimplug.optim.Adam`.
        maximize: ascend instead of descend.
        differentiable: autograd flows through the step.
        capturable: refused: there is no operator that does the whole update on the device.
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
        >>> from optimplug.optim import ASGD
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = ASGD([w], lr=0.1, lambd=0.0)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.7000], requires_grad=True)

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging",
    https://doi.org/10.1137/0330046; the rate is Bottou's, as in torch. torch counts on the
    parameter's device; here ``step``, ``eta`` and ``mu`` stand on the CPU.
    """

    facts: ClassVar = Facts(
        purpose="gradient descent that keeps an average of its weights beside them",
        rate=(10, 100),
        paper="Acceleration of Stochastic Approximation by Averaging",
        link="https://doi.org/10.1137/0330046",
        not_for="training on: the average is kept in the state, and is not what the model has",
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals()))

    @staticmethod
    def rule(hyper: Hyper) -> ASGDRule:
        return _rule(bool(hyper["maximize"]), bool(hyper["weight_decay"] != 0))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        refuse_learnt_rate(hyper)
        check_not_negative(hyper, weight_decay="weight_decay value")
