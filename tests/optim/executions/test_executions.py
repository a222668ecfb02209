"""Which execution runs, and that each is right where torch's own is not."""

import io
from inspect import signature

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.labels import label
from support.memory import peak_of
from support.optimizers import ALONE, TABLE, executions, torchs, with_eps
from support.rows import few_quick
from support.tensors import descend, parameters, same_bits
from torch.testing._internal.common_optimizers import optim_db

from optimplug import ArgumentError
from optimplug._core.optim.executions import compiled, foreach
from optimplug.optim import (
    ADOPT,
    SGD,
    Adam,
    AdamW,
    AdEMAMix,
    Lion,
    RMSprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
)

CLASSES = [cls for cls, row in TABLE.items() if row.fused]
CHOICES = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]
LR = {"lr": 0.05}


@pytest.fixture(scope="module", autouse=True, params=["compiler", "no compiler"])
def _with_or_without_a_compiler(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "no compiler":
            patch.setattr(compiled, "compiler", lambda: None)
        yield


def pair(cls, params, **options):
    """An optimizer of ours, and torch's loop on copies of the same parameters."""
    copies = [
        torch.nn.Parameter(p.detach().clone(memory_format=torch.preserve_format)) for p in params
    ]
    loop = {k: v for k, v in options.items() if k not in ("foreach", "fused", "max_grad_norm")}
    return cls(params, **options), torchs(cls)(copies, **loop, foreach=False)


def flat(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def step_both(ours, theirs, grads):
    for p, q, g in zip(flat(ours), flat(theirs), grads, strict=True):
        p.grad = g
        q.grad = None if g is None else g.clone()
    ours.step()
    theirs.step()


def assert_close(ours, theirs, rtol=1e-5, atol=1e-7):
    for p, q in zip(flat(ours), flat(theirs), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=rtol, atol=atol)


class TestTorchsOwnTable:
    """The inputs that torch tests its optimizers with."""

    ROWS = {info.optim_cls.__name__: info for info in optim_db}

    @pytest.mark.parametrize(
        ("cls", "choice", "dtype"),
        few_quick(
            ((cls, way), dtype)
            for cls in TABLE
            for way in executions(cls)
            for dtype in (torch.float32, torch.float64)
        ),
        ids=label,
    )
    def test_inputs(self, cls, choice, dtype):
        for row in self.ROWS[cls.__name__].optim_inputs_func(device="cpu", dtype=dtype):
            options = {**row.kwargs, **choice}
            if (
                choice.get("foreach")
                and isinstance(options.get("lr"), torch.Tensor)
                and cls is not SGD
            ):
                continue  # torch refuses it, and so do we: see the error inputs
            ours, theirs = pair(cls, parameters(dtype=dtype), **options)
            for _ in range(5):
                step_both(ours, theirs, [torch.randn_like(p) for p in flat(ours)])
            assert_close(ours, theirs)

    @pytest.mark.parametrize("cls", TABLE | ALONE)
    def test_error_inputs(self, cls):
        found = self.ROWS[cls.__name__].optim_error_inputs_func(device="cpu", dtype=torch.float32)
        assert len(found) >= 6
        for error in found:
            row = error.optimizer_error_input
            params = [torch.nn.Parameter(torch.randn(2, 3))] if row.params is None else row.params
            options = dict(row.kwargs)
            if issubclass(error.error_type, Warning):
                with pytest.warns(error.error_type, match=error.error_regex):
                    cls(params, **options)
            else:
                with pytest.raises(error.error_type, match=error.error_regex):
                    cls(params, **options).step()


class TestChoice:
    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"fused": True, "foreach": True}, "cannot be `True` together"),
            ({"fused": True, "differentiable": True}, "does not support `differentiable`"),
            ({"foreach": True, "differentiable": True}, "does not support differentiable"),
            ({"foreach": "x"}, "foreach must be True, False or None"),
        ],
        ids=label,
    )
    @pytest.mark.parametrize("cls", CLASSES)
    def test_contradictions_raise_at_once(self, cls, options, error):
        with pytest.raises((RuntimeError, ArgumentError), match=error):
            cls(parameters(), **LR, **options)

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"capturable": True}, "capturable=True needs floating point parameters on cuda"),
            (
                {"capturable": True, "foreach": False},
                "capturable=True chooses the execution itself",
            ),
            ({"capturable": True, "differentiable": True}, "capturable=True does not support"),
        ],
        ids=label,
    )
    @pytest.mark.parametrize("cls", [Adam, AdamW])
    def test_capturing_what_cannot_be_raises_at_once(self, cls, options, error):
        with pytest.raises(ArgumentError, match=error):
            cls(parameters(), **options)

    @pytest.mark.parametrize("cls", CLASSES)
    def test_fusing_what_cannot_be_raises_at_once(self, cls):
        with pytest.raises(ArgumentError, match=r"fused=True needs floating point .*complex64"):
            cls([torch.nn.Parameter(torch.randn(2, dtype=torch.complex64))], **LR, fused=True)

    @pytest.mark.parametrize("key", ["foreach", "fused", "differentiable"])
    def test_a_group_cannot_choose_for_itself(self, key):
        with pytest.raises(ArgumentError, match=f"{key} is a choice for all groups together"):
            SGD([{"params": parameters(), key: True}], **LR)

    @pytest.mark.parametrize("key", ["max_grad_norm", "skip_nonfinite"])
    def test_a_group_cannot_clip_for_itself(self, key):
        with pytest.raises(ArgumentError, match=f"{key} is for the whole optimizer"):
            SGD([{"params": parameters(), key: 1.0}], **LR)

    def test_amp_scaling_is_promised_as_by_torch(self):
        assert AdamW(parameters(), fused=True)._step_supports_amp_scaling
        assert not AdamW(parameters())._step_supports_amp_scaling


