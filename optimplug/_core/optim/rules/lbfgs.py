"""LBFGS: steps along directions that the changes of the gradient have bent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from optimplug._core.arguments import require_count
from optimplug._core.internals import is_flattened, outside_graphs
from optimplug._core.optim.counts import Count
from optimplug._core.optim.facts import Facts
from optimplug._core.optim.gradients import clip_coefficient
from optimplug._core.optim.hyperparameters import check_rate, passed_on
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Hyper, Operand, Rule
from optimplug._core.optim.rules.curvature import Memory
from optimplug._core.optim.rules.line_search import Point, strong_wolfe
from optimplug._core.optim.rules.vector import flat_gradient, move, write
from optimplug._core.optim.shards import is_sharded
from optimplug.errors import ArgumentError, StateError

__all__ = ["LBFGS", "LBFGSRule"]


@dataclass(frozen=True)
class LBFGSRule(Rule):
    """What there is of :class:`LBFGS` for a parameter by itself: nothing, all go together."""

    scope: ClassVar = "matrix"  # or more: nothing can be done to a part of it
    counts_steps: ClassVar = False
    state: ClassVar = ()
    storage_refusal: ClassVar = (
        "it looks for its way by losses at weights in between, which are those that the model has, "
        "and its curvature is differences of gradients there; use float32 weights"
    )

    def coefficients(self, hyper: Hyper, t: Count) -> dict[str, Any]:
        return {}

    def update(
        self, p: Operand, g: Operand, state: Mapping[str, Operand], k: Mapping[str, Any]
    ) -> None:
        raise NotImplementedError("LBFGS updates all parameters as one vector")


_RULE = LBFGSRule()


class LBFGS(Optimizer):
    r"""L-BFGS: a quasi-Newton method, for few parameters and a loss of all data.

    .. math::
        d_k = -H_k\, g_k, \qquad \theta_{k+1} = \theta_k + t_k\, d_k

    where :math:`g_k` is the gradient of all parameters as one vector, and :math:`H_k` the inverse
    of the curvature, as the last ``history_size`` changes of the gradient show it: from
    :math:`y_k = g_{k+1} - g_k` and :math:`s_k = t_k d_k`,

    .. math::
        H_{k+1} = (I - \rho_k s_k y_k^\top)\, H_k\, (I - \rho_k y_k s_k^\top)
            + \rho_k s_k s_k^\top, \qquad \rho_k = 1 / y_k^\top s_k

    beginning with :math:`y^\top s / y^\top y`. The length :math:`t_k` is ``lr`` (the first one at
    the most :math:`\text{lr} / \lVert g \rVert_1`), or what a search from there finds.

    Each step does up to ``max_iter`` of these, and evaluates the closure for each. ``lr`` is no
    rate like AdamW's: 1 is a whole quasi-Newton step. State, under the first parameter: ``d t
    old_dirs old_stps ro H_diag prev_flat_grad prev_loss al func_evals n_iter``, up to
    ``2 * history_size + 2`` vectors as long as all parameters together.

    Args:
        params: tensors or ``(name, tensor)`` pairs, or one dict of either with its settings; whole,
            all on one device.
        lr: factor of each step, >= 0; a number or a tensor of one element.
        max_iter: the most iterations in a step, >= 1.
        max_eval: the most evaluations of the closure in a step, >= 1; None: ``max_iter * 5 // 4``.
        tolerance_grad: stop where no element of the gradient is larger.
        tolerance_change: stop where neither loss nor parameters change by more.
        history_size: how many changes of the gradient are remembered, >= 1.
        line_search_fn: ``"strong_wolfe"``: search for a length at which the loss is lower and
            flatter. None: take ``lr`` as it is.
        max_grad_norm: clip the norm of the gradient to this at *each* evaluation of the closure;
            the curvature then is that of the clipped gradients. ``grad_norm`` is that of a step's
            first evaluation. None: no clipping.
        skip_nonfinite: leave out a step that begins with an infinite or NaN gradient, and undo one
            that has ended with such a gradient, or with such parameters.

    Raises:
        ArgumentError: a value breaks its rule, there are several groups, or, at a step, a parameter
            is a shard.
        TypeError: ``step`` is called without a closure.

    Example:
        >>> import torch
        >>> from optimplug.optim import LBFGS
        >>> w = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = LBFGS([w], line_search_fn="strong_wolfe")
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = ((w - torch.tensor([3.0, 5.0])) ** 2).sum()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> w
        tensor([3.0000, 5.0000], requires_grad=True)

    Source: Nocedal and Wright, "Numerical Optimization", algorithms 3.5 and 7.4; the defaults, the
    search and its constants are torch's, which come from minFunc,
    https://www.cs.ubc.ca/~schmidtm/Software/minFunc.html.
    """

    facts: ClassVar = Facts(
        purpose="few parameters and a loss of all data: fitting curves, physics",
        rate=None,
        paper="Numerical Optimization, algorithms 3.5 and 7.4",
        link="https://doi.org/10.1007/978-0-387-40065-5",
        rate_means="a factor of whole steps: 1 is usual",
        not_for="batches, whose noise it takes for curvature",
        sharded=False,
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        if max_eval is None:
            max_eval = require_count("max_iter", max_iter, 1) * 5 // 4
        super().__init__(params, **passed_on(locals()))

    @staticmethod
    def rule(hyper: Hyper) -> LBFGSRule:
        return _RULE

    @staticmethod
    def check(hyper: Hyper) -> None:
        check_rate(hyper)
        for name in ("max_iter", "max_eval", "history_size"):
            require_count(name, hyper[name], 1)
        if hyper["line_search_fn"] not in (None, "strong_wolfe"):
            raise ArgumentError(
                f"Invalid line_search_fn: {hyper['line_search_fn']!r}; only 'strong_wolfe' is "
                "supported, or None for no search"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)  # what is wrong with the group itself comes first
        if len(self.param_groups) > 1:
            self.param_groups.pop()
            raise ArgumentError(
                "LBFGS doesn't support per-parameter options (parameter groups); give it one group"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        _refuse_other_states(state_dict)
        super().load_state_dict(state_dict)
        for p, kept in self.state.items():
            for name, values in kept.items():
                if isinstance(values, list):
                    kept[name] = [v.to(p.device) if isinstance(v, Tensor) else v for v in values]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do up to ``max_iter`` iterations, each of which evaluates the closure anew.

        Args:
            closure: sets the gradients to zero, computes the loss and its gradients, and returns
                the loss.

        Returns:
            What the closure returned first.
        """
        if closure is None:
            raise TypeError(
                "LBFGS.step() missing 1 required positional argument: 'closure': it evaluates the "
                "loss several times in a step, so give it a function that does that and calls "
                "backward"
            )
        _refuse_parts(self._vector)
        self.stored_rule(self.param_groups[0])  # which refuses a storage asked for between steps
        with torch.no_grad():
            return self._minimize(torch.enable_grad()(closure))

    def state_bytes(self) -> int:
        """Return the bytes of state when the history is full; it begins with a few vectors."""
        vector = sum(p.nbytes for p in self._vector)
        return (2 * int(self.param_groups[0]["history_size"]) + 2) * vector

    @property
    def _vector(self) -> list[Tensor]:
        """The parameters, which are worked on as one vector."""
        return self.param_groups[0]["params"]  # type: ignore[no-any-return]

    @outside_graphs
    def _minimize(self, closure: Callable[[], Any]) -> Any:
        group, params = self.param_groups[0], self._vector
        returned = closure()
        loss, grad = _number(returned), self._gradient()
        norm = self.grad_norm
        if self._skips():
            return returned
        begun = [p.clone() for p in params] if self.skip_nonfinite else []
        memory = Memory.of(self.state[params[0]])
        memory.func_evals += 1
        if not grad.abs().max() <= group["tolerance_grad"]:
            grad = self._iterate(closure, loss, grad, memory)
            self.grad_norm = norm
        if begun and not all(t.isfinite().all() for t in (grad, *params)):
            self.skipped_steps += 1
            write(params, begun)
        else:
            memory.keep(self.state[params[0]])
        return returned

    def _iterate(
        self, closure: Callable[[], Any], loss: float, grad: Tensor, memory: Memory
    ) -> Tensor:
        """Move the parameters from a point with this loss and gradient; return the last one."""
        group = self.param_groups[0]
        least = group["tolerance_change"]
        evaluations = 1
        for iteration in range(1, int(group["max_iter"]) + 1):
            d = memory.turn(grad, int(group["history_size"]))
            memory.prev_loss = loss
            memory.t = t = _first_length(group["lr"], grad, memory.n_iter)
            slope = grad.dot(d)
            if slope > -least:
                break
            last = iteration == group["max_iter"]
            start = Point(0, loss, grad, slope)
            if group["line_search_fn"] is not None:
                most = int(group["max_eval"]) - evaluations
                end, tried = self._search(closure, start, d, t, most)
                memory.t, loss, grad = end.t, end.loss, end.grad
                move(self._vector, d, end.t)
            else:
                move(self._vector, d, t)
                tried = 0 if last else 1  # where the last one ends, the next step looks first
                if not last:
                    loss, grad = _number(closure()), self._gradient()
            evaluations += tried
            memory.func_evals += tried
            if (
                last
                or evaluations >= group["max_eval"]
                or grad.abs().max() <= group["tolerance_grad"]
                or d.mul(memory.t).abs().max() <= least
                or abs(loss - memory.prev_loss) < least
            ):
                break
        return grad

    def _search(
        self, closure: Callable[[], Any], start: Point, d: Tensor, t: Any, most: int
    ) -> tuple[Point, int]:
        params = self._vector
        begun = [p.clone(memory_format=torch.contiguous_format) for p in params]

        def evaluate(t: Any) -> Point:
            move(params, d, t)
            try:
                loss, grad = _number(closure()), self._gradient()
            finally:
                write(params, begun)
            return Point(t, loss, grad, grad.dot(d))

        return strong_wolfe(evaluate, start, t, most, d.abs().max())

    def _gradient(self) -> Tensor:
        """Return the gradient as one vector, clipped if that is asked for."""
        grad = torch.cat([flat_gradient(p) for p in self._vector])
        if self._needs_norm:
            self.grad_norm = torch.linalg.vector_norm(grad)
            if self.max_grad_norm is not None:
                grad.mul_(clip_coefficient(self.grad_norm, self.max_grad_norm))
        return grad


