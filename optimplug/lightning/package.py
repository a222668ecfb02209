"""The two packages that Lightning comes in, whose classes are not each other's."""

from __future__ import annotations

from lightning.pytorch import LightningModule

__all__ = ["check_module_class"]


def check_module_class(cls: type) -> None:
    """Refuse a module of the package ``pytorch_lightning``.

    Raises:
        TypeError: it is one; says what to import instead.
    """
    others = [base for base in cls.__mro__ if base.__module__.startswith("pytorch_lightning.")]
    if others and not issubclass(cls, LightningModule):
        raise TypeError(
            f"{cls.__name__} is a module of pytorch_lightning, a copy of Lightning that optimplug "
            "does not know; import LightningModule and Trainer from lightning.pytorch instead"
        )