class TestSGDsRate:
    def test_it_is_torchs_by_default(self):
        a, b = parameters(shapes=((2,), (3,)))
        ours = SGD([{"params": [a], "lr": 1.0}, {"params": [b]}])
        assert [group["lr"] for group in ours.param_groups] == [1.0, 1e-3]
        assert signature(SGD).parameters["lr"].default == torch.optim.SGD([a]).defaults["lr"]

    def test_the_worked_example_of_two_groups(self):
        w = torch.tensor([1.0], requires_grad=True)
        b = torch.tensor([1.0], requires_grad=True)
        ((w @ torch.tensor([2.0]) + b - torch.tensor([4.0])) ** 2).sum().backward()
        optimizer = SGD([{"params": w}, {"params": b, "lr": 1e-3}], lr=1e-2)
        optimizer.step()
        torch.testing.assert_close(w.detach(), torch.tensor([1.04]))
        torch.testing.assert_close(b.detach(), torch.tensor([1.002]))
        assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]


LAYOUTS = {
    "gradient laid out unlike": lambda: (torch.randn(3, 4).t(), torch.randn(4, 3)),
    "both transposed": lambda: (torch.randn(3, 4).t(), torch.randn(3, 4).t()),
    "expanded gradient": lambda: (torch.randn(4, 3), torch.randn(1, 3).expand(4, 3)),
    "parameter with gaps": lambda: (torch.randn(4, 6)[:, ::2], torch.randn(4, 3)),
    "channels last": lambda: (
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 4, 5),
    ),
}


@pytest.mark.parametrize("choice", CHOICES, ids=label)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cls", CLASSES)
def test_any_layout_in_memory_is_right(cls, layout, choice):
    value, grad = LAYOUTS[layout]()
    p = torch.nn.Parameter(value)
    reference = torch.nn.Parameter(value.clone())
    ours, theirs = cls([p], **LR, **choice), torchs(cls)([reference], **LR, foreach=False)
    for _ in range(3):
        p.grad, reference.grad = grad, grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(p.detach(), reference.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", CHOICES, ids=label)
def test_momentum_whose_first_gradient_comes_late_is_right(choice):
    ours, theirs = pair(SGD, parameters(), **LR, momentum=0.9, dampening=0.5, **choice)
    for step in range(6):
        grads = [
            torch.randn_like(p) if i < 2 or step > 2 else None for i, p in enumerate(flat(ours))
        ]
        step_both(ours, theirs, grads)
    assert_close(ours, theirs)


@pytest.mark.parametrize("choice", CHOICES, ids=label)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}], ids=label)
def test_sgd_takes_sparse_gradients(options, choice):
    def run(cls, **choice):
        torch.manual_seed(0)
        table, dense = torch.nn.Embedding(6, 2, sparse=True), torch.nn.Linear(2, 1)
        optimizer = cls([*table.parameters(), *dense.parameters()], **LR, **options, **choice)
        for step in range(4):
            optimizer.zero_grad()
            dense(table(torch.tensor([step, 1]))).sum().backward()
            optimizer.step()
        return table.weight.detach(), dense.weight.detach()

    for a, b in zip(run(SGD, **choice), run(torch.optim.SGD, foreach=False), strict=True):
        torch.testing.assert_close(a, b)


