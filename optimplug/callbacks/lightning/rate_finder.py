"""A sweep over rates as a fit begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from optimplug.callbacks.rate_finder import RateFinder as _Finder
from optimplug.callbacks.rate_finder import refuse
from optimplug.lightning.events import RunEvents
from optimplug.lightning.horizon import accumulated
from optimplug.lightning.internals import callbacks_of, ready_batch
from optimplug.lightning.package import LightningModule, OwnCallback, Trainer
from optimplug.recipe import Run

__all__ = ["RateFinder"]


class RateFinder(_Finder, OwnCallback):
    """Sweeps over rates as a fit begins, and says which it suggests; see :func:`.find_lr`.

    One multiplier is for all groups, so that they keep their ratios (Lightning's own
    LearningRateFinder gives all groups one rate). The losses are those of ``training_step``, which
    is called without the hooks around a batch, and what it logs is left out. The fit then goes on
    as if nothing had been.

    Args:
        updates: as for :func:`.find_lr`.
        lowest: likewise.
        highest: likewise.
        diverges: likewise.
        plot: a PNG, SVG or PDF file to draw the curve into; None for none.
        html: a page to write; None for none.

    Attributes:
        curve: what was found; None before.

    Raises:
        ArgumentError: a setting breaks its rule. As the fit begins: it has no recipe, or several
            processes, gradients that are scaled (``16-mixed``), several data loaders, or it steps
            by hand.

    Example:
        ``Trainer(callbacks=[RateFinder(plot="rates.png")])``
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find, unless the fit goes on from a checkpoint.

        Raises:
            ArgumentError: as for the class.
        """
        run = next((c.run for c in callbacks_of(trainer) if isinstance(c, RunEvents)), None)
        if not isinstance(run, Run):
            raise refuse("RateFinder multiplies the rates of a recipe, and this fit has none")
        batches = _batches(trainer, pl_module)
        if trainer.global_step:
            self.skip(trainer.global_step)
            return
        with _silent(pl_module):
            self.find(
                run,
                run.recipe,
                lambda batch: _loss(trainer, pl_module, batch),
                batches,
                accumulated(trainer),
            )


def _batches(trainer: Trainer, module: LightningModule) -> DataLoader[Any]:
    """Return what the fit trains from, if a sweep can be done over it."""
    if trainer.world_size > 1:
        raise refuse("RateFinder works in one process, and this fit has several")
    if not module.automatic_optimization:
        raise refuse("RateFinder needs the loss, and this module steps by hand")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise refuse("RateFinder needs gradients that are not scaled: use bf16-mixed or 32-true")
    if not isinstance(trainer.train_dataloader, DataLoader):
        given = type(trainer.train_dataloader).__name__
        raise refuse(f"RateFinder needs one DataLoader to train from (got a {given})")
    return trainer.train_dataloader


def _loss(trainer: Trainer, module: LightningModule, batch: Any) -> Tensor:
    found: Any = trainer.strategy.training_step(*ready_batch(trainer, module, batch))
    return found["loss"] if isinstance(found, dict) and "loss" in found else found  # type: ignore[no-any-return]


@contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    """Let a module log nothing: these are no steps of the fit."""
    own = {name: vars(module)[name] for name in ("log", "log_dict") if name in vars(module)}
    for name in ("log", "log_dict"):
        object.__setattr__(module, name, _nothing)
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            object.__delattr__(module, name)
        for name, value in own.items():
            object.__setattr__(module, name, value)


def _nothing(*_: Any, **__: Any) -> None:
    pass
