"""Recipes in PyTorch Lightning: ``pip install "optimplug[lightning]"``."""

from optimplug.errors import MissingExtraError

try:
    import lightning.pytorch  # noqa: F401 (asked for here, where one line can say what is missing)
except ImportError:
    raise MissingExtraError("optimplug.lightning", "lightning") from None

from optimplug.lightning.configure import RecipeMixin, configure_optimizers
from optimplug.lightning.horizon import horizon_of

__all__ = ["RecipeMixin", "configure_optimizers", "horizon_of"]
