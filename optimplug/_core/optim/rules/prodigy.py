"""Prodigy: a rate that is learnt from how far the weights have come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.arguments import require_count, require_number
from optimplug._core.optim.facts import Facts, Rates
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

__all__ = ["Prodigy", "ProdigyRule"]


@dataclass(frozen=True)
class ProdigyRule(Rule):
    """The math of :class:`Prodigy`, with its variants."""

    decays: bool = False
    decouples: bool = True
    has_momentum: bool = True

    scope: ClassVar = "tensor"
    counts_in_groups: ClassVar = True
    measures: ClassVar = ("gain", "distance")
    variant_state: ClassVar = ("exp_avg",)
    temporaries: ClassVar = 3

    @property
    def state(self) -> tuple[StateSpec, ...]:
        momentum = (StateSpec("exp_avg"),) if self.has_momentum else ()
        return (
            StateSpec("s", code=None, may_be_flat=True),
            StateSpec("p0", code=None, init=torch.clone, may_be_flat=True, is_point=True),
            *momentum,
            StateSpec("exp_avg_sq", code="unsigned"),
        )

    def coefficients(self, hyper: Hyper, t: float) -> dict[str, Any]:
        d, (beta1, beta2) = hyper["d"], hyper["betas"]
        rate, relative = _rate(hyper), hyper["d"] / hyper["d0"]
        return {
            "weight_decay": hyper["weight_decay"],
            "minus_decay": -hyper["weight_decay"] * rate,
            "gain": relative * rate,
            "beta1": beta1,
            "new_mean": d * (1 - beta1),
            "beta2": beta2,
            "new_square": d * d * (1 - beta2),
            "beta3": _beta3(hyper),
            "new_distance": relative * (d if hyper["safeguard_warmup"] else rate),
            "eps": d * hyper["eps"],
            "minus_rate": -rate,
            "minus_grad_rate": -rate * d,
        }

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        s, v = state["s"], state["exp_avg_sq"]
        if self.decays and not self.decouples:
            g = g.add(p, alpha=k["weight_decay"])
        gain = state["p0"].add(p, alpha=-1.0).mul_(g).sum() * k["gain"]
        v.mul_(k["beta2"]).addcmul_(g, g, value=k["new_square"])
        s.mul_(k["beta3"]).add_(g, alpha=k["new_distance"])
        denominator = v.sqrt().add_(k["eps"])
        if self.decays and self.decouples:
            p.add_(p, alpha=k["minus_decay"])
        if self.has_momentum:
            m = state["exp_avg"]
            m.mul_(k["beta1"]).add_(g, alpha=k["new_mean"])
            p.addcdiv_(m, denominator, value=k["minus_rate"])
        else:
            p.addcdiv_(g, denominator, value=k["minus_grad_rate"])
        return {"gain": gain, "distance": s.abs().sum()}

    def next_settings(self, hyper: Hyper, totals: Mapping[str, float]) -> dict[str, Any]:
        # Without a gradient, or one that is 0 in every place, nothing has been learnt.
        if not totals or totals["distance"] == 0:
            return {}
        k = hyper["k"] + 1
        if not _rate(hyper) > 0:
            return {"k": k}
        numerator = _beta3(hyper) * hyper["d_numerator"] + totals["gain"]
        found = hyper["d_coef"] * numerator / totals["distance"]
        d = max(hyper["d"], found) if hyper["d"] == hyper["d0"] else hyper["d"]
        largest = max(hyper["d_max"], found)
        return {
            "k": k,
            "d_numerator": numerator,
            "d_max": largest,
            "d": min(largest, d * hyper["growth_rate"]),
        }

    def pools(self, hypers: Sequence[Hyper]) -> list[list[int]]:
        # One scale fits all whose rates are the same, as in the authors' code, and that differ in
        # nothing by which it is found.
        pools: dict[Any, list[int]] = {}
        for i, hyper in enumerate(hypers):
            betas = tuple(map(float, hyper["betas"]))
            settings = tuple(None if hyper[key] is None else float(hyper[key]) for key in _SHARED)
            pools.setdefault((betas, settings), []).append(i)
        return list(pools.values())


_SHARED = (
    *("lr", "beta3", "d", "d0", "d_max", "d_numerator", "d_coef", "growth_rate"),
    *("use_bias_correction", "safeguard_warmup"),
)
"""What groups have in common whose scale is one."""


def _beta3(hyper: Hyper) -> float:
    beta3 = hyper["beta3"]
    return float(hyper["betas"][1] ** 0.5 if beta3 is None else beta3)


def _rate(hyper: Hyper) -> float:
    rate = float(hyper["d"] * hyper["lr"])
    if not hyper["use_bias_correction"]:
        return rate
    t, (beta1, beta2) = hyper["k"] + 1, hyper["betas"]
    return rate * float((1 - beta2**t) ** 0.5 / (1 - beta1**t))


_rule = lru_cache(ProdigyRule)  # asked for at every step, for every group


class Prodigy(Optimizer):
    r"""Prodigy: AdamW that finds its rate itself, from how far the weights have come.

    .. math::
        r_t &= \sqrt{\beta_2}\, r_{t-1} + \frac{d_t^2}{d_0} \gamma \langle g_t, \theta_0 -
            \theta_t \rangle \qquad
            s_t = \sqrt{\beta_2}\, s_{t-1} + \frac{d_t^2}{d_0} \gamma\, g_t \\
        d_{t+1} &= \max(d_t,\; c\, r_t / \lVert s_t \rVert_1) \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, d_t g_t \qquad
            v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, d_t^2 g_t^2 \\
        \theta_{t+1} &= \theta_t - d_t \gamma\, (m_t / (\sqrt{v_t} + d_t \epsilon)
            + \lambda\, \theta_t)

    with :math:`\gamma` = ``lr``, :math:`(\beta_1, \beta_2)` = ``betas``, :math:`\epsilon` =
    ``eps``, :math:`\lambda` = ``weight_decay``, :math:`d_1` = ``d0``, :math:`c` = ``d_coef``.
    ``beta3`` stands for :math:`\sqrt{\beta_2}`.

    ``lr`` is a factor of what is found: leave it at 1, and let a schedule lower it. Groups with the
    same settings share one :math:`d`, from the parameters of all; groups whose rates differ, as by
    ``layer_decay``, have one each. State of each parameter: ``step``, ``s``, ``p0``, ``exp_avg``
    (not where ``betas[0]`` is 0), ``exp_avg_sq``, twice AdamW's; of each group: ``d``, ``d_max``,
    ``d_numerator``, ``k``.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either with their own settings.
        lr: the factor, >= 0; a number or a tensor of one element.
        betas: decay rates of the two running means, each in [0, 1).
        beta3: of the sums by which :math:`d` is found, in [0, 1); None: the root of the second.
        eps: added to the denominator, >= 0.
        weight_decay: >= 0.
        decouple: decay as AdamW does; False: add the decay to the gradient.
        use_bias_correction: correct the rate as Adam does.
        safeguard_warmup: leave ``lr`` out of what :math:`d` is divided by, for schedules that begin
            near 0.
        d0: what :math:`d` begins with, > 0.
        d_coef: a factor of what is found, > 0.
        growth_rate: by how much :math:`d` may grow in a step, >= 1.
        foreach: as in :class:`~optimplug.optim.Adam`.
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
        >>> from optimplug.optim import Prodigy
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = Prodigy([w], d0=0.1)
        >>> (3 * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.6838], requires_grad=True)

    Source: Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner",
    https://arxiv.org/abs/2306.06101, and the package prodigyopt. Deviations: that refuses groups
    with different rates. Beside :math:`\epsilon`, and without momentum as the step's factor, it
    takes the next :math:`d`, which needs a second pass over all parameters; here, as in the paper,
    all of a step has one. At a step whose gradients have all been 0 it does not decay. Its
    checkpoints load here, but not the other way, since it keeps ``s`` and ``p0`` in one dimension.
    Its ``slice_p`` is not here.
    """

    facts: ClassVar = Facts(
        purpose="runs without a search for the rate, at twice AdamW's memory",
        rate=None,
        paper="Prodigy: An Expeditiously Adaptive Parameter-Free Learner",
        link="https://arxiv.org/abs/2306.06101",
        rate_means="a factor of the rate that it finds: 1",
        rates=lambda hyper: Rates(0.1, 10.0, "it is a factor of the rate that is found; take 1"),
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = float("inf"),
        *,
        foreach: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        super().__init__(params, **passed_on(locals(), d=d0, d_max=d0, d_numerator=0.0, k=0))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; with a ``d0`` of its own, it begins there.

        Raises:
            ArgumentError: as in :meth:`Optimizer.add_param_group`.
        """
        if isinstance(param_group, dict) and "d0" in param_group:
            begin = dict.fromkeys(("d", "d_max"), param_group["d0"])
            param_group = {**begin, **param_group}
        super().add_param_group(param_group)

    @staticmethod
    def rule(hyper: Hyper) -> ProdigyRule:
        decays = bool(hyper["weight_decay"] != 0)
        return _rule(decays, bool(hyper["decouple"]), bool(hyper["betas"][0] > 0))

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        check_betas(hyper)
        check_not_negative(hyper, eps="epsilon value", weight_decay="weight_decay value")
        beta3 = hyper["beta3"]
        for name, holds, must in (
            ("beta3", beta3 is None or 0.0 <= beta3 < 1.0, "in [0, 1), or None"),
            ("d0", hyper["d0"] > 0, "> 0"),
            ("d_coef", hyper["d_coef"] > 0, "> 0"),
            ("growth_rate", hyper["growth_rate"] >= 1, ">= 1"),
        ):
            if not holds:
                raise ArgumentError(f"Invalid {name}: {hyper[name]}; must be {must}")
        # What a group has learnt, which a state may bring.
        require_count("k", hyper["k"])
        require_number("d_numerator", hyper["d_numerator"])
        for name in ("d", "d_max"):
            require_number(name, hyper[name], "a finite number > 0", lambda d: d > 0)
