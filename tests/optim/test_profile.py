"""What is said of the optimizers: all have their facts, and what is derived is true."""

import inspect

import pytest
import torch
from support.labels import label
from support.optimizer_runs import (
    build,
    give,
    public,
    ready,
    required,
    row_of,
    step,
    tensors,
    train,
)

from optimplug._core.optim.executions.compiled import Compiled
from optimplug._core.optim.profile import profile_of
from optimplug.optim import LBFGS, SGD, Adafactor, AdamW, Lion, Muon, RMSprop, Rprop

CLASSES = public()


@pytest.mark.parametrize("cls", CLASSES, ids=label)
def test_every_optimizer_has_facts_of_its_own(cls):
    facts = vars(cls)["facts"]
    assert facts.purpose
    assert facts.paper
    assert facts.link.startswith("https://")
    # Either the rate compares with AdamW's, or it is said what it is instead.
    assert (facts.rate is None) == bool(facts.rate_means)
    assert facts.rate is None or 0 < facts.rate[0] <= facts.rate[1]
    assert facts.options.keys() <= inspect.signature(cls).parameters.keys()


STATE = [
    (SGD, 0, {"momentum": 4}),
    (AdamW, 8, {"amsgrad": 12}),
    (Lion, 4, {}),
    (RMSprop, 4, {"momentum": 8, "centered": 8}),
    (Adafactor, 0, {}),
    (Muon, 4, {}),
    (LBFGS, 808, {}),
]


@pytest.mark.parametrize(("cls", "size", "larger"), STATE, ids=label)
def test_state_bytes(cls, size, larger):
    found = profile_of(cls)
    assert (found.state_bytes, found.state_bytes_with) == (size, larger)


@pytest.mark.parametrize(
    ("cls", "ways"),
    [
        (AdamW, ("float32", "bfloat16", "8bit")),
        (Rprop, ("float32", "bfloat16")),
        (LBFGS, ("float32",)),
    ],
    ids=label,
)
def test_the_named_storage_is_what_there_is(cls, ways):
    assert profile_of(cls).storage == ways


@pytest.mark.parametrize("cls", CLASSES, ids=label)
def test_the_named_state_is_what_a_step_leaves(cls):
    for options in ({}, *({key: value} for key, value in cls.facts.options.items())):
        p = torch.nn.Parameter(torch.ones(256, 256))
        optimizer = ready(cls([p], **{"lr": 0.05, **required(cls), **options}))
        give(cls, [p], 0)
        step(optimizer)
        kept = {id(t): t for state in optimizer.state.values() for t in state.values()}
        size = sum(
            t.numel() * t.element_size() for t in kept.values() if isinstance(t, torch.Tensor)
        )
        (name,) = options or [None]
        found = profile_of(cls)
        said = found.state_bytes_with[name] if name else found.state_bytes
        if row_of(cls).closure:  # what LBFGS keeps grows until its history is full
            assert said > size / p.numel()
        else:
            assert said == pytest.approx(size / p.numel(), abs=0.2)


@pytest.mark.parametrize("cls", CLASSES, ids=label)
def test_the_executions_are_those_that_the_class_has(cls, monkeypatch):
    said = profile_of(cls).executions
    assert "loop" in said
    parameters = inspect.signature(cls).parameters
    for choice in ("fused", "foreach", "differentiable"):
        assert (choice in parameters) == (choice in said)
    ran = []
    prepare = Compiled.prepare
    monkeypatch.setattr(Compiled, "prepare", lambda *a: ran.append(prepare(*a)) or ran[-1])
    train(build(cls, tensors(cls)), range(1))
    assert any(ready is not None for ready in ran) == ("compiled" in said)


STEADY = {
    "AdEMAMix": {"betas": (0.9, 0.999, 0.99)},  # its slow mean is then full after 200 steps
    "TransformersAdafactor": {"relative_step": False},
}
WITH_STEPS = [cls for cls in CLASSES if cls.facts.step is not None]


@pytest.mark.parametrize("scale", [1e-2, 1.0])
@pytest.mark.parametrize("size", [0.05, 2.0])
@pytest.mark.parametrize("cls", WITH_STEPS, ids=label)
def test_a_step_is_as_long_as_is_said_whatever_the_gradients_size(cls, size, scale):
    settings = STEADY.get(cls.__name__, {})
    p = torch.nn.Parameter(torch.randn(8, 8, dtype=torch.float64) * size)
    gradient = torch.randn(8, 8, dtype=torch.float64) * scale
    optimizer = cls([p], lr=1e-3, weight_decay=0.0, foreach=False, **settings)
    lengths = []
    for _ in range(200):
        before, p.grad = p.detach().clone(), gradient
        optimizer.step()
        lengths.append((p.detach() - before).square().mean().sqrt().item())
    said = cls.facts.step(optimizer.param_groups[0], before.square().mean().sqrt().item())
    # A mean that warms up makes the first steps short or long; some get shorter and shorter.
    assert lengths[-1] <= 1.1 * said
    assert max(lengths) >= 0.2 * said


def test_steps_of_the_gradients_size_are_not_said():
    named = {cls.__name__ for cls in CLASSES if cls.facts.step is None}
    # CAME divides by what a gradient differs from its mean, which is nothing if it is steady.
    assert {"SGD", "ASGD", "ScheduleFreeSGD", "Rprop", "Prodigy", "CAME"} <= named
