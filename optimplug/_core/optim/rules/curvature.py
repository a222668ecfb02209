"""What L-BFGS remembers of the curvature, and the directions that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

__all__ = ["Memory"]


@dataclass
class Memory:
    """What a direction is made of; its fields are the keys of torch's state."""

    func_evals: int = 0
    n_iter: int = 0
    d: Any = None
    """The last direction."""
    t: Any = None
    """How far it was followed."""
    old_dirs: list[Tensor] = field(default_factory=list)
    """The last changes of the gradient, the oldest first."""
    old_stps: list[Tensor] = field(default_factory=list)
    """The steps at which they were seen."""
    ro: list[Tensor] = field(default_factory=list)
    """One over the product of each two."""
    H_diag: Any = 1
    """The first guess at the inverse curvature."""
    prev_flat_grad: Any = None
    prev_loss: Any = None
    al: list[Any] = field(default_factory=list)
    """Torch's scratch, as long as the history may become; nothing is read from it."""

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Memory:
        """Return a copy of what a state holds."""
        names = cls._names() & kept.keys()
        given: dict[str, Any] = {
            name: list(kept[name]) if isinstance(kept[name], list) else kept[name] for name in names
        }
        return cls(**given)

    @classmethod
    def lacks(cls, kept: Mapping[str, Any]) -> list[str]:
        """Return which keys a state should have besides those that it has."""
        optional = {"al"} if kept.get("n_iter") else cls._names() - {"func_evals", "n_iter"}
        return sorted(cls._names() - optional - kept.keys())

    @classmethod
    def _names(cls) -> set[str]:
        return {f.name for f in fields(cls)}

    def keep(self, kept: dict[str, Any]) -> None:
        """Write it into a state, which then is as torch's."""
        found = {name: getattr(self, name) for name in self._names()}
        if self.n_iter == 0:  # nothing but an evaluation
            found = {name: found[name] for name in ("func_evals", "n_iter")}
        elif not self.al:
            del found["al"]
        kept.update(found)

    def turn(self, grad: Tensor, history_size: int) -> Tensor:
        """Return the direction from a point with this gradient; remember the way to it."""
        self.n_iter += 1
        if self.n_iter == 1:
            self.old_dirs, self.old_stps, self.ro, self.H_diag = [], [], [], 1
            self.d = grad.neg()
        else:
            self._remember(grad.sub(self.prev_flat_grad), self.d.mul(self.t), history_size)
            self.d = self._bent(grad, history_size)
        self.prev_flat_grad = grad
        return self.d  # type: ignore[no-any-return]

    def _remember(self, change: Tensor, step: Tensor, history_size: int) -> None:
        product = change.dot(step)
        if not product > 1e-10:
            return
        for column in (self.old_dirs, self.old_stps, self.ro):
            del column[: max(0, len(column) - history_size + 1)]
        self.old_dirs.append(change)
        self.old_stps.append(step)
        self.ro.append(1.0 / product)
        self.H_diag = product / change.dot(change)

    def _bent(self, grad: Tensor, history_size: int) -> Tensor:
        """Return minus the gradient, times the inverse curvature that is remembered."""
        pairs = list(zip(self.old_dirs, self.old_stps, self.ro, strict=True))
        weights: list[Any] = []
        q = grad.neg()
        for change, step, ro in reversed(pairs):
            weights.append(step.dot(q) * ro)
            q.add_(change, alpha=-weights[-1])
        weights.reverse()
        self.al = weights + [None] * (history_size - len(weights))
        r = q.mul(self.H_diag)
        for (change, step, ro), weight in zip(pairs, weights, strict=True):
            r.add_(step, alpha=weight - change.dot(r) * ro)
        return r