class TestChangesBehindTheBack:
    """What is laid out once must notice everything that frameworks and users do to it."""

    def run(self, change, cls=AdamW, **options):
        ours, theirs = pair(cls, parameters(), **LR, **options)
        for step in range(8):
            if step == 4:
                change(ours)
                change(theirs)
            generator = torch.Generator().manual_seed(step)
            grads = [torch.randn(p.shape, generator=generator) for p in flat(ours)]
            step_both(ours, theirs, grads)
        assert_close(ours, theirs)

    def replace_params(self, optimizer):
        for group in optimizer.param_groups:
            group["params"] = [torch.nn.Parameter(p.detach().clone() + 1) for p in group["params"]]

    def add_group(self, optimizer):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.5})

    def reload(self, optimizer):
        optimizer.load_state_dict(optimizer.state_dict())

    def clear_state(self, optimizer):
        optimizer.state.clear()

    def replace_state(self, optimizer):
        for p in flat(optimizer):
            optimizer.state[p] = {k: v.clone() * 2 for k, v in optimizer.state[p].items()}

    def replace_a_tensor(self, optimizer):
        optimizer.state[flat(optimizer)[0]]["exp_avg"] = torch.ones(3, 4)

    def set_a_step(self, optimizer):
        optimizer.state[flat(optimizer)[1]]["step"] = torch.tensor(100.0)

    def change_hyperparameters(self, optimizer):
        optimizer.param_groups[0].update(lr=0.2, betas=(0.5, 0.9), weight_decay=0.3)

    def change_the_rule(self, optimizer):
        optimizer.param_groups[0]["maximize"] = True

    def swap_storage(self, optimizer):
        for p in flat(optimizer):
            p.data = p.data.clone() + 1

    def share_memory(self, optimizer):
        for kept in optimizer.state.values():
            kept["exp_avg"].share_memory_()

    def drop_a_parameter(self, optimizer):
        del optimizer.param_groups[0]["params"][1]

    CHANGES = [
        "replace_params", "add_group", "reload", "clear_state", "replace_state", "replace_a_tensor",
        "set_a_step", "change_hyperparameters", "change_the_rule", "swap_storage", "share_memory",
        "drop_a_parameter",
    ]  # fmt: skip

    @pytest.mark.parametrize("choice", CHOICES, ids=label)
    @pytest.mark.parametrize("change", CHANGES)
    def test_it_is_noticed(self, change, choice):
        self.run(getattr(self, change), **choice)

    def test_one_layout_serves_many_steps(self):
        optimizer = AdamW(parameters())
        descend(optimizer, 1, skip=False)
        layout = optimizer._layout
        descend(optimizer, 5, skip=False)
        assert optimizer._layout is layout


class TestStepCounts:
    def test_a_parameter_counts_its_own_gradients_alone(self):
        optimizer = AdamW(parameters(shapes=((2,), (3,))))
        a, b = flat(optimizer)
        for step in range(6):
            a.grad, b.grad = torch.ones(2), torch.ones(3) if step % 3 == 0 else None
            optimizer.step()
        assert optimizer.state[a]["step"] == 6
        assert optimizer.state[b]["step"] == 2

    def test_the_state_of_a_parameter_without_gradient_does_not_move(self):
        optimizer = AdamW(parameters(shapes=((2,), (3,))), amsgrad=True)
        descend(optimizer, 2, skip=False)
        idle = flat(optimizer)[1]
        before = {k: v.clone() for k, v in optimizer.state[idle].items()}
        idle.grad = None
        for _ in range(3):
            optimizer.step()
        assert all(same_bits(optimizer.state[idle][k], v) for k, v in before.items())

    def test_a_state_dict_shares_no_counter(self):
        optimizer = AdamW(parameters())
        descend(optimizer, 2, skip=False)
        counters = [kept["step"] for kept in optimizer.state_dict()["state"].values()]
        assert len({counter.data_ptr() for counter in counters}) == len(counters)


