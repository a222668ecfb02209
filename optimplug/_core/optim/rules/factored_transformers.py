"""Adafactor as transformers has it: a rate of its own, and a size of step that the weights set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.optim.facts import Facts
from optimplug._core.optim.hyperparameters import check_not_negative, check_rate, passed_on
from optimplug._core.optim.optimizer import Optimizer, required
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec, wide_type
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug.errors import ArgumentError

__all__ = [
    "TransformersAdafactor",
    "TransformersAdafactorRule",
    "over_root_of_squares",
]


@dataclass(frozen=True)
class TransformersAdafactorRule(Rule):
    """The math of :class:`TransformersAdafactor`, with its variants."""

    has_mean: bool = False
    """Whether the steps are averaged, as ``beta1`` says."""
    scales: bool = False
    """Whether a step is in proportion to the size of the weights."""
    decays: bool = False
    factored: bool = False
    """Whether of the squares only means over rows and over columns are kept."""
    dtype: torch.dtype | None = None
    """What the state is kept in, and computed in; None for the parameter's own type."""

    scope: ClassVar = "tensor"
    takes_complex: ClassVar = False
    temporaries: ClassVar = 4
    variant_state: ClassVar = ("exp_avg",)

    def suited(self, p: Tensor) -> TransformersAdafactorRule:
        return _suited(self, p.dim() >= 2, wide_type(p))

    @cached_property
    def state(self) -> tuple[StateSpec, ...]:
        mean = (StateSpec("exp_avg", dtype=self.dtype),) if self.has_mean else ()
        if not self.factored:
            return (*mean, StateSpec("exp_avg_sq", code="unsigned", dtype=self.dtype))
        rows = StateSpec("exp_avg_sq_row", over=-1, keeps_axis=False, dtype=self.dtype)
        cols = StateSpec("exp_avg_sq_col", over=-2, keeps_axis=False, dtype=self.dtype)
        return (*mean, rows, cols)

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        rate, beta1 = _rate(hyper, t), hyper["beta1"] or 0.0
        beta2 = 1.0 - t ** hyper["decay_rate"]
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1.0 - beta2,
            "eps": hyper["eps"][0],
            "least_size": hyper["eps"][1],
            "clip_threshold": hyper["clip_threshold"],
            "rate": rate,
            "minus_decay": -rate * hyper["weight_decay"],
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        change = k["beta2"], k["one_minus_beta2"], k["eps"]
        step = over_root_of_squares(g, g, self.factored, state, change)
        rate, minus_decay = k["rate"], k["minus_decay"]
        if self.scales:
            size = p.rms().clamp_min(k["least_size"])
            rate, minus_decay = size * rate, size * minus_decay
        rate = (step.rms() / k["clip_threshold"]).clamp_min(1.0).reciprocal() * rate
        if self.has_mean:
            mean = state["exp_avg"].mul_(k["beta1"])
            step, rate = mean.add_(step, alpha=rate * k["one_minus_beta1"]), 1.0
        if self.decays:
            # Not by a factor of a little less than 1, which float32 would round: that adds up.
            p.add_(p, alpha=minus_decay)
        p.add_(step, alpha=-rate)


def over_root_of_squares(
    x: Operand,
    of: Operand,
    factored: bool,
    state: Mapping[str, Operand],
    change: tuple[Any, Any, Any],
    kind: str = "sq",
) -> Operand:
    """Bring the means of the squares of ``of`` up to date, and return ``x`` over their root.

    Args:
        x: what is divided.
        of: whose squares are kept.
        factored: whether they are kept by rows and columns.
        state: with ``exp_avg_sq``, or ``exp_avg_sq_row`` and ``exp_avg_sq_col``.
        change: how much of the means stays, how much is new, and what is added to each square.
        kind: what stands for ``sq`` in the names.
    """
    beta, one_minus_beta, eps = change
    if not factored:
        v = state[f"exp_avg_{kind}"].mul_(beta).add_(of.mul(of).add_(eps), alpha=one_minus_beta)
        return v.rsqrt().mul_(x)
    rows = state[f"exp_avg_{kind}_row"].unsqueeze(-1).mul_(beta)
    cols = state[f"exp_avg_{kind}_col"].unsqueeze(-2).mul_(beta)
    rows.add_(of.mean_of_squares(-1).add_(eps), alpha=one_minus_beta)
    cols.add_(of.mean_of_squares(-2).add_(eps), alpha=one_minus_beta)
    return x.mul(rows.div(rows.mean(-2)).rsqrt_()).mul_(cols.rsqrt())


