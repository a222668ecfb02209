"""Callbacks for the Hugging Face Trainer."""

from optimplug.errors import MissingExtraError

try:
    import accelerate  # type: ignore[import-untyped] # noqa: F401 (a Trainer runs on it)
    import transformers  # noqa: F401 (asked for here, where one line can say what is missing)
except ImportError:
    raise MissingExtraError("optimplug.callbacks.huggingface", "huggingface") from None

from optimplug.callbacks.huggingface.monitor import LearningRateTrace, OptimizerMonitor
from optimplug.callbacks.huggingface.rate_finder import RateFinder
from optimplug.callbacks.huggingface.scheduler import MetricCallback, SchedulerCallback

__all__ = [
    "LearningRateTrace",
    "MetricCallback",
    "OptimizerMonitor",
    "RateFinder",
    "SchedulerCallback",
]
