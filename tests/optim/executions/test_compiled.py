"""Compiled rules: right in every type, safe with every memory, and done without where they must."""

import math

import pytest
import torch
from support.labels import label
from support.tensors import descend, parameters, same_bits

from optimplug._core.optim.executions import compiled
from optimplug._core.optim.executions.compiler import compiler
from optimplug.optim import SGD, Adam, AdamW

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="there is no C compiler that torch's threads can serve"
)

LARGE = [(300, 400), (70_000,), (3,), (0,), (50, 50)]
CASES = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (Adam, {"weight_decay": 0.1, "amsgrad": True, "maximize": True}),
    (AdamW, {}),
]


@pytest.fixture
def kernels(monkeypatch):
    """How often a compiled rule has run."""
    ran = []
    original = compiled.ReadyCompiled.run

    def watched(self, scale, found_inf):
        original(self, scale, found_inf)
        ran.append(True)

    monkeypatch.setattr(compiled.ReadyCompiled, "run", watched)
    return ran


def flat(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def groups(params):
    return [{"params": params[:2], "lr": 0.01, "weight_decay": 0.0}, {"params": params[2:]}]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=label)
@pytest.mark.parametrize(("cls", "options"), CASES, ids=label)
def test_however_the_threads_share_it_the_result_is_the_loops(
    cls, options, dtype, threads, kernels
):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = descend(cls(groups(parameters(LARGE, dtype)), **options), 4, skip=False)
    finally:
        torch.set_num_threads(before)
    loop = getattr(torch.optim, cls.__name__)
    theirs = descend(
        loop(groups(parameters(LARGE, dtype)), **options, foreach=False), 4, skip=False
    )
    # Where decay goes into the gradient, groups without it are another call.
    calls = 2 if options.get("weight_decay") and cls is not AdamW else 1
    assert kernels == [True] * 4 * calls
    tight = 1e-5 if dtype == torch.float32 else 1e-13
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tight, atol=tight / 10)


def with_threads(count, work):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("cls", "options"), CASES, ids=label)
def test_how_many_threads_there_are_makes_no_difference(cls, options):
    def run():
        return descend(cls(groups(parameters(LARGE)), **options), 3, skip=False)

    alone = with_threads(1, run)
    for count in (2, 3, 7):
        assert all(map(same_bits, alone, with_threads(count, run)))


def shared(kind):
    memory = torch.zeros(300_000)
    if kind == "one tensor twice":
        p = torch.nn.Parameter(memory)
        return [p, p]
    parts = {"one memory": (memory, memory), "overlap": (memory[:200_000], memory[100_000:])}
    return [torch.nn.Parameter(part) for part in parts[kind]]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize("kind", ["one tensor twice", "one memory", "overlap"])
def test_no_update_is_lost_where_tensors_share_memory(kind, kernels):
    ours, theirs = shared(kind), shared(kind)
    for cls, params in ((SGD, ours), (torch.optim.SGD, theirs)):
        for p in params:
            p.grad = torch.ones_like(p)
        with_threads(2, cls(params, lr=1.0).step)
    assert kernels == []
    assert all(map(torch.equal, ours, theirs))


SWAPS = {
    "transposed": lambda p: p.data.t(),
    "fewer": lambda p: p.data[:2],
    "of another type": lambda p: p.data.view(torch.bfloat16)[:, :4],
    "a copy": lambda p: p.data.clone(),
}


@pytest.mark.parametrize("gradient", ["as it lies", "contiguous"])
@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize(("cls", "options"), CASES[:1], ids=label)
def test_a_memory_seen_in_another_way_is_noticed(cls, options, swap, gradient):
    ours, theirs = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizers = cls([ours], **options), getattr(torch.optim, cls.__name__)([theirs], **options)
    for step in range(4):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            if step == 2:
                p.grad = None
                p.data = SWAPS[swap](p)
            g = torch.arange(float(p.numel())).view(p.shape).to(p.dtype)
            p.grad = g if gradient == "contiguous" else torch.empty_like(p).copy_(g)
            optimizer.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("contiguous", [True, False])
def test_a_gradient_that_lies_otherwise_than_the_last_is_noticed(contiguous):
    start = torch.ones(3, 4) if contiguous else torch.ones(4, 3).t()
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = SGD([ours], lr=0.1), torch.optim.SGD([theirs], lr=0.1)
    for step in range(4):
        g = torch.arange(12.0).view(3, 4)
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = g if step % 2 else g.t().contiguous().t()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("other", [torch.float16, torch.float32, torch.float64, torch.int16])
@pytest.mark.parametrize("every", [True, False])
def test_a_gradient_of_another_type_than_the_last_is_noticed(other, every):
    ours = SGD([torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)) for _ in range(2)], lr=1.0)
    for dtype in (torch.bfloat16, other):
        for p, change in zip(flat(ours), (every, True), strict=True):
            p.grad = torch.ones_like(p)
            p.grad.data = torch.ones(4, dtype=dtype if change else torch.bfloat16)
        ours.step()
    assert all(torch.equal(p, torch.full_like(p, -2.0)) for p in flat(ours))


