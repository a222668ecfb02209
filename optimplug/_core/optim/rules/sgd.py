"""SGD: stochastic gradient descent, with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.internals import fused_sgd
from optimplug._core.optim.facts import Facts
from optimplug._core.optim.hyperparameters import check_not_negative, check_rate, passed_on
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import FusedCall, Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug.errors import ArgumentError

__all__ = ["SGD", "SGDRule"]


@dataclass(frozen=True)
class SGDRule(Rule):
    """The math of :class:`SGD`, with its variants."""

    momentum: bool = False
    nesterov: bool = False
    maximize: bool = False
    decays: bool = False
    """Whether weight decay goes into the gradient. It is no branch on the coefficient: beside
    groups that decay, one that does not would take 0 times a weight, which is no 0 if that is
    infinite."""

    counts_steps: ClassVar = False
    takes_sparse: ClassVar = True
    variant_state: ClassVar = ("momentum_buffer",)
    # In bfloat16 torch's operator rounds at every step of its arithmetic: 5 times the error.
    fused_dtypes: ClassVar = (torch.float32, torch.float64)

    @cached_property
    def state(self) -> tuple[StateSpec, ...]:
        return (StateSpec("momentum_buffer", late=True),) if self.momentum else ()

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        first = t == 1  # the buffer starts as the gradient itself, undampened
        return {
            "weight_decay": hyper["weight_decay"],
            "keep": 0.0 if first else hyper["momentum"],
            "take": 1.0 if first else 1 - hyper["dampening"],
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
        if self.momentum:
            buffer = state["momentum_buffer"].mul_(k["keep"]).add_(g, alpha=k["take"])
            g = g.add(buffer, alpha=k["momentum"]) if self.nesterov else buffer
        p.add_(g, alpha=k["minus_lr"])

    def fused(self, call: FusedCall) -> None:
        hyper = call.hyper
        fused_sgd(
            call.params,
            call.grads,
            call.state.get("momentum_buffer", []),
            weight_decay=float(hyper["weight_decay"]),
            momentum=float(hyper["momentum"]),
            lr=hyper["lr"],
            dampening=float(hyper["dampening"]),
            nesterov=self.nesterov,
            maximize=self.maximize,
            is_first_step=call.first,
            grad_scale=call.grad_scale,
            found_inf=call.found_inf,
        )


_rule = lru_cache(SGDRule)  # asked for at every step, for every group


class SGD(Optimizer):
    r"""SGD: steps along the gradient, or along a running sum of it.

    .. math::
        g_t &\leftarrow g_t + \lambda\, \theta_{t-1} \\
        b_1 &= g_1, \qquad b_t = \mu\, b_{t-1} + (1 - \tau)\, g_t \\
        \theta_t &= \theta_{t-1} - \gamma\, b_t

    with :math:`\gamma` = ``lr``, :math:`\mu` = ``momentum``, :math:`\tau` = ``dampening``,
    :math:`\lambda` = ``weight_decay``, :math:`g_t` the gradient (its negative with ``maximize``).
    Without momentum the step is along :math:`g_t`; with ``nesterov``, along :math:`g_t + \mu b_t`.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        momentum: how much of the running sum stays, >= 0.
        dampening: how much of the gradient is left out of the sum.
        weight_decay: added to the gradient per unit of the parameter, >= 0.
        nesterov: look ahead along the sum; needs ``momentum`` and no ``dampening``.
        maximize: ascend instead of descend.
        foreach: True: all tensors together through ``torch._foreach_*``. False: one tensor after
            the other, bit for bit as ``torch.optim.SGD(foreach=False)``. None: the fastest
            execution that is right for each tensor.
        differentiable: autograd flows through the step.
        fused: True: one pass over the memory, as in torch with gradient scaling inside. False:
            never. None: as for ``foreach``.
        max_grad_norm: clip the global gradient norm to this inside the step; None: no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: as in :class:`~optimplug.optim.Adam`, with the next two.
        rounding_seed: likewise.
        state_dtype: likewise.

    Raises:
        ArgumentError: a value breaks its rule.

    Example:
        >>> import torch
        >>> from optimplug.optim import SGD
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = SGD([w], lr=0.1, momentum=0.9)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.7000], requires_grad=True)

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning",
    https://proceedings.mlr.press/v28/sutskever13.html. As in torch and unlike the paper, the rate
    multiplies the whole sum.
    """

    facts: ClassVar = Facts(
        purpose="the least memory; convolutional networks trained from scratch",
        rate=(10, 100),
        paper="On the importance of initialization and momentum in deep learning",
        link="https://proceedings.mlr.press/v28/sutskever13.html",
        not_for="transformers: layers whose gradients differ much in size",
        options={"momentum": 0.9},
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
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

    @staticmethod
    def rule(hyper: Hyper) -> SGDRule:
        flags = bool(hyper["nesterov"]), bool(hyper["maximize"]), bool(hyper["weight_decay"] != 0)
        return _rule(hyper["momentum"] != 0, *flags)

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_not_negative(hyper, momentum="momentum value", weight_decay="weight_decay value")
        if hyper["nesterov"] and (hyper["momentum"] <= 0 or hyper["dampening"] != 0):
            raise ArgumentError(
                "Nesterov momentum requires a momentum and zero dampening "
                f"(got momentum={hyper['momentum']}, dampening={hyper['dampening']})"
            )
