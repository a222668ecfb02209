"""An optimizer that validates with other weights than it trains with, as schedule-free ones do."""

import torch


class Averaged(torch.optim.SGD):
    """SGD that keeps the mean of all weights; ``eval()`` swaps it in, ``train()`` out again."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.update(train_mode=False, seen=0)

    def train(self):
        self._swap(training=True)

    def eval(self):
        self._swap(training=False)

    @torch.no_grad()
    def _swap(self, training):
        for group in self.param_groups:
            if group["train_mode"] is training:
                continue
            group["train_mode"] = training
            for p in group["params"]:
                if p in self.state:
                    other = self.state[p]["other"]
                    held = p.clone()
                    p.copy_(other)
                    other.copy_(held)

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            assert group["train_mode"], "train() was forgotten"
            group["seen"] += 1
            for p in group["params"]:
                if p not in self.state:
                    self.state[p]["other"] = torch.zeros_like(p)
                self.state[p]["other"].lerp_(p, 1 / group["seen"])
        return loss