@pytest.mark.parametrize(
    "view",
    [
        lambda memory: memory[:100],
        lambda memory: memory[:50].bfloat16().float(),
        lambda memory: memory.view(20, 10).t(),
        lambda memory: memory[:100].view(10, 10).t(),
        lambda memory: memory.view(torch.float64),
    ],
    ids=["fewer", "elsewhere", "transposed", "fewer, transposed", "wider"],
)
def test_an_address_is_not_taken_for_the_tensor_that_was_there_before(view):
    memory = torch.zeros(200)
    p = torch.nn.Parameter(memory)
    ours = SGD([p], lr=1.0)
    for data in (memory, view(memory)):
        p.data, p.grad = data, None
        p.grad = torch.arange(1.0, data.numel() + 1).to(data.dtype).view(data.shape)
        expected = p.detach() - p.grad
        ours.step()
        assert torch.equal(p, expected)


def test_a_maximum_keeps_what_is_not_a_number(kernels):
    ours = Adam([torch.nn.Parameter(torch.zeros(3))], amsgrad=True)
    p = flat(ours)[0]
    for values in ([1.0, math.nan, 1.0], [1.0, 1.0, math.nan], [1.0, 1.0, 1.0]):
        p.grad = torch.tensor(values)
        ours.step()
    assert sum(kernels) == 3
    assert ours.state[p]["max_exp_avg_sq"].isnan().tolist() == [False, True, True]


def test_a_mean_without_memory_is_the_gradient(kernels):
    p = torch.nn.Parameter(torch.zeros(1))
    ours = Adam([p], lr=0.1, betas=(0.0, 0.0))
    for g in (1e5, 1e-4):
        p.grad = torch.tensor([g])
        ours.step()
    assert kernels == [True, True]
    assert ours.state[p]["exp_avg"].item() == pytest.approx(1e-4)
    assert p.item() == pytest.approx(-0.2, rel=1e-3)


@pytest.mark.parametrize(
    "kept", [torch.bfloat16, torch.float32, torch.float64], ids=lambda kept: f"moments in {kept}"
)
def test_moments_wider_than_their_parameter_keep_their_width(kept, kernels):
    def run(dtype, wide, foreach):
        ours = AdamW(parameters(LARGE, dtype), lr=1e-2, foreach=foreach)
        descend(ours, 1, skip=False, rounding=torch.bfloat16)
        state = ours.state_dict()
        for of_one in state["state"].values():
            of_one.update({k: v.to(wide) for k, v in of_one.items() if k != "step"})
        ours.load_state_dict(state)
        descend(ours, 4, skip=False, rounding=torch.bfloat16)
        return ours

    ours, truth = run(torch.bfloat16, kept, None), run(torch.float64, torch.float64, False)
    assert sum(kernels) == 5
    for p, q in zip(flat(ours), flat(truth), strict=True):
        assert ours.state[p]["exp_avg"].dtype == kept
        torch.testing.assert_close(p.double(), q, rtol=2e-2, atol=2e-2)
        if kept != torch.bfloat16:
            sq = truth.state[q]["exp_avg_sq"].double()
            torch.testing.assert_close(
                ours.state[p]["exp_avg_sq"].double(), sq, rtol=2e-2, atol=1e-5
            )


def test_bfloat16_rounds_to_nearest_even_and_keeps_what_is_not_a_number(kernels):
    values = [1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3.1415926, 3e38, 3.4e38, 1e-40, math.inf, math.nan]
    p = torch.nn.Parameter(torch.zeros(len(values), dtype=torch.bfloat16))
    ours = SGD([p], lr=1.0)
    wide = torch.tensor(values)
    p.grad = wide.to(torch.bfloat16)
    ours.step()
    assert kernels == [True]
    torch.testing.assert_close(p.detach(), -wide.to(torch.bfloat16), equal_nan=True, rtol=0, atol=0)
    third = SGD([torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16))], lr=1 / 3)
    flat(third)[0].grad = torch.tensor([1.0, 2.0, -0.7, 1e-3, 1e-2], dtype=torch.bfloat16)
    third.step()
    exact = (1 - flat(third)[0].grad.float() / 3).to(torch.bfloat16)
    assert same_bits(flat(third)[0].detach(), exact)


