"""Schedulers to try, by how to build them from either package, and what it takes to run them."""

import copy
import io
import math

import torch

import optimplug.optim.lr_scheduler as ours


class Halving:
    """A callable object with state: what it has is saved with its scheduler."""

    def __init__(self, every):
        self.every = every

    def __call__(self, t):
        return 0.5 ** (t // self.every)


# Each: how to build it on an optimizer of two groups, from either package.
SCALING = {  # in torch they go from step to step, so that several may act on the same groups
    "linear": lambda m, o: m.LinearLR(o, 0.1, 0.7, 20),
    "linear, defaults": lambda m, o: m.LinearLR(o),
    "linear to zero": lambda m, o: m.LinearLR(o, 1.0, 0.0, 50),
    "constant": lambda m, o: m.ConstantLR(o, 0.5, 30),
    "constant, defaults": lambda m, o: m.ConstantLR(o),
    "exponential": lambda m, o: m.ExponentialLR(o, 0.99),
    "exponential, growing": lambda m, o: m.ExponentialLR(o, 1.01),
    "polynomial": lambda m, o: m.PolynomialLR(o, 250, 0.5),
    "polynomial, squared": lambda m, o: m.PolynomialLR(o, 270, 2.0),
    "polynomial, defaults": lambda m, o: m.PolynomialLR(o),
    "polynomial, never": lambda m, o: m.PolynomialLR(o, 0),
    "step": lambda m, o: m.StepLR(o, 30),
    "step, gamma": lambda m, o: m.StepLR(o, 7, 0.9),
    "multistep": lambda m, o: m.MultiStepLR(o, [3, 30, 30, 80], 0.5),
    "multistep from 0": lambda m, o: m.MultiStepLR(o, [1, 200]),
    "multistep, none": lambda m, o: m.MultiStepLR(o, []),
    "multiplicative": lambda m, o: m.MultiplicativeLR(o, lambda t: 0.99 + 0.02 * (t % 2)),
    "multiplicative, two": lambda m, o: m.MultiplicativeLR(o, [lambda t: 0.98, lambda t: 1.01]),
    "multiplicative, object": lambda m, o: m.MultiplicativeLR(o, Halving(100)),
    "cosine": lambda m, o: m.CosineAnnealingLR(o, 70, 0.01),
    "cosine past its end": lambda m, o: m.CosineAnnealingLR(o, 13),
}
SETTING = {  # in torch they set the rate, whatever it was
    "lambda": lambda m, o: m.LambdaLR(o, lambda t: 1 / (1 + t)),
    "lambda, two": lambda m, o: m.LambdaLR(o, [lambda t: t // 30, lambda t: 0.95**t]),
    "lambda, object": lambda m, o: m.LambdaLR(o, Halving(30)),
    "restarts": lambda m, o: m.CosineAnnealingWarmRestarts(o, 9),
    "restarts, longer": lambda m, o: m.CosineAnnealingWarmRestarts(o, 10, 2, 0.01),
    "restarts, each thrice": lambda m, o: m.CosineAnnealingWarmRestarts(o, 7, 3),
    "cyclic": lambda m, o: m.CyclicLR(o, 0.1, 1.0, 20),
    "cyclic, two": lambda m, o: m.CyclicLR(
        o,
        [0.1, 0.0],
        [1.0, 0.3],
        13,
        29,
        base_momentum=[0.7, 0.8],
        max_momentum=[0.9, 0.95],
    ),
    "cyclic, sawtooth": lambda m, o: m.CyclicLR(o, 0.1, 1.0, 20, 0),
    "cyclic, parts of steps": lambda m, o: m.CyclicLR(o, 0.1, 1.0, 20.5, 3.25),
    "cyclic, triangular2": lambda m, o: m.CyclicLR(o, 0.1, 1.0, 20, mode="triangular2"),
    "cyclic, exp_range": lambda m, o: m.CyclicLR(o, 0.1, 1.0, 20, mode="exp_range", gamma=0.99),
    "cyclic, scale_fn of cycle": lambda m, o: m.CyclicLR(
        o, 0.1, 1.0, 20, scale_fn=lambda c: 1 / (5 ** (c * 0.0001))
    ),
    "cyclic, scale_fn of iterations": lambda m, o: m.CyclicLR(
        o, 0.1, 1.0, 20, scale_fn=lambda t: 0.5 ** (t * 0.01), scale_mode="iterations"
    ),
    "cyclic, scale_fn object": lambda m, o: m.CyclicLR(o, 0.1, 1.0, 20, scale_fn=Halving(3)),
    "cyclic, rate alone": lambda m, o: m.CyclicLR(o, 0.1, 1.0, 20, cycle_momentum=False),
    "one cycle": lambda m, o: m.OneCycleLR(o, 1.0, 300),
    "one cycle, two": lambda m, o: m.OneCycleLR(
        o, [1.0, 0.3], 320, base_momentum=[0.7, 0.8], max_momentum=[0.9, 0.95]
    ),
    "one cycle, linear": lambda m, o: m.OneCycleLR(o, 1.0, 310, anneal_strategy="linear"),
    "one cycle, three phases": lambda m, o: m.OneCycleLR(
        o, 1.0, epochs=10, steps_per_epoch=30, three_phase=True, div_factor=10
    ),
    "one cycle, three linear phases": lambda m, o: m.OneCycleLR(
        o, 1.0, 301, three_phase=True, anneal_strategy="linear", final_div_factor=10.0
    ),
    "one cycle, no rise": lambda m, o: m.OneCycleLR(o, 1.0, 300, pct_start=0.0),
    "one cycle, rate alone": lambda m, o: m.OneCycleLR(o, 1.0, 300, cycle_momentum=False),
}
SEQUENCES = {
    "sequence": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.1, 1.0, 30), m.CosineAnnealingLR(o, 270)], [30]
    ),
    "sequence of three": lambda m, o: m.SequentialLR(
        o,
        [m.LinearLR(o, 0.5, 1.0, 9), m.CosineAnnealingLR(o, 50, 0.1), m.LinearLR(o, 0.2, 0.1, 8)],
        [10, 100],
    ),
    "sequence of the seed": lambda m, o: m.SequentialLR(
        o, [m.ConstantLR(o, 0.1, 2), m.ExponentialLR(o, 0.9)], [2]
    ),
    "sequence of those that set": lambda m, o: m.SequentialLR(
        o,
        [m.LambdaLR(o, lambda t: 1 / (1 + t)), m.CosineAnnealingWarmRestarts(o, 7, 2)],
        [20],
    ),
    "sequence with a phase of no steps": lambda m, o: m.SequentialLR(
        o, [m.StepLR(o, 3), m.ConstantLR(o), m.ExponentialLR(o, 0.9)], [20, 20]
    ),
}
CHAINS = {
    "chain of the seed": lambda m, o: m.ChainedScheduler(
        [m.ConstantLR(o, 0.1, 2), m.ExponentialLR(o, 0.9)]
    ),
    "chain of three": lambda m, o: m.ChainedScheduler(
        [m.LinearLR(o, 0.1, 1.0, 30), m.StepLR(o, 40, 0.5), m.PolynomialLR(o, 400)]
    ),
    "chain with one that sets": lambda m, o: m.ChainedScheduler(
        [m.LambdaLR(o, lambda t: 1 / (1 + t)), m.MultiStepLR(o, [20, 40])], o
    ),
}
TORCHS = {**SCALING, **SETTING, **SEQUENCES, **CHAINS}
NESTED = {
    "sequence in a sequence": lambda m, o: m.SequentialLR(
        o, [SEQUENCES["sequence"](m, o), m.LinearLR(o, 0.3, 0.1, 20)], [60]
    ),
    "a sequence first in a sequence, last in another": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.2, 1.0, 7), SEQUENCES["sequence of three"](m, o)], [7]
    ),
    "one cycle after a warm-up": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.2, 1.0, 7), m.OneCycleLR(o, 1.0, 300)], [9]
    ),
    "chain last in a sequence": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.2, 1.0, 7), CHAINS["chain of three"](m, o)], [9]
    ),
    "sequence in a chain": lambda m, o: m.ChainedScheduler(
        [SEQUENCES["sequence"](m, o), m.ExponentialLR(o, 0.9)]
    ),
}
PLATEAUS = {
    "plateau": lambda m, o: m.ReduceLROnPlateau(o, factor=0.5, patience=2),
    "plateau, max abs": lambda m, o: m.ReduceLROnPlateau(
        o, "max", 0.7, 3, threshold=0.1, threshold_mode="abs", cooldown=4
    ),
    "plateau, max": lambda m, o: m.ReduceLROnPlateau(o, "max", 0.7, 0, cooldown=1, min_lr=0.01),
    "plateau, min abs": lambda m, o: m.ReduceLROnPlateau(
        o, "min", 0.9, 1, 0.05, "abs", min_lr=[0.1, 0.01]
    ),
    "plateau, eps": lambda m, o: m.ReduceLROnPlateau(o, factor=0.5, patience=0, eps=0.02),
    "plateau, defaults": lambda m, o: m.ReduceLROnPlateau(o),
}
WITH_PLATEAUS = {
    **PLATEAUS,
    "plateau after a warm-up": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.1, 1.0, 5), PLATEAUS["plateau"](m, o)], [5]
    ),
    "plateau first": lambda m, o: m.SequentialLR(
        o, [PLATEAUS["plateau"](m, o), m.ExponentialLR(o, 0.9)], [25]
    ),
    "plateau in a chain": lambda m, o: m.ChainedScheduler(
        [m.LinearLR(o, 0.1, 1.0, 30), PLATEAUS["plateau"](m, o)]
    ),
    "plateau in a chain in a sequence": lambda m, o: m.SequentialLR(
        o,
        [
            m.LinearLR(o, 0.1, 1.0, 5),
            m.ChainedScheduler([m.ExponentialLR(o, 0.99), PLATEAUS["plateau"](m, o)]),
        ],
        [5],
    ),
}
ALL = {**TORCHS, **NESTED, **WITH_PLATEAUS}
CLOSED = {**SCALING, **SETTING, **SEQUENCES, "sequences": NESTED["sequence in a sequence"]}
del CLOSED["sequence of those that set"]  # their groups differ in more than their own rates


