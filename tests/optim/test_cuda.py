"""On a GPU: the same results as on the CPU, mixed devices, captured steps, no waiting.

``make test-gpu`` runs this, and what else is to be run there.
"""

import copy
from inspect import signature

import pytest
import torch
from support.labels import label
from support.tensors import parameters

from optimplug import ArgumentError
from optimplug._core.optim.executions.triton.there import triton_serves
from optimplug.optim import (
    ADOPT,
    ASGD,
    CAME,
    LAMB,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AdEMAMix,
    Lion,
    NAdam,
    Prodigy,
    RAdam,
    RMSprop,
    Rprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    StableAdamW,
    TransformersAdafactor,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

CHOICES = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]
CASES = [
    (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (Adam, {"amsgrad": True}),
    (AdamW, {"weight_decay": 0.1}),
]
WITHOUT_OPERATOR = [
    (Adamax, {}),
    (RAdam, {"betas": (0.8, 0.9)}),
    (Adadelta, {"weight_decay": 0.1}),
    (RMSprop, {"momentum": 0.9, "centered": True}),
    (Rprop, {}),
    (Lion, {"lr": 0.01}),
    (ScheduleFreeAdamW, {"weight_decay": 0.1, "warmup_steps": 3}),
    (ScheduleFreeSGD, {"lr": 0.1}),
    (Adafactor, {"weight_decay": 0.1}),
    (StableAdamW, {"weight_decay": 0.1}),
    (LAMB, {"weight_decay": 0.1}),
    (CAME, {"weight_decay": 0.1}),
    (TransformersAdafactor, {"lr": 0.01, "relative_step": False, "beta1": 0.9}),
    (Prodigy, {"weight_decay": 0.1}),
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
    optimizer.train()
    for step in range(steps):
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
            p.grad = None if (step + i) % 5 == 0 else g
        optimizer.step()
    optimizer.eval()
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


@pytest.mark.parametrize("devices", [["cuda"], ["cpu", "cuda"]], ids=label)
@pytest.mark.parametrize("choice", CHOICES[:3], ids=label)
@pytest.mark.parametrize(("cls", "options"), [*WITHOUT_OPERATOR, (Adagrad, {})], ids=label)
def test_a_run_of_any_other_is_that_of_the_cpu(cls, options, choice, devices):
    found = train(on(devices, cls, **options, max_grad_norm=0.5, **choice))
    truth = train(on(["cpu"], cls, **options, max_grad_norm=0.5, foreach=False))
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choice", CHOICES[:3], ids=label)
@pytest.mark.parametrize("rounding", ["nearest", "exact", "stochastic"])
@pytest.mark.parametrize("cls", [AdamW, SGD, Lion, Adagrad])
def test_moments_in_eight_bits_are_those_of_the_cpu(cls, rounding, choice):
    dtype = torch.float32 if rounding == "nearest" else torch.bfloat16
    options = {"lr": 1e-3, "state_dtype": "8bit", "rounding": rounding}
    options |= {"momentum": 0.9} if cls is SGD else {}

    def run(device, **choice):
        values = parameters(((70, 61), (5000,), (10,)), dtype)
        ours = cls([torch.nn.Parameter(v.detach().to(device)) for v in values], **options, **choice)
        found = train(ours)
        return [p.float() for p in found], ours.state_dict()["state"]

    found, state = run("cuda", **choice)
    truth, expected = run("cpu", foreach=False)
    for a, b in zip(found, truth, strict=True):
        # One number in thousands gets the next code, or is rounded to the next bfloat16.
        assert ((a - b).abs() > 1e-4 + 1e-2 * b.abs()).double().mean() < 0.002
    for i, kept in expected.items():
        for name, value in kept.items():
            off = (state[i][name].cpu().float() - value.float()).norm()
            assert off <= 0.01 * value.float().norm() or "remainder" in name


CAPTURED = [
    *CASES,
    *(
        (cls, options)
        for cls, options in WITHOUT_OPERATOR
        if "capturable" in signature(cls).parameters
    ),
    (Adam, {"max_grad_norm": 0.5}),
    (AdamW, {"max_grad_norm": 0.5, "skip_nonfinite": True}),
    (AdamW, {"state_dtype": "8bit"}),
    (Adagrad, {"lr_decay": 0.1}),
    (NAdam, {"max_grad_norm": 0.5, "skip_nonfinite": True}),
    (ASGD, {"t0": 2, "lambd": 0.1}),
    (AdEMAMix, {"t_alpha": 3, "t_beta3": 4}),
    (ADOPT, {"decouple": True, "weight_decay": 0.1}),
]


def with_rates(cls, shapes=((70, 61), (7,), (5000,), ()), dtype=torch.float32, **options):
    """An optimizer of two groups, the rate of each a tensor on the GPU; and its parameters."""
    params = [torch.nn.Parameter(p.detach()) for p in parameters(shapes, dtype, "cuda")]
    rates = [torch.full((), rate, device="cuda") for rate in (0.01, 0.02)]
    groups = [{"params": params[2 * i : 2 * i + 2], "lr": rate} for i, rate in enumerate(rates)]
    return cls(groups, **{k: v for k, v in options.items() if k != "lr"}), params, rates


def backward(params, inputs):
    """Gradients that follow from tensors which are written to between two replays."""
    loss = sum((p * x).sum() + (p * p).sum() for p, x in zip(params, inputs, strict=True))
    loss.backward()


@pytest.mark.parametrize("outside", [1, 3])
@pytest.mark.parametrize(("cls", "options"), CAPTURED, ids=label)
def test_a_captured_step_is_a_step(cls, options, outside):
    """Gradients come from the graph's own memory, as torch's documentation has it."""
    captured, params, rates = with_rates(cls, **options, capturable=True)
    plain, others, their_rates = with_rates(cls, **options, foreach=False)
    inputs = [torch.randn_like(p) for p in params]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(outside):
            captured.zero_grad(set_to_none=True)
            backward(params, inputs)
            captured.step()
    torch.cuda.current_stream().wait_stream(side)
    captured.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # recorded, not run
        backward(params, inputs)
        captured.step()
    for number in range(outside + 3):
        if number >= outside:
            for x in inputs:
                x.copy_(torch.randn_like(x))
            for own in (rates, their_rates):
                own[0].fill_(0.01 * (1 + number))
            graph.replay()
        plain.zero_grad(set_to_none=True)
        backward(others, inputs)
        plain.step()
    for p, q in zip(params, others, strict=True):
        near = 1e-4 if "state_dtype" not in options else 1e-2
        torch.testing.assert_close(p.detach(), q.detach(), rtol=near, atol=near)
        for name, kept in captured.state[p].items():
            if name in ("step", "mu_product", "eta", "mu"):
                torch.testing.assert_close(kept.cpu(), plain.state[q][name].cpu())


@pytest.mark.parametrize("cls", [Adam, NAdam, Lion, SGD])
def test_two_graphs_and_steps_outside_of_them_go_on_from_each_other(cls):
    captured, params, _ = with_rates(cls, capturable=True)
    plain, others, _ = with_rates(cls, foreach=False)
    inputs = [torch.randn_like(p) for p in params]
    graphs = []
    for _ in range(2):
        for optimizer, own in ((captured, params), (plain, others)):
            optimizer.zero_grad(set_to_none=True)
            backward(own, inputs)
            optimizer.step()
        captured.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            backward(params, inputs)
            captured.step()
    for graph in (graphs[0], graphs[1], graphs[0]):
        graph.replay()
        plain.zero_grad(set_to_none=True)
        backward(others, inputs)
        plain.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [AdamW, NAdam, Lion])
def test_a_replay_that_overflows_is_left_out_and_counted(cls):
    captured, params, _ = with_rates(cls, capturable=True, skip_nonfinite=True)
    inputs = [torch.randn_like(p) for p in params]
    backward(params, inputs)
    captured.step()
    captured.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backward(params, inputs)
        captured.step()
    graph.replay()
    before = [p.detach().clone() for p in params]
    counts = [kept["step"].clone() for kept in captured.state.values() if "step" in kept]
    inputs[0].fill_(float("inf"))
    graph.replay()
    graph.replay()
    assert captured.skipped_steps == 2
    assert all(map(torch.equal, before, params))
    found = [kept["step"] for kept in captured.state.values() if "step" in kept]
    assert all(map(torch.equal, counts, found))


def test_what_is_captured_without_a_step_before_is_refused():
    captured, params, _ = with_rates(NAdam, capturable=True)
    for p in params:
        p.grad = torch.ones_like(p)
    torch.cuda.synchronize()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")  # a graph must not be empty
        with pytest.raises(ArgumentError, match="once outside of the capture"):
            captured.step()
    assert not captured.state


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


@pytest.mark.parametrize("transposed", [False, True], ids=["as it is", "transposed"])
@pytest.mark.parametrize("choice", CHOICES, ids=label)
def test_to_change_one_counter_changes_one(choice, transposed):
    """Counts stand on the GPU; what torch's fused operator cannot take reads them from there."""

    def run(device, **options):
        torch.manual_seed(0)
        values = [torch.randn(4, 3) for _ in range(3)]
        params = [torch.nn.Parameter((v.t() if transposed else v).to(device)) for v in values]
        optimizer = AdamW(params, lr=0.1, **options)
        for i in range(4):
            if i == 2:
                optimizer.state[params[1]]["step"].zero_()
            for p in params:
                p.grad = torch.arange(12.0, device=device).view(p.shape) + i
            optimizer.step()
        return params, [float(kept["step"]) for kept in optimizer.state.values()]

    found, counts = run("cuda", **choice)
    truth, expected = run("cpu", foreach=False)
    assert counts == expected == [4, 2, 4]
    for p, q in zip(found, truth, strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", CHOICES, ids=label)
def test_a_model_that_moves_goes_on_where_it_is(choice):
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(3)]
    optimizer = AdamW(params, lr=0.1, **choice)
    for device in ("cpu", "cuda", "cpu"):
        for p in params:
            p.data = p.data.to(device)
            p.grad = torch.ones_like(p)
            for name, value in optimizer.state[p].items():
                optimizer.state[p][name] = value if name == "step" else value.to(device)
        optimizer.step()
    assert {float(kept["step"]) for kept in optimizer.state.values()} == {3.0}
    stay = [torch.nn.Parameter(torch.ones(4)) for _ in range(3)]
    twin = AdamW(stay, lr=0.1, foreach=False)
    for _ in range(3):
        for p in stay:
            p.grad = torch.ones_like(p)
        twin.step()
    for p, q in zip(params, stay, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def stepping(cls, dtype=torch.float32, sizes=((300, 40), (7,), (5000,)), **options):
    """An optimizer that has stepped twice, so that all is compiled; and its parameters."""
    params = [
        p.requires_grad_() for p in (torch.ones(s, device="cuda", dtype=dtype) for s in sizes)
    ]
    optimizer = cls([{"params": params[:1], "lr": 0.01}, {"params": params[1:]}], **options)
    optimizer.train()
    for _ in range(2):
        give(params)
        optimizer.step()
    return optimizer, params


def give(params):
    for p in params:
        p.grad = torch.full_like(p, 0.5)


def launched(optimizer, params):
    """The kernels of a step, after two others; copies beside them are from pinned memory."""
    give(params)
    optimizer.step()
    optimizer.step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    device = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profile.events() if event.device_type == device]
    copies = [name for name in names if name.startswith("Mem")]
    assert all("Pinned" in name for name in copies)
    return [name for name in names if name not in copies]


WHOLE_LAUNCHES = ["norm", "pass0", "add_up", "planes1", "pass1", "add_up", "pass2", "last"]


@pytest.mark.skipif(
    not (torch.cuda.is_available() and triton_serves(torch.device("cuda"))),
    reason="there is no Triton",
)
class TestKernel:
    CLIPPED = {"max_grad_norm": 0.5}
    SKIPS = {"max_grad_norm": 0.5, "skip_nonfinite": True}
    NARROW = {"dtype": torch.bfloat16}
    QUIET = [
        (AdamW, {}),
        (AdamW, CLIPPED),
        (AdamW, SKIPS),
        (SGD, {"lr": 0.1, "momentum": 0.9, **SKIPS}),
        (NAdam, SKIPS),
        (ScheduleFreeAdamW, SKIPS),
        (AdamW, {**NARROW, "rounding": "stochastic"}),
        (AdamW, {**NARROW, **SKIPS, "rounding": "kahan"}),
        (AdamW, {**NARROW, **CLIPPED, "rounding": "exact", "state_dtype": "bfloat16"}),
        (Lion, {**NARROW, "lr": 0.01}),
        (AdamW, {**SKIPS, "state_dtype": "8bit"}),
        (StableAdamW, {**SKIPS, "state_dtype": "8bit"}),
        (LAMB, {**NARROW, **CLIPPED, "rounding": "stochastic"}),
        (Adafactor, SKIPS),
        (CAME, {**NARROW, **CLIPPED, "rounding": "exact"}),
        (Lion, {**NARROW, **CLIPPED, "lr": 0.01, "rounding": "exact", "state_dtype": "8bit"}),
    ]

    @pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
    @pytest.mark.parametrize(("cls", "options"), QUIET, ids=label)
    def test_a_step_waits_for_nothing(self, cls, options, scaled):
        optimizer, params = stepping(cls, **options)
        before = params[0].detach().clone()
        if scaled:
            optimizer.grad_scale = torch.full((), 2.0, device="cuda")
            optimizer.found_inf = torch.zeros((), device="cuda")
            optimizer.step()  # another variant is compiled
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                give(params)
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not torch.equal(params[0], before)

    def test_nor_does_one_whose_rate_is_on_the_device(self):
        rate = torch.tensor(0.1, device="cuda")
        optimizer, params = stepping(AdamW, lr=rate)
        optimizer.param_groups[0]["lr"] = rate
        give(params)
        optimizer.step()
        before = [p.detach().clone() for p in params]
        rate.fill_(0.0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            give(params)
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(map(torch.equal, params, before))

    @pytest.mark.parametrize("cls", [NAdam, Lion, ASGD, RAdam])
    def test_nor_does_one_that_may_be_captured(self, cls):
        optimizer, params = stepping(cls, **self.SKIPS, capturable=True)
        give(params)
        optimizer.step()  # its norm too has been laid out
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                give(params)
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize(
        ("options", "expected"), [({}, ["update"]), (CLIPPED, ["norm", "update"])], ids=label
    )
    @pytest.mark.parametrize("kept", [None, "8bit"])
    def test_a_step_of_200_groups_is_one_launch_or_two(self, kept, options, expected):
        options, size = {**options, "state_dtype": kept}, 5000 if kept else 50
        params = [torch.ones(size, device="cuda", requires_grad=True) for _ in range(400)]
        groups = [{"params": params[2 * i : 2 * i + 2], "lr": 1e-3 * i} for i in range(200)]
        assert launched(AdamW(groups, **options), params) == expected

    @pytest.mark.parametrize(
        ("cls", "expected"),
        [(StableAdamW, ["norm", "pass0", "add_up", "pass1"]), (Adafactor, WHOLE_LAUNCHES)],
        ids=label,
    )
    def test_so_it_is_with_a_few_launches_for_whole_tensors(self, cls, expected):
        params = [torch.ones(50, 70, device="cuda", requires_grad=True) for _ in range(400)]
        groups = [
            {"params": params[2 * i : 2 * i + 2], "weight_decay": 1e-3 * i + 0.1}
            for i in range(200)
        ]
        optimizer = cls(groups, max_grad_norm=0.5)
        assert launched(optimizer, params) == expected

    def test_more_elements_than_32_bits_count(self):
        free, _ = torch.cuda.mem_get_info()
        if free < 12 * 2**30:
            pytest.skip("there is too little memory")
        p = torch.zeros(2**31 + 5, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        p.grad = torch.ones_like(p)
        SGD([p], lr=1.0, max_grad_norm=None).step()
        assert bool((p == -1).all())

    def test_in_a_graph_it_would_do_the_same_step_again_and_is_refused(self):
        optimizer, params = stepping(AdamW)
        before = [p.detach().clone() for p in params]
        torch.cuda.synchronize()
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.zeros(1, device="cuda")  # a graph must not be empty
            with pytest.raises(ArgumentError, match="capturable=True"):
                optimizer.step()
        assert all(map(torch.equal, before, params))
        assert float(optimizer.state[params[0]]["step"]) == 2

    def test_counts_stand_on_the_host_unless_a_step_is_to_be_captured(self):
        for options, device in (
            ({}, "cpu"),
            ({"fused": True}, "cpu"),
            ({"capturable": True}, "cuda"),
            ({"capturable": True, "state_dtype": "8bit"}, "cuda"),
        ):
            optimizer, params = stepping(AdamW, **options)
            assert optimizer.state[params[0]]["step"].device.type == device

    def test_a_step_that_overflows_is_not_counted(self):
        optimizer, params = stepping(AdamW, skip_nonfinite=True)
        before = [p.detach().clone() for p in params]
        params[0].grad = torch.full_like(params[0], float("inf"))
        optimizer.step()
        assert optimizer.skipped_steps == 1
        assert float(optimizer.state[params[0]]["step"]) == 2
        assert all(map(torch.equal, before, params))
        give(params)
        optimizer.step()
        assert float(optimizer.state[params[0]]["step"]) == 3
        assert not torch.equal(before[0], params[0])
