import torch

from optimplug.callbacks.trace import LearningRateTrace


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer


def groups():
    return [
        {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.1, "name": "head"},
        {"params": [torch.zeros(1, requires_grad=True)], "lr": torch.tensor(0.5)},
    ]


def test_every_group_at_every_update_by_name_or_number():
    optimizer = torch.optim.SGD(groups())
    trace = LearningRateTrace()
    trace.attach(optimizer)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.step()
    assert trace.rates == {"head": [0.1, 0.2], "1": [0.5, 0.5]}


def test_a_wrapped_optimizer_is_looked_through():
    optimizer = torch.optim.SGD(groups())
    trace = LearningRateTrace()
    trace.attach(Wrapper(optimizer))
    optimizer.step()
    assert trace.rates["head"] == [0.1]
