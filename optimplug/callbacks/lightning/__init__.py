"""Callbacks for PyTorch Lightning."""

from optimplug.errors import MissingExtraError

try:
    import lightning.pytorch  # noqa: F401 (asked for here, where one line can say what is missing)
except ImportError:
    raise MissingExtraError("optimplug.callbacks.lightning", "lightning") from None

from optimplug.callbacks.lightning.monitor import LearningRateTrace, OptimizerMonitor
from optimplug.callbacks.lightning.recipe import MetricCallback, RecipeCallback
from optimplug.callbacks.lightning.scheduler import SchedulerCallback

__all__ = [
    "LearningRateTrace",
    "MetricCallback",
    "OptimizerMonitor",
    "RecipeCallback",
    "SchedulerCallback",
]
