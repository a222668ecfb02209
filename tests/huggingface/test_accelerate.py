"""Schedulers given to ``accelerator.prepare``: they run at their own pace, in any number of processes."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.optim.lr_scheduler as torchs
from accelerate import Accelerator
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState, GradientState, PartialState

import optimplug.optim.lr_scheduler as ours
from optimplug import Horizon, Recipe

ROOT = Path(__file__).parents[2]
STEPS = 20


def halving(module):
    class Halving(module.LRScheduler):
        def get_lr(self):
            return [base * 0.5**self.last_epoch for base in self.base_lrs]

        def step(self, *args):
            super().step(*args)

    return Halving


SCHEDULES = {
    "linear": lambda m, o: m.LinearLR(o, 0.1, 1.0, 7),
    "cosine": lambda m, o: m.CosineAnnealingLR(o, 30),
    "restarts": lambda m, o: m.CosineAnnealingWarmRestarts(o, 5, 2),
    "lambda": lambda m, o: m.LambdaLR(o, lambda t: 1 / (1 + t)),
    "one cycle": lambda m, o: m.OneCycleLR(o, 1.0, STEPS),
    "cycle": lambda m, o: m.CyclicLR(o, 0.1, 1.0, 4),
    "subclass": lambda m, o: halving(m)(o),
    "sequence": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.1, 1.0, 7), m.ExponentialLR(o, 0.9)], [7]
    ),
    "chain": lambda m, o: m.ChainedScheduler([m.LinearLR(o), m.ExponentialLR(o, 0.9)]),
}


@pytest.fixture
def accelerated(monkeypatch):
    """Build an Accelerator that holds itself for one of so many processes."""
    for state in (AcceleratorState, GradientState, PartialState):
        monkeypatch.setattr(state, "_shared_state", {})

    def build(processes, **settings):
        accelerator = Accelerator(cpu=True, **settings)
        for state in (AcceleratorState, PartialState):
            monkeypatch.setitem(state._shared_state, "num_processes", processes)
        return accelerator

    return build


def optimizer_of():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)


def rates_of(optimizer, scheduler, batches=STEPS, accelerator=None, metrics=None):
    """The rate after each batch."""
    found, raw = [], getattr(optimizer, "optimizer", optimizer)
    (p,) = raw.param_groups[0]["params"]
    for t in range(batches):
        if accelerator is not None:
            accelerator._do_sync()
        p.grad = torch.ones_like(p)
        optimizer.step()
        scheduler.step(*([] if metrics is None else [metrics[t]]))
        found.append(raw.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("built", ["before", "after", "by hand"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_pace_is_the_schedules_own(name, built, processes, accelerated):
    plain = optimizer_of()
    expected = rates_of(plain, SCHEDULES[name](ours, plain))
    accelerator, optimizer = accelerated(processes), optimizer_of()
    if built == "before":
        scheduler = SCHEDULES[name](ours, optimizer)
        optimizer, scheduler = accelerator.prepare(optimizer, scheduler)
    else:
        optimizer = accelerator.prepare(optimizer)
        scheduler = SCHEDULES[name](ours, optimizer)
        wrap = (
            (lambda s: AcceleratedScheduler(s, optimizer))
            if built == "by hand"
            else accelerator.prepare
        )
        scheduler = wrap(scheduler)
    assert isinstance(scheduler, AcceleratedScheduler)
    assert rates_of(optimizer, scheduler) == expected
    if processes > 1 and name != "one cycle":
        assert rates_of_torchs(name, accelerator) != pytest.approx(expected)


def rates_of_torchs(name, accelerator):
    optimizer = optimizer_of()
    scheduler = SCHEDULES[name](torchs, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rates_of(*accelerator.prepare(optimizer, scheduler))


@pytest.mark.parametrize("processes", [1, 3])
def test_of_a_recipe_too(processes, accelerated):
    recipe = {
        "optimizer": {"name": "SGD", "lr": 1.0},
        "schedule": [{"name": "LinearLR", "start_factor": 0.1, "for": 5}, "cosine"],
    }
    recipe["schedule"][1] = {"name": "CosineAnnealingLR"}

    def build():
        model = torch.nn.Linear(1, 1, bias=False)
        return Recipe.load(recipe).build(model, Horizon(total_steps=STEPS))

    expected = rates_of(*build())
    assert rates_of(*accelerated(processes).prepare(*build())) == expected


@pytest.mark.parametrize("processes", [1, 2])
def test_of_a_plateau_too(processes, accelerated):
    metrics = [1.0] * STEPS
    plain, optimizer = optimizer_of(), optimizer_of()
    expected = rates_of(plain, ours.ReduceLROnPlateau(plain, "min", 0.5, 2), metrics=metrics)
    both = accelerated(processes).prepare(
        optimizer, ours.ReduceLROnPlateau(optimizer, "min", 0.5, 2)
    )
    assert rates_of(*both, metrics=metrics) == expected


@pytest.mark.parametrize("processes", [1, 2])
def test_accumulated_batches_are_one_update(processes, accelerated):
    plain, optimizer = optimizer_of(), optimizer_of()
    expected = rates_of(plain, ours.LinearLR(plain, 0.1, 1.0, 7), STEPS // 2)
    accelerator = accelerated(processes, gradient_accumulation_steps=2)
    both = accelerator.prepare(optimizer, ours.LinearLR(optimizer, 0.1, 1.0, 7))
    assert rates_of(*both, accelerator=accelerator)[1::2] == expected


@pytest.mark.parametrize(
    "settings", [{"split_batches": True}, {"step_scheduler_with_optimizer": False}]
)
def test_where_accelerate_steps_once_every_step_counts(settings, accelerated):
    if "split_batches" in settings:
        from accelerate.utils import DataLoaderConfiguration

        settings = {"dataloader_config": DataLoaderConfiguration(split_batches=True)}
    plain, optimizer = optimizer_of(), optimizer_of()
    expected = rates_of(plain, ours.ExponentialLR(plain, 0.9))
    both = accelerated(2, **settings).prepare(optimizer, ours.ExponentialLR(optimizer, 0.9))
    assert rates_of(*both) == expected


def test_a_run_of_steps_goes_as_far_as_it_says(accelerated):
    """Scripts do so to go on in mid-run."""
    optimizer = optimizer_of()
    optimizer, scheduler = accelerated(2).prepare(optimizer, ours.ExponentialLR(optimizer, 0.5))
    optimizer.step()
    for _ in range(3):
        scheduler.step()
    assert scheduler.get_last_lr() == [0.125]
    scheduler.scheduler.step()  # nobody else's calls are left out
    scheduler.scheduler.step()
    assert scheduler.get_last_lr() == [0.03125]


def test_a_step_that_is_refused_is_not_half_of_a_pair(accelerated):
    optimizer = optimizer_of()
    plateau = ours.ReduceLROnPlateau(optimizer, "min", 0.5, 0)
    optimizer, scheduler = accelerated(2).prepare(optimizer, plateau)
    optimizer.step()
    for metrics in ("x", "x"):
        with pytest.raises(ValueError, match="metrics must be a number"):
            scheduler.step(metrics)
    for metrics in (1.0, 1.0):
        scheduler.step(metrics)
    assert scheduler.get_last_lr() == [0.5]


def test_torchs_that_hold_ours_are_stepped_as_torchs(accelerated):
    optimizer = optimizer_of()
    scheduler = torchs.SequentialLR(optimizer, [ours.ExponentialLR(optimizer, 0.5)], [])
    optimizer, scheduler = accelerated(2).prepare(optimizer, scheduler)
    assert rates_of(optimizer, scheduler, 2) == [0.25, 0.0625]


SCRIPT = """
import torch
from accelerate import Accelerator
from support.processes import leave
from optimplug.optim.lr_scheduler import LinearLR

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
scheduler = LinearLR(optimizer, 0.1, 1.0, 7)
model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
found = []
for _ in range(5):
    accelerator.backward(model(torch.ones(2, 1)).mean())
    optimizer.step()
    scheduler.step()
    found.append(round(scheduler.get_last_lr()[0], 6))
accelerator.print(found)
leave()
"""


@pytest.mark.slow
def test_two_real_processes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    expected = [round(0.1 + 0.9 * t / 7, 6) for t in range(1, 6)]
    assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize("name", ["linear", "one cycle", "sequence"])
def test_the_wrapper_of_an_optimizer_is_looked_through(name, accelerated):
    inner = optimizer_of()
    wrapper = accelerated(1).prepare(inner)
    scheduler = SCHEDULES[name](ours, wrapper)
    assert scheduler.optimizer is inner
    children = [ours.ConstantLR(wrapper), ours.StepLR(inner, 3)]
    assert ours.ChainedScheduler(children, wrapper).optimizer is inner
