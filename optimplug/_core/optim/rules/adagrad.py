"""Adagrad: steps scaled by the sum of all squared gradients so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.internals import fused_adagrad
from optimplug._core.optim.facts import Facts, a_rate
from optimplug._core.optim.hyperparameters import check_not_negative, check_rate, passed_on
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import FusedCall, Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype

__all__ = ["Adagrad", "AdagradRule"]


def _initial(hyper: Hyper) -> float:
    return float(hyper["initial_accumulator_value"])


@dataclass(frozen=True)
class AdagradRule(Rule):
    """The math of :class:`Adagrad`, with its variants."""

    maximize: bool = False
    decays: bool = False
    """Whether weight decay goes into the gradient; see :class:`.sgd.SGDRule`."""

    takes_sparse: ClassVar = True
    fused_dtypes: ClassVar = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    state: ClassVar = (StateSpec("sum", code="unsigned", value=_initial),)

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        return {
            "weight_decay": hyper["weight_decay"],
            "eps": hyper["eps"],
            "minus_step_size": -(hyper["lr"] / (1 + (t - 1) * hyper["lr_decay"])),
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        if self.maximize:
            g = g.neg()
        if self.decays:
            g = g.add(p, alpha=k["weight_decay"])
        total = state["sum"].addcmul_(g, g, value=1.0)
        p.addcdiv_(g, total.sqrt().add_(k["eps"]), value=k["minus_step_size"])

    def fused(self, call: FusedCall) -> None:
        hyper = call.hyper
        fused_adagrad(
            call.params,
            call.grads,
            call.state["sum"],
            call.steps,
            lr=hyper["lr"],
            lr_decay=float(hyper["lr_decay"]),
            weight_decay=float(hyper["weight_decay"]),
            eps=float(hyper["eps"]),
            maximize=self.maximize,
            grad_scale=call.grad_scale,
            found_inf=call.found_inf,
        )


_rule = lru_cache(AdagradRule)  # asked for at every step, for every group


class Adagrad(Optimizer):
    r"""Adagrad: an element's steps become smaller the more it has been moved by.

    .. math::
        g_t &\leftarrow g_t + \lambda\, \theta_{t-1} \\
        s_t &= s_{t-1} + g_t^2 \\
        \theta_t &= \theta_{t-1}
            - \frac{\gamma}{1 + (t - 1)\, \eta}\, \frac{g_t}{\sqrt{s_t} + \epsilon}

    with :math:`\gamma` = ``lr``, :math:`\eta` = ``lr_decay``, :math:`s_0` =
    ``initial_accumulator_value``, :math:`\epsilon` = ``eps``, :math:`\lambda` = ``weight_decay``,
    :math:`g_t` the gradient (its negative with ``maximize``).

    State of each parameter: ``step``, ``sum``, from the beginning on, as in torch. Gradients may be
    sparse. Its usual rate is about ten times that of Adam.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        lr_decay: how much the rate falls with each step, >= 0.
        weight_decay: added to the gradient per unit of the parameter, >= 0; 0 where gradients are
            sparse.
        initial_accumulator_value: what the sum begins with, >= 0.
        eps: added to the denominator, >= 0.
        foreach: as in :class:`~optimplug.optim.Adam`.
        maximize: ascend instead of descend.
        differentiable: autograd flows through the step.
        fused: as in :class:`~optimplug.optim.Adam`.
        max_grad_norm: clip the global gradient norm to this inside the step; None: no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: as in :class:`~optimplug.optim.Adam`, with the next two.
        rounding_seed: likewise.
        state_dtype: likewise.

    Raises:
        ArgumentError: a value breaks its rule.
        GradientError: at a step, a gradient is sparse and ``weight_decay`` is not 0.

    Example:
        >>> import torch
        >>> from optimplug.optim import Adagrad
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = Adagrad([w], lr=0.1)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.9000], requires_grad=True)

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and
    Stochastic Optimization", https://jmlr.org/papers/v12/duchi11a.html.
    """

    facts: ClassVar = Facts(
        purpose="sparse features and embeddings: rare elements keep large steps",
        rate=(10, 10),
        paper="Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
        link="https://jmlr.org/papers/v12/duchi11a.html",
        not_for="long runs of deep networks: its steps only ever shrink",
        step=a_rate,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals()))
        self.begin_state()

    @staticmethod
    def rule(hyper: Hyper) -> AdagradRule:
        return _rule(bool(hyper["maximize"]), bool(hyper["weight_decay"] != 0))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_not_negative(
            hyper,
            lr_decay="lr_decay value",
            weight_decay="weight_decay value",
            initial_accumulator_value="initial_accumulator_value value",
            eps="epsilon value",
        )

    def share_memory(self) -> None:
        """Move the sums into memory that processes share, as torch's method does."""
        for kept in self.state.values():
            kept["sum"].share_memory_()
