"""Learning rate schedulers, with the names and meanings of ``torch.optim.lr_scheduler``."""

from optimplug._core.lr_scheduler.base import LRScheduler
from optimplug._core.lr_scheduler.compose import SequentialLR
from optimplug._core.lr_scheduler.cosine import CosineAnnealingLR
from optimplug._core.lr_scheduler.decay import LinearLR

__all__ = ["CosineAnnealingLR", "LRScheduler", "LinearLR", "SequentialLR"]
