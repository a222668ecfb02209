"""Optimizers that wrap others, as their authors published them."""

import torch


class Lookahead(torch.optim.Optimizer):
    """As torch_optimizer has it: an Optimizer by type alone."""

    def __init__(self, optimizer, k=3, alpha=0.5):
        self.optimizer, self.k, self.alpha, self.taken = optimizer, k, alpha, 0
        self.param_groups, self.defaults = optimizer.param_groups, optimizer.defaults
        self.state = {}
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        self.taken += 1
        if self.taken % self.k == 0:
            params = [p for g in self.param_groups for p in g["params"]]
            for slow, p in zip(self.slow, params, strict=True):
                slow += self.alpha * (p.detach() - slow)
                p.data.copy_(slow)
        return loss

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict):
        self.optimizer.load_state_dict(state_dict)
