"""Callbacks for PyTorch Lightning."""

from optimplug.callbacks.lightning.monitor import LearningRateTrace, OptimizerMonitor
from optimplug.callbacks.lightning.rate_finder import RateFinder
from optimplug.callbacks.lightning.recipe import MetricCallback, RecipeCallback
from optimplug.callbacks.lightning.scheduler import SchedulerCallback

__all__ = [
    "LearningRateTrace",
    "MetricCallback",
    "OptimizerMonitor",
    "RateFinder",
    "RecipeCallback",
    "SchedulerCallback",
]