def _number(loss: Any) -> float:
    # To read a number from a tensor that has a graph is worth a warning to torch.
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


def _first_length(lr: Any, grad: Tensor, n_iter: int) -> Any:
    """Return how far to go along a direction of which nothing is known but its slope."""
    if isinstance(lr, Tensor) and lr.dim() != 0:
        lr = lr.squeeze()
    return min(1.0, 1.0 / grad.abs().sum()) * lr if n_iter == 1 else lr


def _refuse_other_states(state_dict: Mapping[str, Any]) -> None:
    """Refuse the state of another optimizer, or one of which something is gone."""
    state = state_dict.get("state")
    for kept in state.values() if isinstance(state, Mapping) else ():
        missing = Memory.lacks(kept) if isinstance(kept, Mapping) and kept else []
        if missing:
            raise StateError(f"a state of LBFGS must have {missing} too (got {sorted(kept)})")


def _refuse_parts(params: list[Tensor]) -> None:
    """Refuse parameters of which only a part is here: their products would lack the rest."""
    for p in params:
        if is_sharded(p) or is_flattened(p):
            raise ArgumentError(
                f"LBFGS works on all parameters as one vector, but of one of shape "
                f"{tuple(p.shape)} only a shard is in this process; use an optimizer that updates "
                "each element by itself, such as AdamW"
            )
