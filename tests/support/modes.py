"""An optimizer with two modes, as schedule-free ones have."""

import torch


class TwoModes(torch.optim.SGD):
    """Trains at one point and is judged at another: here the weights, and the weights + 1000."""

    mode = "train"

    def train(self):
        self._move("train", -1000.0)

    def eval(self):
        self._move("eval", 1000.0)

    def _move(self, mode, by):
        if self.mode != mode:
            self.mode = mode
            for group in self.param_groups:
                torch._foreach_add_([p.data for p in group["params"]], by)

    def step(self, closure=None):
        if self.mode == "eval":
            raise RuntimeError("step() in eval mode")
        return super().step(closure)
