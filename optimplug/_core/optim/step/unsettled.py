"""A step of which only the device knows yet whether it was skipped.

The host goes on as if it had been done, and takes back what it has counted if it was not. It asks
when it needs to know, at the next step: by then the device has long been done.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Unsettled"]


class Unsettled:
    """A step that may have been skipped.

    Args:
        skipped: 1 where it was; on the device.
        take_back: called if it was.
    """

    def __init__(self, skipped: Tensor, take_back: Callable[[], None]) -> None:
        self._take_back = take_back
        self._skipped, self._event = skipped, None
        if skipped.is_cuda:
            self._skipped = torch.empty_like(skipped, device="cpu", pin_memory=True)
            self._skipped.copy_(skipped, non_blocking=True)
            self._event = torch.cuda.current_stream(skipped.device).record_event()

    def settle(self) -> None:
        """Take back what was counted if the step was skipped."""
        if self._event is not None:
            self._event.synchronize()
        if bool(self._skipped):
            self._take_back()
