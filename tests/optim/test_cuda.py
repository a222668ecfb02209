"""On a GPU: the same results as on the CPU, mixed devices, captured steps."""

import copy

import pytest
import torch
from support.labels import label
from support.tensors import parameters

from optimplug.optim import SGD, Adam, AdamW

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

CHOICES = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]
CASES = [
    (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (Adam, {"amsgrad": True}),
    (AdamW, {"weight_decay": 0.1}),
]


def on(devices, cls, **options):
    """An optimizer whose parameters go round the devices given."""
    places = [devices[i % len(devices)] for i in range(4)]
    params = [
        torch.nn.Parameter(p.detach().to(d)) for p, d in zip(parameters(), places, strict=True)
    ]
    return cls([{"params": params[:2], "lr": 0.01}, {"params": params[2:]}], **options)


def train(optimizer, steps=6):
    generator = torch.Generator().manual_seed(0)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(steps):
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=generator).to(p.device)
            p.grad = None if (step + i) % 5 == 0 else g
        optimizer.step()
    return [p.detach().cpu() for p in params]


@pytest.mark.parametrize("devices", [["cuda"], ["cpu", "cuda"]], ids=label)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("choice", CHOICES, ids=label)
@pytest.mark.parametrize(("cls", "options"), CASES, ids=label)
def test_a_run_is_that_of_the_cpu(cls, options, choice, clip, devices):
    options = {**options, "max_grad_norm": clip, "skip_nonfinite": True}
    found = train(on(devices, cls, **options, **choice))
    truth = train(on(["cpu"], cls, **options, foreach=False))
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("cls", "options"), CASES[1:], ids=label)
def test_a_captured_step_is_a_step(cls, options):
    captured = on(["cuda"], cls, **options, capturable=True)
    plain = on(["cuda"], cls, **options, foreach=False)
    pairs = [
        (p, q)
        for one, other in zip(captured.param_groups, plain.param_groups, strict=True)
        for p, q in zip(one["params"], other["params"], strict=True)
    ]
    for p, q in pairs:
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        captured.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()  # recorded, not run
    for _ in range(3):
        graph.replay()
    for _ in range(4):
        plain.step()
    for p, q in pairs:
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", CHOICES, ids=label)
def test_a_gradscaler_skips_what_overflows(choice):
    ours = on(["cuda"], AdamW, **choice)
    before = copy.deepcopy([p.detach() for g in ours.param_groups for p in g["params"]])
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
    for group in ours.param_groups:
        for p in group["params"]:
            p.grad = scaler.scale(torch.full_like(p, float("inf")))
    scaler.step(ours)
    scaler.update()
    after = [p.detach() for g in ours.param_groups for p in g["params"]]
    assert all(map(torch.equal, before, after))
