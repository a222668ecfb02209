"""Callbacks that put something in place for a fit, and take it away at its end."""

from __future__ import annotations

from optimplug.lightning.package import LightningModule, OwnCallback, Trainer

__all__ = ["LeavesAfterFit"]


class LeavesAfterFit(OwnCallback):
    """Leaves when the trainer is done, and when an error ends what it does.

    Lightning calls ``teardown`` only at a good end.
    """

    def leave(self) -> None:
        """Take away what was put in place; nothing may be there, and twice is as once."""
        raise NotImplementedError

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave at a good end."""
        self.leave()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave after an error."""
        self.leave()