class TestDifferentiable:
    @pytest.mark.parametrize(
        ("cls", "options"),
        [
            (SGD, {"lr": 0.1}),
            (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
            (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
            (Adam, {"weight_decay": 0.1}),
            (Adam, {"amsgrad": True}),
            (AdamW, {"weight_decay": 0.1}),
            (AdEMAMix, {"weight_decay": 0.1, "t_alpha": 2, "t_beta3": 9}),
            (ADOPT, {"weight_decay": 0.1, "clip_exp": 3.0}),
        ],
        ids=label,
    )
    def test_gradients_flow_through_three_steps(self, cls, options):
        def train(p, *grads):
            p = p.clone()
            optimizer = cls([p], **options, differentiable=True)
            for g in grads:
                p.grad = g
                optimizer.step()
            return (p, *(v for k, v in optimizer.state[p].items() if k != "step"))

        inputs = [torch.rand(4, dtype=torch.float64, requires_grad=True) for _ in range(4)]
        assert torch.autograd.gradcheck(train, inputs)

    @pytest.mark.parametrize(
        ("cls", "make"),
        [
            (SGD, lambda x: {"lr": x}),
            (SGD, lambda x: {"lr": 0.1, "weight_decay": x}),
            (Adam, lambda x: {"lr": x}),
            (AdamW, lambda x: {"lr": x, "weight_decay": 0.3}),
            (AdamW, lambda x: {"betas": (x, x * 1.1)}),
            (AdEMAMix, lambda x: {"betas": (x, x * 1.1, x * 1.2), "t_beta3": 9}),
            (ADOPT, lambda x: {"lr": x, "weight_decay": 0.3, "decouple": True}),
        ],
    )
    def test_gradients_flow_to_a_hyperparameter(self, cls, make):
        start, grad = torch.rand(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)

        def train(x):
            p = start.clone().requires_grad_().clone()
            optimizer = cls([p], **make(x), differentiable=True)
            for _ in range(2):
                p.grad = grad
                optimizer.step()
            return p

        assert torch.autograd.gradcheck(
            train, torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        )

    @pytest.mark.parametrize("cls", CLASSES)
    def test_the_values_are_those_of_the_loop(self, cls):
        ours, theirs = pair(cls, parameters(dtype=torch.float64), **LR, weight_decay=0.1)
        copies = [p.detach().clone().requires_grad_().clone() for p in flat(ours)]
        ours = cls(copies, **LR, weight_decay=0.1, differentiable=True)
        for _ in range(4):
            step_both(ours, theirs, [torch.randn_like(p).detach() for p in flat(ours)])
        assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


class TestNonFinite:
    @pytest.mark.parametrize("choice", CHOICES, ids=label)
    @pytest.mark.parametrize("cls", CLASSES)
    @pytest.mark.parametrize("bad", [float("inf"), float("nan")])
    def test_a_step_is_left_out_and_counted(self, cls, bad, choice):
        optimizer = cls(parameters(), **LR, skip_nonfinite=True, **choice)
        descend(optimizer, 2, skip=False)
        before = [p.detach().clone() for p in flat(optimizer)], optimizer.state_dict()
        flat(optimizer)[2].grad[0] = bad
        optimizer.step()
        assert optimizer.skipped_steps == 1
        assert not torch.isfinite(optimizer.grad_norm)
        assert all(map(same_bits, flat(optimizer), before[0]))
        for i, kept in optimizer.state_dict()["state"].items():
            assert all(same_bits(v, before[1]["state"][i][k]) for k, v in kept.items())
        descend(optimizer, 1, skip=False)
        assert optimizer.skipped_steps == 1

    @pytest.mark.parametrize("choice", CHOICES, ids=label)
    def test_without_it_they_spread_as_in_torch(self, choice):
        optimizer = AdamW(parameters(), max_grad_norm=1.0, **choice)
        for p in flat(optimizer):
            p.grad = torch.ones_like(p)
        flat(optimizer)[0].grad[0] = float("inf")
        optimizer.step()
        assert optimizer.skipped_steps == 0
        assert torch.isnan(flat(optimizer)[0]).any()

    @pytest.mark.parametrize("choice", CHOICES, ids=label)
    def test_momentum_begins_with_the_first_step_that_is_taken(self, choice):
        options = {"lr": 1.0, "momentum": 0.9, "dampening": 0.5}
        ours = SGD([torch.nn.Parameter(torch.zeros(1))], **options, skip_nonfinite=True, **choice)
        p = flat(ours)[0]
        for g in (float("inf"), 1.0, 1.0):
            p.grad = torch.tensor([g])
            ours.step()
        assert ours.state[p]["momentum_buffer"].item() == pytest.approx(1.4)
        assert p.item() == pytest.approx(-2.4)

    @pytest.mark.parametrize("choice", CHOICES, ids=label)
    def test_under_a_scaler_as_well(self, choice):
        options = {"lr": 1.0, "momentum": 0.9, "dampening": 0.5}
        ours = SGD([torch.nn.Parameter(torch.zeros(1))], **options, **choice)
        p, scaler = flat(ours)[0], torch.amp.GradScaler("cpu", init_scale=2.0)
        for g in (float("inf"), 1.0, 1.0):
            p.grad = scaler.scale(torch.tensor([g]))
            scaler.step(ours)
            scaler.update()
        assert p.item() == pytest.approx(-2.4)


@pytest.mark.parametrize("choice", [{}, {"foreach": True}, {"foreach": False}], ids=label)
@pytest.mark.parametrize("kept", [torch.float16, torch.bfloat16, torch.float64], ids=label)
def test_moments_of_another_type_than_the_parameter_step(kept, choice):
    ours, theirs = pair(AdamW, parameters(), **LR, **choice)
    step_both(ours, theirs, [torch.ones_like(p) for p in flat(ours)])
    state = ours.state_dict()
    for i, of_one in state["state"].items():
        if i != 1:
            of_one["exp_avg"] = of_one["exp_avg"].to(kept)
    ours.load_state_dict(state)
    step_both(ours, theirs, [torch.ones_like(p) for p in flat(ours)])
    assert ours.state[flat(ours)[0]]["exp_avg"].dtype == kept
    assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("choice", [{}, {"foreach": True}, {"foreach": False}], ids=label)
def test_other_layouts_than_strided_step(choice):
    p = (
        torch.nn.Parameter(torch.eye(3).to_mkldnn())
        if torch.backends.mkldnn.is_available()
        else None
    )
    if p is None:
        pytest.skip("there is no other layout here")
    p.grad = torch.ones(3, 3).to_mkldnn()
    SGD([p], lr=0.5, **choice).step()
    torch.testing.assert_close(p.detach().to_dense(), torch.eye(3) - 0.5)


class TestGradScaler:
    @pytest.mark.parametrize("choice", CHOICES, ids=label)
    @pytest.mark.parametrize("clip", [None, 0.1])
    @pytest.mark.parametrize("cls", CLASSES)
    def test_scaled_training_is_unscaled_training(self, cls, clip, choice):
        options = {**LR, **choice, "max_grad_norm": clip}
        scaled, plain = parameters(), parameters()
        ours, reference = cls(scaled, **options), cls(plain, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        for step in range(6):
            for params in (scaled, plain):
                for i, p in enumerate(params):
                    p.grad = torch.full_like(p, 0.01 * (i + step))
            bad = step == 3
            for p in scaled:
                p.grad = scaler.scale(p.grad) * (float("inf") if bad else 1.0)
            scaler.step(ours)
            scaler.update()
            if not bad:
                reference.step()
        assert_close(ours, reference)
        if cls is not SGD:
            assert {float(kept["step"]) for kept in ours.state.values()} == {5.0}


class TestScratch:
    @pytest.mark.parametrize("cls", CLASSES)
    @pytest.mark.parametrize("clip", [None, 1.0])
    def test_no_part_of_a_step_is_larger_than_its_share_of_the_cap(self, monkeypatch, cls, clip):
        monkeypatch.setattr(foreach, "SCRATCH_BYTES", 3000)
        largest = []
        original = foreach.TensorList

        def watched(tensors):
            largest.append(sum(t.nbytes for t in tensors))
            return original(tensors)

        monkeypatch.setattr(foreach, "TensorList", watched)
        shapes = [(100,), (40, 40), (30,), (5,), (0,), (2000,)]
        options = {**LR, "weight_decay": 0.1, "foreach": True, "max_grad_norm": clip}
        ours, theirs = pair(cls, parameters(shapes), **options)
        for _ in range(3):
            step_both(ours, theirs, [1e-3 * torch.randn_like(p) for p in flat(ours)])
        assert max(largest) <= 1000
        assert_close(ours, theirs)

    @pytest.mark.parametrize(
        ("cls", "options"),
        [
            (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
            (SGD, {"weight_decay": 0.1}),
            (Adam, {"amsgrad": True, "maximize": True, "weight_decay": 0.1}),
            (AdamW, {}),
            (RMSprop, {"centered": True, "momentum": 0.9, "weight_decay": 0.1, "maximize": True}),
            (Lion, {"weight_decay": 0.1, "maximize": True}),
            (AdEMAMix, {"weight_decay": 0.1, "maximize": True}),
            (ADOPT, {"weight_decay": 0.1, "maximize": True}),
            (ScheduleFreeAdamW, {"weight_decay": 0.1, "maximize": True}),
            (ScheduleFreeSGD, {"weight_decay": 0.1, "maximize": True}),
        ],
        ids=label,
    )
    @pytest.mark.parametrize("clip", [None, 1.0])
    def test_a_step_allocates_less_than_the_cap(self, monkeypatch, cls, options, clip):
        monkeypatch.setattr(foreach, "SCRATCH_BYTES", 2**20)
        shapes = [(1000, 1000), (300, 300), (7,), (500, 500)]  # 5 MiB
        ours = cls(parameters(shapes), **LR, **options, foreach=True, max_grad_norm=clip)
        ours.train()
        descend(ours, 1, skip=False)
        assert 2**18 < peak_of(ours.step) < 2**20

    @pytest.mark.parametrize("cls", [ScheduleFreeAdamW, ScheduleFreeSGD])
    def test_a_change_of_mode_allocates_nothing_large(self, cls):
        ours = cls(parameters([(100, 100), (7,)]), **LR)
        ours.train()
        descend(ours, 2, skip=False)
        for change in (ours.eval, ours.train):
            assert peak_of(lambda change=change: (torch.zeros(3), change())) < 1000


SETUPS = [
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2}),
    (SGD, {"lr": 0.1}),
    (Adam, {"amsgrad": True, "weight_decay": 0.1}),
    (AdamW, {}),
]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SETUPS), st.sampled_from(CHOICES), st.integers(0, 8), st.booleans())
def test_a_run_saved_at_any_step_goes_on_bit_for_bit(setup, choice, stop, skip):
    cls, options = setup
    whole = cls(parameters(), **options, **choice)
    descend(whole, stop, skip)
    buffer = io.BytesIO()
    torch.save([whole.state_dict(), [p.detach().clone() for p in flat(whole)]], buffer)
    buffer.seek(0)
    state, values = torch.load(buffer, weights_only=True)
    resumed = cls([torch.nn.Parameter(value) for value in values], **options, **choice)
    resumed.load_state_dict(state)
    rest = descend(whole, 4, skip, seed=7), descend(resumed, 4, skip, seed=7)
    assert all(map(same_bits, *rest))


