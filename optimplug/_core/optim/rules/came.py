"""CAME: Adafactor with momentum, which goes slower where its steps disagree with their mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.optim.facts import Facts
from optimplug._core.optim.hyperparameters import (
    check_betas,
    check_not_negative,
    check_rate,
    passed_on,
)
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule, StateSpec, wide_type
from optimplug._core.optim.rules.factored_transformers import over_root_of_squares
from optimplug._core.optim.storage.arguments import Rounding, StateDtype
from optimplug.errors import ArgumentError

__all__ = ["CAME", "CAMERule"]


@dataclass(frozen=True)
class CAMERule(Rule):
    """The math of :class:`CAME`, with its variants."""

    maximize: bool = False
    decays: bool = False
    factored: bool = False
    """Whether of the squares only means over rows and over columns are kept."""
    dtype: torch.dtype | None = None
    """What these are kept in, and all is computed in; None for the parameter's own type."""

    scope: ClassVar = "tensor"
    counts_steps: ClassVar = False
    takes_complex: ClassVar = False
    temporaries: ClassVar = 4

    def suited(self, p: Tensor) -> CAMERule:
        return _suited(self, p.dim() >= 2, wide_type(p))

    @cached_property
    def state(self) -> tuple[StateSpec, ...]:
        if not self.factored:
            return (
                StateSpec("exp_avg"),
                StateSpec("exp_avg_sq", code="unsigned", dtype=self.dtype),
            )
        kinds = [(f"exp_avg_{kind}_row", f"exp_avg_{kind}_col") for kind in ("sq", "res")]
        factors = [
            StateSpec(name, over=axis, keeps_axis=False, dtype=self.dtype)
            for names in kinds
            for name, axis in zip(names, (-1, -2), strict=True)
        ]
        return (StateSpec("exp_avg"), *factors)

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        beta1, beta2, beta3 = hyper["betas"]
        return {
            "decay": 1 - hyper["lr"] * hyper["weight_decay"],
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "beta3": beta3,
            "one_minus_beta3": 1 - beta3,
            "eps1": hyper["eps1"],
            "eps2": hyper["eps2"],
            "clip_threshold": hyper["clip_threshold"],
            "minus_lr": -hyper["lr"],
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        if self.maximize:
            g = g.neg()
        if self.decays:
            p.mul_(k["decay"])
        change = k["beta2"], k["one_minus_beta2"], k["eps1"]
        step = over_root_of_squares(g, g, self.factored, state, change)
        step.mul_((step.rms() / k["clip_threshold"]).clamp_min(1.0).reciprocal())
        mean = state["exp_avg"].lerp_(step, k["one_minus_beta1"])
        if self.factored:
            change = k["beta3"], k["one_minus_beta3"], k["eps2"]
            rest = step.add_(mean, alpha=-1.0)
            step = over_root_of_squares(mean, rest, True, state, change, "res")
        else:
            step = mean
        p.add_(step, alpha=k["minus_lr"])


_rule = lru_cache(CAMERule)  # asked for at every step, for every group


@lru_cache
def _suited(rule: CAMERule, factored: bool, dtype: torch.dtype | None) -> CAMERule:
    return replace(rule, factored=factored, dtype=dtype)


class CAME(Optimizer):
    r"""CAME: steps of Adafactor, averaged, and divided by how much they differ from the average.

    .. math::
        V_t &= \beta_2 V_{t-1} + (1 - \beta_2)(g_t^2 + \epsilon_1) \qquad
            u_t = g_t / \sqrt{V_t} \\
        u_t &\leftarrow u_t / \max(1, \mathrm{RMS}(u_t) / d) \qquad
            m_t = \beta_1 m_{t-1} + (1 - \beta_1)\, u_t \\
        S_t &= \beta_3 S_{t-1} + (1 - \beta_3)((u_t - m_t)^2 + \epsilon_2) \\
        \theta_t &= (1 - \gamma \lambda)\, \theta_{t-1} - \gamma\, m_t / \sqrt{S_t}

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2, \beta_3)` = ``betas``,
    :math:`\epsilon_1, \epsilon_2` = ``eps1``, ``eps2``, :math:`d` = ``clip_threshold``,
    :math:`\lambda` = ``weight_decay``, :math:`g_t` the gradient (its negative with ``maximize``).
    Of :math:`V` and :math:`S` only the means over rows and over columns are kept, :math:`R` and
    :math:`C`, that stand for :math:`R\, C / \mathrm{mean}(R)`; of tensors of more than two
    dimensions the last two are rows and columns. Tensors of less than two keep :math:`V` whole and
    have no :math:`S`: they move by :math:`\gamma\, m_t`. RMS and means are those of the whole
    tensor, also of one of which each process has a part.

    Its usual rate is a fifth to a half of AdamW's. State of each parameter: ``exp_avg``, and
    ``exp_avg_sq_row``, ``exp_avg_sq_col``, ``exp_avg_res_row``, ``exp_avg_res_col``, or
    ``exp_avg_sq``: little more than half of AdamW's.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: learning rate, >= 0; a number or a tensor of one element.
        betas: decay rates of the mean step, of the squares, and of the squared differences, each
            in [0, 1).
        weight_decay: decay per step relative to ``lr``, >= 0.
        clip_threshold: a direction whose RMS is larger is brought down to this, > 0.
        eps1: added to the squares, >= 0.
        eps2: added to the squared differences, >= 0.
        maximize: ascend instead of descend.
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
        >>> from optimplug.optim import CAME
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = CAME([w], lr=0.1)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()  # a tenth of a direction that was clipped to 1
        >>> w
        tensor([0.9900], requires_grad=True)

    Source: Luo et al., "CAME: Confidence-guided Adaptive Memory Efficient Optimization",
    https://arxiv.org/abs/2307.02047. Arguments, defaults and state keys are those of the package
    pytorch-optimizer, whose states load here. Of its options these are not here:
    ``weight_decouple=False``, ``fixed_decay`` and ``ams_bound``. For parameters of narrow types it
    keeps and computes everything in those; here the arithmetic is in float32, and so is what is
    factored, which is small.
    """

    facts: ClassVar = Facts(
        purpose="Adafactor with a mean of its steps: language models in half of AdamW's memory",
        rate=(0.2, 0.5),
        paper="CAME: Confidence-guided Adaptive Memory Efficient Optimization",
        link="https://arxiv.org/abs/2307.02047",
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 2e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        weight_decay: float = 0.0,
        *,
        clip_threshold: float = 1.0,
        eps1: float = 1e-30,
        eps2: float = 1e-16,
        maximize: bool = False,
        foreach: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals()))

    @staticmethod
    def rule(hyper: Hyper) -> CAMERule:
        return _rule(bool(hyper["maximize"]), bool(hyper["weight_decay"] != 0))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_betas(hyper, 3)
        if not hyper["clip_threshold"] > 0.0:
            raise ArgumentError(f"Invalid clip_threshold: {hyper['clip_threshold']}; must be > 0")
        check_not_negative(
            hyper, weight_decay="weight_decay value", eps1="eps1 value", eps2="eps2 value"
        )