def _rate(hyper: Hyper, t: float) -> Any:
    if not hyper["relative_step"]:
        return hyper["lr"]
    return min(1e-6 * t if hyper["warmup_init"] else 1e-2, t**-0.5)


_rule = lru_cache(TransformersAdafactorRule)  # asked for at every step, for every group


@lru_cache
def _suited(
    rule: TransformersAdafactorRule, factored: bool, dtype: torch.dtype | None
) -> TransformersAdafactorRule:
    return replace(rule, factored=factored, dtype=dtype)


def _step(hyper: Hyper, size: float) -> float:
    # With relative_step it is the first steps', which get smaller.
    rate = 1e-2 if hyper["relative_step"] else float(hyper["lr"])
    return rate * (max(hyper["eps"][1], size) if hyper["scale_parameter"] else 1.0)


class TransformersAdafactor(Optimizer):
    r"""Adafactor as transformers has it, which may find its rate by itself.

    .. math::
        \beta_{2,t} &= 1 - t^{\tau} \\
        R_t &= \beta_{2,t} R_{t-1} + (1 - \beta_{2,t})\, \mathrm{mean_{cols}}(g_t^2 + \epsilon_1)
            \qquad C_t = \beta_{2,t} C_{t-1}
            + (1 - \beta_{2,t})\, \mathrm{mean_{rows}}(g_t^2 + \epsilon_1) \\
        u_t &= g_t \Big/ \sqrt{R_t C_t / \mathrm{mean}(R_t)} \\
        \alpha_t &= \max(\epsilon_2, \mathrm{RMS}(\theta_{t-1}))\, \rho_t \\
        \theta_t &= (1 - \alpha_t \lambda)\, \theta_{t-1}
            - \alpha_t\, u_t / \max(1, \mathrm{RMS}(u_t) / d)

    with :math:`(\epsilon_1, \epsilon_2)` = ``eps``, :math:`d` = ``clip_threshold``, :math:`\tau` =
    ``decay_rate``, :math:`\lambda` = ``weight_decay``, and :math:`\rho_t` = ``lr`` or, with
    ``relative_step``, :math:`\min(10^{-2}, 1/\sqrt t)`, with ``warmup_init`` too
    :math:`\min(10^{-6}\, t, 1/\sqrt t)`. Without ``scale_parameter``, :math:`\alpha_t = \rho_t`.
    With ``beta1`` the last term is a running mean of such steps. Tensors of less than two
    dimensions keep :math:`g_t^2` whole instead of :math:`R_t, C_t`; of more than two, the last two
    are rows and columns. RMS and means are those of the whole tensor, also of one of which each
    process has a part.

    With ``scale_parameter=False``, ``relative_step=False`` its usual rate is AdamW's times 5 to 10,
    such as 1e-3 for T5. With ``relative_step`` no schedule can move the rate: recipes and
    schedulers need ``relative_step=False`` and an ``lr``. State of each parameter: ``step``,
    ``exp_avg_sq_row`` and ``exp_avg_sq_col``, or ``exp_avg_sq``, and with ``beta1`` ``exp_avg``;
    all in float32 for parameters of narrow types, and so is the arithmetic. For torch's variant,
    see ``Adafactor``.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element; None with ``relative_step``.
        eps: what is added to the squares, and the least size of weights that a step is scaled by;
            each >= 0.
        clip_threshold: a direction whose RMS is larger is brought down to this, > 0.
        decay_rate: how fast the decay of the squares goes to 1, <= 0.
        beta1: decay rate of the mean of the steps, in [0, 1); None: no mean.
        weight_decay: decay per step relative to the rate, >= 0.
        scale_parameter: whether a step is in proportion to the RMS of the weights.
        relative_step: whether the rate comes from the number of the step instead of ``lr``.
        warmup_init: whether such a rate starts near 0; needs ``relative_step``.
        foreach: as in :class:`~optimplug.optim.Adam`.
        max_grad_norm: clip the global gradient norm to this inside the step; None: no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: as in :class:`~optimplug.optim.Adam`, with the next two.
        rounding_seed: likewise.
        state_dtype: likewise.

    Raises:
        ArgumentError: a value breaks its rule; at a step, a parameter is complex or a flat shard of
            FullyShardedDataParallel's.
        GradientError: at a step, a gradient is sparse.

    Example:
        >>> import torch
        >>> from optimplug.optim import TransformersAdafactor
        >>> w = torch.tensor([[1.0, 1.0]], requires_grad=True)
        >>> optimizer = TransformersAdafactor([w])
        >>> w.sum().backward()
        >>> optimizer.step()  # a hundredth of the weights' size
        >>> w
        tensor([[0.9900, 0.9900]], requires_grad=True)

    Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
    https://arxiv.org/abs/1804.04235; arguments, defaults and state keys are those of
    ``transformers.optimization.Adafactor``, and state dicts go both ways. What it keeps beside them
    as ``RMS`` is computed anew at each step here and left as it was loaded. Its
    ``AdafactorSchedule``, which asks the optimizer for its rates, does not work with this class. It
    takes an ``lr`` of None without ``relative_step`` and fails at the first step; here it is an
    error at once.
    """

    facts: ClassVar = Facts(
        purpose="next to no state for matrices, as transformers has it: T5",
        rate=(5, 10),
        paper="Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
        link="https://arxiv.org/abs/1804.04235",
        not_for="a schedule, unless relative_step=False and an lr are given",
        options={"beta1": 0.9},
        step=_step,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        *,
        foreach: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        given = passed_on(locals())
        if lr is None and not (relative_step or warmup_init):
            given["defaults"]["lr"] = required  # then each group must have one
        super().__init__(params, **given)

    @staticmethod
    def rule(hyper: Hyper) -> TransformersAdafactorRule:
        has_mean, decays = hyper["beta1"] is not None, bool(hyper["weight_decay"] != 0)
        return _rule(has_mean, bool(hyper["scale_parameter"]), decays)

    @staticmethod
    def check(hyper: Hyper) -> None:
        eps, beta1 = hyper["eps"], hyper["beta1"]
        if len(eps) != 2 or not min(eps) >= 0.0:
            raise ArgumentError(f"Invalid eps: {eps}; must be two numbers >= 0")
        if not hyper["clip_threshold"] > 0.0:
            raise ArgumentError(f"Invalid clip_threshold: {hyper['clip_threshold']}; must be > 0")
        if not hyper["decay_rate"] <= 0.0:
            raise ArgumentError(f"Invalid decay_rate: {hyper['decay_rate']}; must be <= 0")
        if beta1 is not None and not 0.0 <= beta1 < 1.0:
            raise ArgumentError(f"Invalid beta1: {beta1}; must be None or in [0, 1)")
        check_not_negative(hyper, weight_decay="weight_decay value")
        _check_where_the_rate_is_from(hyper)


def _check_where_the_rate_is_from(hyper: Hyper) -> None:
    if hyper["warmup_init"] and not hyper["relative_step"]:
        raise ArgumentError("`warmup_init=True` requires `relative_step=True`")
    if hyper["lr"] is None and not hyper["relative_step"]:
        raise ArgumentError("lr must be given where relative_step=False (got None)")
    if hyper["lr"] is not None and hyper["relative_step"]:
        raise ArgumentError(
            "Cannot combine manual `lr` and `relative_step=True` options: the rate then comes from "
            "the number of the step, and neither lr nor a schedule can move it; give "
            "relative_step=False beside an lr, or no lr"
        )
    if hyper["lr"] is not None:
        check_rate(hyper)