@pytest.mark.parametrize("choice", [{}, {"foreach": True}, {"foreach": False}], ids=label)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=label)
@pytest.mark.parametrize("cls", TABLE)
def test_clipping_works_in_every_type_and_without_dimensions(cls, dtype, choice):
    params = parameters([(3, 4), ()], dtype)
    truth = [torch.nn.Parameter(p.detach().double()) for p in params]
    options = with_eps(cls, 1e-3)
    ours = cls(params, **LR, **options, **choice, max_grad_norm=0.5)
    theirs = torchs(cls)(truth, **LR, **options, foreach=False)
    for p, q in zip(params, truth, strict=True):
        p.grad = torch.full_like(p, 0.5)
        q.grad = p.grad.double()
    torch.nn.utils.clip_grad_norm_(truth, 0.5)
    ours.step()
    theirs.step()
    for p, q in zip(params, truth, strict=True):
        assert p.dtype == dtype
        torch.testing.assert_close(p.detach().double(), q.detach(), rtol=2e-2, atol=1e-2)


def test_a_rule_without_an_operator_steps_on_the_meta_device():
    p = torch.nn.Parameter(torch.ones(3, device="meta"))
    p.grad = torch.ones_like(p)
    ours = RMSprop([p])
    ours.step()
    assert ours.state[p]["step"].item() == 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_rule_without_an_operator_cannot_be_captured(device):
    p = torch.nn.Parameter(torch.ones(3, device=device))
    with pytest.raises(ArgumentError, match=r"capturable=True needs floating point .* on cuda"):
        RMSprop([p], capturable=True)