def optimizer_of(cls=torch.optim.SGD, lrs=(1.0, 0.3), **kwargs):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs]
    kwargs = kwargs or ({"momentum": 0.6} if cls is torch.optim.SGD else {})
    return cls(groups, lr=0.1, **kwargs)


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def momentums(optimizer):
    return [float(g["betas"][0] if "betas" in g else g["momentum"]) for g in optimizer.param_groups]


def metric(t):
    """A loss that falls, rests and wavers, the same at every call."""
    return 1 / (1 + t // 9) + 0.1 * math.sin(12.9898 * t)


def takes_metric(scheduler):
    children = getattr(scheduler, "_schedulers", ())
    return isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) or any(
        map(takes_metric, children)
    )


def advance(optimizer, scheduler, t):
    optimizer.step()
    scheduler.step(metric(t)) if takes_metric(scheduler) else scheduler.step()


def trace(optimizer, scheduler, steps, start=0):
    """The rates and momentums at each update, and after the last."""
    found = [rates(optimizer) + momentums(optimizer)]
    for t in range(start, start + steps):
        advance(optimizer, scheduler, t)
        assert scheduler.get_last_lr() == rates(optimizer)
        found.append(rates(optimizer) + momentums(optimizer))
    return found


def run(module, build, steps=300, **kwargs):
    optimizer = optimizer_of(**kwargs)
    return trace(optimizer, build(module, optimizer), steps)


def saved(state):
    """Through a file, as a trainer would."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def load_optimizer_build_load(build, make, opt_state, sched_state):
    optimizer = make()
    optimizer.load_state_dict(opt_state)
    scheduler = build(ours, optimizer)
    scheduler.load_state_dict(sched_state)
    return optimizer, scheduler


def build_load_both(build, make, opt_state, sched_state):
    optimizer = make()
    scheduler = build(ours, optimizer)
    optimizer.load_state_dict(opt_state)
    scheduler.load_state_dict(sched_state)
    return optimizer, scheduler


def build_load_scheduler_first(build, make, opt_state, sched_state):
    optimizer = make()
    scheduler = build(ours, optimizer)
    scheduler.load_state_dict(sched_state)
    optimizer.load_state_dict(opt_state)
    return optimizer, scheduler


ORDERS = [load_optimizer_build_load, build_load_both, build_load_scheduler_first]


def resumed(build, make, optimizer, scheduler, order):
    """The same optimizer and scheduler built anew, from what was saved of these."""
    states = saved(optimizer.state_dict()), saved(scheduler.state_dict())
    kept = copy.deepcopy(states[1])
    found = order(build, make, *states)
    assert states[1] == kept
    return found
