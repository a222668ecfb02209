"""Schedulers on optimizers that wrap others: as torch's, without false warnings, at their own pace."""

import importlib

import pytest
import torch
import torch.optim.lr_scheduler as torchs
from support.schedules import SCALING, SEQUENCES, rates
from support.wrappers import Lookahead

import optimplug.optim.lr_scheduler as ours


def model_of():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


class SAM(torch.optim.Optimizer):
    """As its authors published it: two half steps, neither of them called ``step``."""

    def __init__(self, params, base, rho=0.05, **kwargs):
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self):
        params = [p for g in self.param_groups for p in g["params"]]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.clone()
                p += p.grad * group["rho"] / (norm + 1e-12)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()


class Two(torch.optim.Optimizer):
    """Two optimizers as one; whatever ``optimizer`` is, it is not the owner of the groups."""

    def __init__(self, first, second, optimizer):
        self.both, self.optimizer = (first, second), optimizer
        self.param_groups = [*first.param_groups, *second.param_groups]
        self.defaults, self.state = {}, {}

    def step(self, closure=None):
        for each in self.both:
            each.step(closure)

    def zero_grad(self, set_to_none=True):
        for each in self.both:
            each.zero_grad(set_to_none)


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def local_sgd(model):
    averagers = pytest.importorskip("torch.distributed.algorithms.model_averaging.averagers")
    distributed = pytest.importorskip("torch.distributed.optim")

    class Nothing(averagers.ModelAverager):
        def __init__(self):
            self.step = 0

        def average_parameters(self, params):
            self.step += 1

    return distributed.PostLocalSGDOptimizer(sgd(model.parameters()), Nothing())


def two_of(optimizer):
    def build(model):
        first, second = sgd(model[0].parameters()), sgd(model[2].parameters())
        return Two(first, second, optimizer(first, second))

    return build


WRAPPED = {
    "none": lambda model: sgd(model.parameters()),
    "Lookahead": lambda model: Lookahead(sgd(model.parameters())),
    "local SGD": local_sgd,
    "SAM": lambda model: SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9),
    "two, the first under the name": two_of(lambda a, b: a),
    "two, a list under the name": two_of(lambda a, b: [a, b]),
    "two, a string under the name": two_of(lambda a, b: "sgd"),
}
SCHEDULES = {
    "linear": SCALING["linear"],
    "multistep": SCALING["multistep"],
    "lambda": lambda m, o: m.LambdaLR(o, lambda t: 1 / (1 + t)),
    "sequence": SEQUENCES["sequence of three"],
}


def trained(module, build, schedule, halves=False):
    """The rates and the weights of a short run; any warning is an error."""
    model = model_of()
    optimizer = build(model)
    scheduler = schedule(module, optimizer)
    assert scheduler.optimizer is optimizer
    x, found = torch.arange(12.0).reshape(4, 3) / 10, []

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(15):
        closure()
        if halves:
            optimizer.first_step()
            closure()
            optimizer.second_step()
        else:
            optimizer.step(*([closure] if isinstance(optimizer, SAM) else []))
        scheduler.step()
        found.append(rates(optimizer))
        assert scheduler.get_last_lr() == found[-1]
    return found, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", WRAPPED)
def test_on_a_wrapper_it_trains_as_torchs(name, schedule):
    found, weights = trained(ours, WRAPPED[name], SCHEDULES[schedule])
    expected, theirs = trained(torchs, WRAPPED[name], SCHEDULES[schedule])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(weights, theirs)


def test_half_steps_are_steps():
    """torch warns of a scheduler that is stepped first."""
    found, weights = trained(ours, WRAPPED["SAM"], SCHEDULES["linear"], halves=True)
    whole, theirs = trained(ours, WRAPPED["SAM"], SCHEDULES["linear"])
    assert found == whole
    assert all(map(torch.equal, weights, theirs))


@pytest.mark.parametrize("name", [n for n in WRAPPED if n != "SAM"])
def test_of_a_wrapper_that_is_not_stepped_first_it_is_said(name):
    optimizer = WRAPPED[name](model_of())
    scheduler = ours.StepLR(optimizer, 3)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


def test_a_wrapper_keeps_its_own_step():
    optimizer = WRAPPED["Lookahead"](model_of())
    ours.ChainedScheduler([ours.StepLR(optimizer, 3), ours.ExponentialLR(optimizer, 0.9)])
    assert optimizer.step(lambda: 3) == 3
    assert optimizer.step.__name__ == "step"


def test_opacus_optimizer():
    optimizers = importlib.import_module("opacus.optimizers")

    def run(module):
        optimizer = optimizers.DPOptimizer(
            sgd(model_of().parameters()),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=4,
        )
        scheduler = module.LinearLR(optimizer, 0.1, 1.0, 7)
        found = []
        for _ in range(9):
            for p in optimizer.params:
                p.grad_sample = torch.ones(4, *p.shape)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            found.append(rates(optimizer.original_optimizer))
        return found

    torch.testing.assert_close(run(ours), run(torchs), rtol=1e-12, atol=0)
