"""An optimizer with two modes, as schedule-free ones have."""

import torch


class TwoModes(torch.optim.SGD):
    """Trains at one point and is judged at another: here the weights, and the weights + 1000."""

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        for group in self.param_groups:
            group["mode"] = "train"  # in the group, to be saved with the state

    @property
    def mode(self):
        return self.param_groups[0]["mode"]

    def train(self):
        self._move("train", -1000.0)

    def eval(self):
        self._move("eval", 1000.0)

    def _move(self, mode, by):
        for group in self.param_groups:
            if group["mode"] != mode:
                group["mode"] = mode
                torch._foreach_add_([p.data for p in group["params"]], by)
