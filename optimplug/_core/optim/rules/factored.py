"""Adafactor: of a matrix only the means of its rows and columns are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.optim.facts import Facts, a_rate
from optimplug._core.optim.hyperparameters import check_each, check_one_element, passed_on
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec
from optimplug._core.optim.storage.arguments import Rounding, StateDtype

__all__ = ["Adafactor", "AdafactorRule"]

_FACTORS = (StateSpec("row_var", over=-1), StateSpec("col_var", over=-2))


@dataclass(frozen=True)
class AdafactorRule(Rule):
    """The math of :class:`Adafactor`, with its variants."""

    maximize: bool = False
    decays: bool = False
    has_eps1: bool = False
    factored: bool = False

    scope: ClassVar = "tensor"
    takes_complex: ClassVar = False
    temporaries: ClassVar = 3

    @property
    def state(self) -> tuple[StateSpec, ...]:
        return _FACTORS if self.factored else (StateSpec("variance", code="unsigned"),)

    def suited(self, p: Tensor) -> AdafactorRule:
        return _matrix_rule(self) if p.dim() > 1 else self

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        lr, (eps1, eps2) = float(hyper["lr"]), hyper["eps"]
        return {
            "decay": 1 - lr * hyper["weight_decay"],
            "one_minus_beta2": t ** hyper["beta2_decay"],
            "eps1": eps1 or 0.0,
            "eps1_squared": (eps1 or 0.0) ** 2,
            "eps2": eps2,
            "rho": min(lr, 1 / (t**0.5)),
            "d": hyper["d"],
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        eps1, eps1_squared = k["eps1"], k["eps1_squared"]
        if not self.has_eps1:
            # bfloat16's would be larger than the gradients of most models. float16 cannot hold the
            # square of less than its own.
            narrow = p.dtype == torch.bfloat16
            eps1 = torch.finfo(torch.float32 if narrow else p.dtype).eps
            eps1_squared = eps1 * eps1
        if self.maximize:
            g = g.neg()
        alpha = p.rms().clamp_min(k["eps2"]) * k["rho"]
        if self.decays:
            p.mul_(k["decay"])
        if self.factored:
            row, column = state["row_var"], state["col_var"]
            row.lerp_(g.mean_of_squares(-1), k["one_minus_beta2"])
            column.lerp_(g.mean_of_squares(-2), k["one_minus_beta2"])
            estimate = row.mul(column).div_(row.mean(-2).clamp_min_(eps1))
        else:
            estimate = state["variance"].lerp_(g.mul(g), k["one_minus_beta2"])
        update = estimate.clamp_min(eps1_squared).rsqrt_().mul_(g)
        denominator = (update.norm() / (update.root_sizes() * k["d"])).clamp_min(1.0)
        p.add_(update, alpha=-alpha / denominator)


@lru_cache
def _matrix_rule(rule: AdafactorRule) -> AdafactorRule:
    return replace(rule, factored=True)


_rule = lru_cache(AdafactorRule)  # asked for at every step, for every group


class Adafactor(Optimizer):
    r"""Adafactor: AdamW without a running mean, its second moment by rows and columns.

    .. math::
        R_t &= \beta_t R_{t-1} + (1 - \beta_t)\, \mathrm{mean}_{col}(g_t^2) \qquad
            C_t = \beta_t C_{t-1} + (1 - \beta_t)\, \mathrm{mean}_{row}(g_t^2) \\
        \hat v_t &= R_t C_t / \max(\mathrm{mean}(R_t), \epsilon_1) \\
        u_t &= g_t \big/ \sqrt{\max(\hat v_t, \epsilon_1^2)} \\
        \theta_t &= (1 - \gamma \lambda)\, \theta_{t-1} - \max(\epsilon_2,
            \mathrm{RMS}(\theta_{t-1}))\, \min(\gamma, 1/\sqrt t)\;
            u_t / \max(1, \mathrm{RMS}(u_t) / d)

    with :math:`\gamma` = ``lr``, :math:`1 - \beta_t = t^\tau`, :math:`\tau` = ``beta2_decay``,
    :math:`(\epsilon_1, \epsilon_2)` = ``eps``, :math:`d` = ``d``, :math:`\lambda` =
    ``weight_decay``, :math:`g_t` the gradient (its negative with ``maximize``). Parameters of fewer
    than two dimensions keep :math:`\hat v` whole; of more than two, the last two are factored.

    The rate is relative to the size of the parameter: 1e-2 moves each by at most a hundredth of its
    own. State of each parameter: ``step``, and ``row_var`` and ``col_var``, or ``variance``: next
    to nothing for matrices.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: the largest relative rate, >= 0; a number or a tensor of one element.
        beta2_decay: the power of the update's number that new squares weigh, <= 0.
        eps: the smallest root of a second moment, and the smallest size of a parameter; each >= 0.
            None for the first: the precision of the parameter's type, of float32 for bfloat16.
        d: the largest RMS of an update before the rate, >= 1.
        weight_decay: decay per step relative to ``lr``, >= 0.
        foreach: as in :class:`~optimplug.optim.Adam`.
        maximize: ascend instead of descend.
        max_grad_norm: clip the global gradient norm to this inside the step; None: no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: as in :class:`~optimplug.optim.Adam`, with the next two.
        rounding_seed: likewise.
        state_dtype: likewise.

    Raises:
        ArgumentError: a value breaks its rule.
        GradientError: at a step, a gradient is sparse, or a parameter complex.

    Example:
        >>> import torch
        >>> from optimplug.optim import Adafactor
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = Adafactor([w], lr=0.1)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.9000], requires_grad=True)

    Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
    https://arxiv.org/abs/1804.04235, in torch's form. Deviation from torch: without a first
    ``eps``, torch takes the precision of the first parameter's type for all that follow, 7.8e-3 for
    bfloat16, by which small gradients hardly move a weight; here it is float32's.
    """

    facts: ClassVar = Facts(
        purpose="next to no state for matrices: models that fill the memory",
        rate=None,
        paper="Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
        link="https://arxiv.org/abs/1804.04235",
        rate_means="the largest step, relative to the parameter's own size: 1e-2 is usual",
        step=lambda hyper, size: a_rate(hyper, size) * max(hyper["eps"][1], size),
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals()))

    @staticmethod
    def rule(hyper: Hyper) -> AdafactorRule:
        decays, has_eps1 = bool(hyper["weight_decay"] != 0), hyper["eps"][0] is not None
        return _rule(bool(hyper["maximize"]), decays, has_eps1)

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_one_element(hyper)
        eps1, eps2 = hyper["eps"]
        check_each(
            (hyper["lr"] >= 0.0, "Learning rate should be >= 0", hyper["lr"]),
            (hyper["beta2_decay"] <= 0.0, "beta2_decay should be <= 0", hyper["beta2_decay"]),
            (eps1 is None or eps1 >= 0.0, "epsilon1 should be >= 0", eps1),
            (eps2 >= 0.0, "epsilon2 should be >= 0", eps2),
            (hyper["d"] >= 1.0, "Clipping threshold d should be >= 1", hyper["d"]),
            (hyper["weight_decay"] >= 0.0, "weight_decay should be >= 0", hyper["weight_decay"]),
        )
