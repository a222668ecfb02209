"""A step under torch's compiler, in traces, and where there are no values: as torch's own."""

import pytest
import torch
from support.labels import label
from support.optimizer_runs import under_laws
from support.tensors import same_bits
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from optimplug import optim

CASES = [
    ("SGD", {"momentum": 0.9}),
    ("AdamW", {}),
    ("AdamW", {"foreach": True}),
    ("AdamW", {"foreach": False}),
    ("RMSprop", {}),
]
MORE = [("Lion", {}), ("Adam", {"max_grad_norm": 0.1}), ("Adam", {"fused": True})]


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def trained(package, name, options, backend=None, device=None, steps=4):
    net = model() if device is None else model().to(device)
    optimizer = getattr(package, name)(net.parameters(), lr=0.1, **options)
    x = torch.ones(3, 4, device=device)

    def step():
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()

    run = step if backend is None else torch.compile(step, backend=backend)
    for _ in range(steps):
        run()
    return list(net.parameters()), optimizer


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(*row, marks=() if row in (CASES[1], MORE[1]) else pytest.mark.slow)
        for row in CASES + MORE
    ],
    ids=label,
)
def test_a_compiled_train_step_is_the_same_in_few_graphs(name, options):
    graphs = CompileCounterWithBackend("aot_eager")
    found, _ = trained(optim, name, options, graphs)
    expected, _ = trained(optim, name, options)
    assert all(map(same_bits, found, expected))
    assert graphs.frame_count <= 3


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("name", "options"), [*CASES[1:3], *MORE[1:2]], ids=label)
def test_the_default_compiler_runs_it(name, options):
    found, _ = trained(optim, name, options, "inductor")
    expected, _ = trained(optim, name, options)
    for p, q in zip(found, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def forms(state):
    return {name: (tensor.shape, tensor.device) for name, tensor in state.items()}


@pytest.mark.parametrize(("name", "options"), CASES, ids=label)
def test_without_values_it_makes_state_of_the_right_kind(name, options):
    params, optimizer = trained(optim, name, options, device="meta")
    twins, torchs = trained(torch.optim, name, options, device="meta")
    for p, q in zip(params, twins, strict=True):
        assert forms(optimizer.state[p]) == forms(torchs.state[q])
    assert all(p.is_meta for p in params)


@pytest.mark.parametrize(("name", "options"), CASES + MORE[:1], ids=label)
def test_fake_tensors_step(name, options):
    with FakeTensorMode():
        params, optimizer = trained(optim, name, options)
        counted = [float(s["step"]) for s in optimizer.state.values() if "step" in s]
    assert set(counted) <= {4.0}
    assert all(type(p.detach()).__name__ == "FakeTensor" for p in params)


@pytest.mark.parametrize(("name", "options"), CASES, ids=label)
def test_a_trace_holds_the_whole_update(name, options):
    def traced_and_run_again(package):
        net = model()
        optimizer = getattr(package, name)(net.parameters(), lr=0.1, **options)

        def step(x):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()

        graph = make_fx(step)(torch.ones(3, 4))
        with torch.no_grad():  # the backward pass is a part of the graph
            graph(torch.ones(3, 4))
        return list(net.parameters())

    for p, q in zip(traced_and_run_again(optim), traced_and_run_again(torch.optim), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


# SparseAdam takes none but sparse gradients; LBFGS compares losses, as torch's does; the last one
# asks in its groups for what the others are.
LEFT_OUT = (optim.SparseAdam, optim.LBFGS, optim.MultiOptimizer)
WITHOUT_VALUES = [cls for cls in under_laws() if cls not in LEFT_OUT]


@pytest.mark.parametrize("cls", WITHOUT_VALUES, ids=lambda cls: cls.__name__)
def test_no_optimizer_needs_values(cls):
    p = torch.nn.Parameter(torch.ones(3, 4, device="meta"))
    optimizer = cls([p])
    optimizer.train()
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert all(v.is_meta for v in optimizer.state[p].values() if v.dim())


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", ["Adafactor", "LAMB", "CAME", "StableAdamW", "AdamW", "Prodigy"])
def test_fake_tensors_have_no_norm_to_be_read(name, clip, foreach):
    with FakeTensorMode():
        params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 4), (5,))]
        optimizer = getattr(optim, name)(params, lr=0.1, max_grad_norm=clip, foreach=foreach)
        for _ in range(2):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
    assert all(type(p.detach()).__name__ == "FakeTensor" for p in params)
