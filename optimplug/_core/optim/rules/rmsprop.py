"""RMSprop: steps scaled by a running mean of the squared gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

from torch import Tensor

from optimplug._core.optim.facts import Facts
from optimplug._core.optim.hyperparameters import check_not_negative, check_rate, passed_on
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug._core.optim.storage.codes import CodeName

__all__ = ["RMSprop", "RMSpropRule"]


@dataclass(frozen=True)
class RMSpropRule(Rule):
    """The math of :class:`RMSprop`, with its variants."""

    momentum: bool = False
    centered: bool = False
    maximize: bool = False
    decays: bool = False
    """Whether weight decay goes into the gradient; see :class:`.sgd.SGDRule`."""

    variant_state: ClassVar = ("momentum_buffer", "grad_avg")
    temporaries: ClassVar = 4

    @cached_property
    def state(self) -> tuple[StateSpec, ...]:
        # Of the centered kind little is left of two large numbers: less than codes are off by.
        code: CodeName | None = None if self.centered else "unsigned"
        return (
            StateSpec("square_avg", code=code),
            *((StateSpec("momentum_buffer", late=True),) if self.momentum else ()),
            *((StateSpec("grad_avg", late=True, code=None),) if self.centered else ()),
        )

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        return {
            "weight_decay": hyper["weight_decay"],
            "alpha": hyper["alpha"],
            "one_minus_alpha": 1 - hyper["alpha"],
            "eps": hyper["eps"],
            "momentum": hyper["momentum"],
            "minus_lr": -hyper["lr"],
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        if self.maximize:
            g = g.neg()
        if self.decays:
            g = g.add(p, alpha=k["weight_decay"])
        v = state["square_avg"].mul_(k["alpha"]).addcmul_(g, g, value=k["one_minus_alpha"])
        if self.centered:
            mean = state["grad_avg"].lerp_(g, k["one_minus_alpha"])
            v = v.addcmul(mean, mean, value=-1.0)
        denom = v.sqrt().add_(k["eps"])
        if self.momentum:
            buffer = state["momentum_buffer"].mul_(k["momentum"]).addcdiv_(g, denom, value=1.0)
            p.add_(buffer, alpha=k["minus_lr"])
        else:
            p.addcdiv_(g, denom, value=k["minus_lr"])


_rule = lru_cache(RMSpropRule)  # asked for at every step, for every group


def _step(hyper: Hyper, size: float) -> float | None:
    # The variance that centered divides by is near 0 under a steady gradient.
    return None if hyper["centered"] else float(hyper["lr"]) / (1 - hyper["momentum"])


class RMSprop(Optimizer):
    r"""RMSprop: steps scaled by a running mean of the squared gradient.

    .. math::
        g_t &\leftarrow g_t + \lambda\, \theta_{t-1} \\
        v_t &= \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2 \\
        b_t &= \mu\, b_{t-1} + g_t / (\sqrt{v_t} + \epsilon) \\
        \theta_t &= \theta_{t-1} - \gamma\, b_t

    with :math:`\gamma` = ``lr``, :math:`\alpha` = ``alpha``, :math:`\epsilon` = ``eps``,
    :math:`\mu` = ``momentum``, :math:`\lambda` = ``weight_decay``, :math:`g_t` the gradient (its
    negative with ``maximize``). With ``centered``, :math:`v_t` under the root is less by the square
    of a running mean of the gradient: an estimate of its variance.

    State of each parameter: ``step``, ``square_avg``; with momentum ``momentum_buffer``, with
    ``centered`` also ``grad_avg``.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        alpha: how much of the running means stays at each step, >= 0.
        eps: added to the denominator, >= 0; outside of the root, unlike in TensorFlow.
        weight_decay: added to the gradient per unit of the parameter, >= 0.
        momentum: how much of the running sum of steps stays, >= 0.
        centered: divide by an estimate of the standard deviation.
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
        >>> from optimplug.optim import RMSprop
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = RMSprop([w], lr=0.1, alpha=0.75)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.8000], requires_grad=True)

    Source: Hinton, Srivastava and Swersky, "Neural Networks for Machine Learning", lecture 6.
    Centered: Graves, "Generating Sequences With Recurrent Neural Networks",
    https://arxiv.org/abs/1308.0850.
    """

    facts: ClassVar = Facts(
        purpose="recurrent networks and reinforcement learning",
        rate=(1, 1),
        paper="Neural Networks for Machine Learning, lecture 6",
        link="https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
        options={"momentum": 0.9, "centered": True},
        step=_step,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
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
    def rule(hyper: Hyper) -> RMSpropRule:
        flags = bool(hyper["centered"]), bool(hyper["maximize"]), bool(hyper["weight_decay"] != 0)
        return _rule(hyper["momentum"] > 0, *flags)

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_not_negative(
            hyper,
            eps="epsilon value",
            momentum="momentum value",
            weight_decay="weight_decay value",
            alpha="alpha value",
        )
