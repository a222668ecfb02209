"""Where Triton serves: on a GPU that it compiles for."""

from __future__ import annotations

import importlib.util
import warnings
from functools import lru_cache

import torch

__all__ = ["DEVICES", "triton_serves"]

DEVICES = {"cuda"}
"""The types of device that it is asked for; AMD's are of this type too. Its interpreter, which is
for tests, knows the CPU as well."""


def triton_serves(device: torch.device) -> bool:
    """Tell whether kernels can be made for this device; warn, once, where they should but fail."""
    return device.type in DEVICES and _compiles_for(device)


@lru_cache
def _compiles_for(device: torch.device) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cuda" and not (
        torch.cuda.is_available() and _is_new_enough(torch.cuda.get_device_capability(device))
    ):
        return False
    from optimplug._core.optim.executions.triton import kernels

    try:
        kernels.try_out(device)
    except Exception as error:  # of many kinds: Triton's, its compiler's, the driver's
        warnings.warn(
            f"Triton could not make a kernel for {device}, so torch's operators serve; it said: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _is_new_enough(capability: tuple[int, int]) -> bool:
    # The oldest of NVIDIA's that Triton compiles for; AMD counts otherwise, from 9.
    return capability >= (7, 0)