def test_a_negative_that_is_yet_to_be_taken_is_taken():
    re, im = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    (torch.complex(re, im).conj() * torch.tensor(1 + 2j)).real.sum().backward()
    assert im.grad.is_neg()
    SGD([re, im], lr=0.5).step()
    assert (re.item(), im.item()) == (0.5, 0.0)


def test_a_conjugate_that_is_yet_to_be_taken_is_taken():
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.complex64))
    p.grad = torch.tensor([1 + 2j]).conj()
    assert p.grad.is_conj()
    SGD([p], lr=0.5).step()
    assert p.item() == 0.5 + 1j


def test_autograd_is_told_that_a_parameter_has_changed(kernels):
    p = torch.nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    SGD([p], lr=0.1).step()
    assert kernels == [True]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_gradient_whose_memory_is_not_what_it_was_takes_another_way(kernels):
    ours = SGD(parameters([(4,), (4,)]), lr=0.1)
    descend(ours, 1, skip=False)
    flat(ours)[1].grad.data = torch.ones(4, dtype=torch.float16)
    before = flat(ours)[1].detach().clone()
    ours.step()
    assert kernels == [True]
    torch.testing.assert_close(flat(ours)[1].detach(), before - 0.1)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=label)
def test_the_norm_is_torchs_and_the_same_every_time(dtype, threads):
    ours = SGD(parameters(LARGE, dtype), lr=0.0, max_grad_norm=1.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        descend(ours, 1, skip=False)
        first = ours.grad_norm
        ours.step()
    finally:
        torch.set_num_threads(before)
    assert same_bits(ours.grad_norm, first)
    exact = torch.cat([p.grad.flatten().double() for p in flat(ours)]).norm()
    tight = {torch.float64: 1e-13, torch.float32: 1e-7, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(first.double(), exact, rtol=tight, atol=0)
    assert first.dtype == dtype


def test_a_norm_over_several_types_counts_them_all():
    mixed = [*parameters([(5,)]), *parameters([(6,)], torch.float64)]
    ours = SGD(mixed, lr=0.0, max_grad_norm=1.0)
    descend(ours, 1, skip=False)
    exact = torch.cat([p.grad.double() for p in flat(ours)]).norm()
    torch.testing.assert_close(ours.grad_norm.double(), exact)


def test_where_there_is_a_compiler_it_serves(kernels):
    descend(AdamW(parameters()), 2, skip=False)
    assert kernels == [True, True]


class TestCompiler:
    @pytest.fixture(autouse=True)
    def _forget(self, monkeypatch):
        monkeypatch.setenv("OPTIMPLUG_CACHE", "")
        caches = compiler, compiled._update_library, compiled._squares_kernel
        for cache in caches:
            cache.cache_clear()
        yield
        for cache in caches:
            cache.cache_clear()

    def test_one_that_cannot_write_is_reported_and_done_without(self, monkeypatch, kernels):
        monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
        with pytest.warns(RuntimeWarning, match="could not compile an optimizer's rule"):
            self.check()
        assert kernels == []

    def test_what_is_no_command_is_reported(self, monkeypatch):
        monkeypatch.setenv("CC", 'cc "x')
        with pytest.warns(RuntimeWarning, match="CC is no command: No closing quotation"):
            self.check()

    def test_a_failure_counts_no_step(self, monkeypatch):
        def fail(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr("subprocess.Popen", fail)
        ours = AdamW(parameters())
        for p in flat(ours):
            p.grad = torch.ones_like(p)
        with pytest.raises(KeyboardInterrupt):
            ours.step()
        assert not ours.state

    @pytest.mark.parametrize("command", ["", "no-such-compiler"])
    def test_there_may_be_none(self, monkeypatch, command, kernels):
        monkeypatch.setenv("CC", command)
        assert compiler() is None
        self.check()
        assert kernels == []

    def test_one_that_fails_is_reported_and_done_without(self, monkeypatch, kernels):
        monkeypatch.setenv("CC", "false")
        with pytest.warns(RuntimeWarning, match="false could not compile an optimizer's rule"):
            self.check()
        assert kernels == []

    def test_a_command_may_have_arguments(self, monkeypatch, kernels):
        monkeypatch.setenv("CC", "cc -g0")
        assert compiler() == ("cc", "-g0")
        self.check()
        assert kernels == [True] * 3

    def check(self):
        ours = descend(AdamW(parameters(), max_grad_norm=1.0), 3)
        params = parameters()
        theirs = AdamW(params, max_grad_norm=1.0, foreach=False)
        for a, b in zip(ours, descend(theirs, 3), strict=True):
            torch.testing.assert_close(a, b)
