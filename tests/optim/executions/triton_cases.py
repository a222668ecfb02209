"""A rule as a Triton kernel; ``test_triton.py`` runs this file in Triton's interpreter.

Where there is a GPU, ``make test-gpu`` runs it there. What it is compared with is the loop, on the
same device, in the same types of memory.
"""

import math
from itertools import product

import pytest
import torch
from support.labels import label
from support.operations import CASES, check_alone
from support.optimizers import TABLE
from support.rows import each_in_turn
from support.tensors import descend, same_bits
from support.triton_runs import (
    DEVICE,
    INTERPRETED,
    NEEDS_A_DEVICE,
    SHAPES,
    WITHIN,
    assert_alike,
    assert_near,
    assert_same,
    flat,
    pair,
    parameters,
    run_both,
)

from optimplug._core.optim.executions.triton.execution import Triton
from optimplug.optim import (
    ADOPT,
    SGD,
    Adafactor,
    Adam,
    Adamax,
    AdamW,
    AdEMAMix,
    Lion,
    MultiOptimizer,
    NAdam,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    StableAdamW,
)

pytestmark = NEEDS_A_DEVICE

BESIDE = {
    Lion: [{"lr": 0.01, "weight_decay": 0.1}],
    AdEMAMix: [{"weight_decay": 0.1}],
    ADOPT: [{"lr": 0.01}],
    ScheduleFreeAdamW: [{"weight_decay": 0.1, "warmup_steps": 3}],
    ScheduleFreeSGD: [{"lr": 0.1}],
}
RULES = {
    **{cls: row.options for cls, row in TABLE.items() if cls is not Adafactor},
    **BESIDE,
}
EVERY = [(cls, options) for cls, rows in RULES.items() for options in rows]
FIRST = [(cls, rows[-1]) for cls, rows in RULES.items()]
STORED = [
    # Of Adamax the first: with decay in them, gradients near 0 are divided by themselves.
    (cls, rows[0] if cls is Adamax else rows[-1])
    for cls, rows in RULES.items()
    if cls not in (ScheduleFreeAdamW, ScheduleFreeSGD)
]
SOME_STORED = [row for row in STORED if row[0] is AdamW]
"""Of these the quick tests are."""
OTHER_STORED = [row for row in STORED if row[0] is not AdamW]
CLIPPED = [{}, {"max_grad_norm": 0.5}]
ROUNDINGS = ["nearest", "exact", "kahan", "stochastic"]
KEPT = [None, "float32", "bfloat16"]
NARROW = [
    pytest.param(*row, *storage, marks=() if row in SOME_STORED else pytest.mark.slow)
    for row, *storage in product(STORED, ROUNDINGS, CLIPPED, KEPT)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_an_operation_alone(case, dtype):
    check_alone(Triton(), case, dtype, DEVICE)


class TestRules:
    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=label)
    @pytest.mark.parametrize(("cls", "options"), EVERY, ids=label)
    def test_a_run_is_that_of_the_loop(self, cls, options, dtype, launches):
        ours, loop = run_both(cls, dtype, **options)
        assert set(launches) == {"update"}
        assert_near(ours, loop, WITHIN[dtype])

    @pytest.mark.parametrize(
        ("cls", "options", "dtype"), each_in_turn(FIRST, [torch.float32, torch.float64]), ids=label
    )
    def test_so_it_is_with_clipping(self, cls, options, dtype, launches):
        ours, loop = run_both(cls, dtype, max_grad_norm=0.5, **options)
        assert launches[:2] == ["norm", "update"]
        assert_near(ours, loop, WITHIN[dtype])
        assert ours.grad_norm.dtype == dtype
        torch.testing.assert_close(ours.grad_norm, loop.grad_norm)

    def test_float16_is_computed_in_float32(self, launches):
        ours = AdamW(parameters(SHAPES, torch.float16), lr=0.01)
        truth = AdamW(
            parameters(SHAPES, torch.float16), lr=0.01, state_dtype="float32", foreach=False
        )
        descend(ours, 1, skip=False)
        descend(truth, 1, skip=False)
        assert launches == ["update"]
        for p, q in zip(flat(ours), flat(truth), strict=True):
            assert_same(p, q, 2**-10)


class TestStorage:
    @pytest.mark.parametrize(("cls", "options", "rounding", "clip", "kept"), NARROW, ids=label)
    def test_narrow_weights_are_those_of_the_loop(
        self, cls, options, rounding, clip, kept, launches
    ):
        if rounding == "nearest" and kept is None:
            kept = "bfloat16"  # the loop would round after every operation
        storage = {"rounding": rounding, "state_dtype": kept, **clip}
        ours, loop = run_both(cls, torch.bfloat16, 3, **options, **storage)
        assert "update" in launches
        # One unit in the last place; two where the loop's norm is rounded to 8 bits.
        assert_near(ours, loop, 2**-6 if clip else 2**-7, 1e-3 if clip else WITHIN[torch.float32])
        equal = [torch.equal(p, q) for p, q in zip(flat(ours), flat(loop), strict=True)]
        assert sum(equal) >= len(equal) - 2 or clip or not INTERPRETED

    @pytest.mark.parametrize("kept", ["float32", "bfloat16"])
    @pytest.mark.parametrize(
        ("cls", "options"),
        [*SOME_STORED, *(pytest.param(*row, marks=pytest.mark.slow) for row in OTHER_STORED)],
        ids=label,
    )
    def test_wide_weights_with_other_moments_too(self, cls, options, kept, launches):
        ours, loop = run_both(cls, torch.float32, 3, state_dtype=kept, **options)
        assert set(launches) == {"update"}
        for p, q in zip(flat(ours), flat(loop), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-4 if kept == "bfloat16" else 1e-5)

    def test_plain_narrow_weights_are_rounded_once(self, launches):
        ours = AdamW(parameters(SHAPES, torch.bfloat16), lr=0.01)
        truth = AdamW(
            parameters(SHAPES, torch.bfloat16), lr=0.01, state_dtype="bfloat16", foreach=False
        )
        for optimizer in (ours, truth):
            descend(optimizer, 3)
        assert launches == ["update"] * 3
        for p, q in zip(flat(ours), flat(truth), strict=True):
            assert_same(p, q, 2**-7)

    @pytest.mark.parametrize("rounding", ROUNDINGS)
    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3.4e38, 1e-40, -0.0])
    def test_numbers_of_every_kind_are_kept_alike(self, rounding, value, launches):
        found = []
        for choice in ({}, {"foreach": False}):
            p = torch.nn.Parameter(torch.tensor([value, 1.0], dtype=torch.bfloat16, device=DEVICE))
            optimizer = SGD([p], lr=0.1, rounding=rounding, state_dtype="float32", **choice)
            for _ in range(2):
                p.grad = torch.tensor([0.0, 1.0], dtype=torch.bfloat16, device=DEVICE)
                optimizer.step()
            found.append(p.detach())
        assert launches == ["update"] * 2
        torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


class TestNorm:
    def test_a_step_is_one_launch_and_two_with_a_norm_for_200_groups(self, planned):
        apart = [
            {"params": [p], "lr": 1e-3 * i, "weight_decay": i % 2}
            for i, p in enumerate(parameters([(3,)] * 200))
        ]
        optimizer = AdamW(apart)
        descend(optimizer, 1, skip=False)
        assert planned == ["update"]
        optimizer.max_grad_norm = 0.5
        optimizer.step()
        assert planned == ["update", "norm", "update"]

    def test_several_rules_have_one_norm(self, launches):
        def build(**choice):
            params = parameters()
            named = [
                {"params": params[:2], "optimizer": "AdamW"},
                {"params": params[2:], "optimizer": "Lion", "lr": 0.01},
            ]
            return MultiOptimizer(named, max_grad_norm=0.5, **choice)

        ours, loop = build(), build(foreach=False)
        for optimizer in (ours, loop):
            descend(optimizer, 3)
        assert launches == ["norm", "update", "update"] * 3
        assert_near(ours, loop, WITHIN[torch.float32])
        torch.testing.assert_close(ours.grad_norm, loop.grad_norm)

    @pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 20_000])
    def test_it_counts_every_element(self, size, launches):
        optimizer = SGD(parameters([(size,), (3,)]), lr=0.0, max_grad_norm=1.0)
        descend(optimizer, 2, skip=False)
        exact = torch.cat([p.grad.double() for p in flat(optimizer)]).norm()
        assert launches == ["norm", "update"] * 2
        torch.testing.assert_close(optimizer.grad_norm.double(), exact, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=label)
    def test_of_narrow_gradients_it_is_in_float32(self, dtype, launches):
        optimizer = SGD(parameters([(5000,), (3,)], dtype), lr=0.0, max_grad_norm=1.0)
        descend(optimizer, 1, skip=False)
        exact = torch.cat([p.grad.double() for p in flat(optimizer)]).norm()
        assert launches == ["norm", "update"]
        torch.testing.assert_close(optimizer.grad_norm, exact.float(), rtol=1e-6, atol=0)

    def test_of_several_types_torch_finds_it_and_nobody_waits(self, launches):
        def run(**choice):
            params = [*parameters(), *parameters(dtype=torch.bfloat16)]
            optimizer = AdamW(params, max_grad_norm=0.5, skip_nonfinite=True, **choice)
            for wrong in (False, True, False):
                for p in params:
                    p.grad = torch.full_like(p, math.inf if wrong else 0.25)
                optimizer.step()
            return optimizer

        ours, loop = run(), run(foreach=False)
        assert launches == ["update"] * 6
        assert ours.skipped_steps == loop.skipped_steps == 1
        for p, q in zip(flat(ours), flat(loop), strict=True):
            assert_alike(p.detach(), q.detach(), 1e-6 if p.dtype == torch.float32 else 2**-7)
            assert ours.state[p]["step"] == 2

    def test_it_is_the_same_every_time(self):
        optimizer = SGD(parameters([(20_000,), (3,)]), lr=0.0, max_grad_norm=1.0)
        descend(optimizer, 1, skip=False)
        first = optimizer.grad_norm
        optimizer.step()
        assert same_bits(optimizer.grad_norm, first)

    def test_a_small_one_is_not_scaled_up(self):
        ours = run_both(AdamW, max_grad_norm=1e6)
        plain = run_both(AdamW)
        assert all(map(same_bits, flat(ours[0]), flat(plain[0])))

    def test_what_it_is_clipped_to_may_change(self):
        ours, loop = pair(SGD, lr=0.1, max_grad_norm=0.5)
        for most in (0.5, 0.1, None, 2.0):
            for optimizer in (ours, loop):
                optimizer.max_grad_norm = most
                descend(optimizer, 1)
        assert_near(ours, loop, WITHIN[torch.float32])

    def test_where_there_are_no_elements_it_is_zero(self):
        optimizer = SGD(parameters([(0,)]), lr=0.1, max_grad_norm=1.0)
        descend(optimizer, 1, skip=False)
        assert optimizer.grad_norm == 0

    @pytest.mark.parametrize("clip", CLIPPED, ids=label)
    def test_a_loss_scaler_is_undone_where_the_step_is(self, clip, launches):
        ours, loop = pair(AdamW, **clip)
        for optimizer in (ours, loop):
            descend(optimizer, 1, skip=False)
            for p in flat(optimizer):
                p.grad *= 1024.0
            optimizer.grad_scale = torch.tensor(1024.0, device=DEVICE)
            optimizer.step()
        assert_near(ours, loop, WITHIN[torch.float32])
        if clip:
            torch.testing.assert_close(ours.grad_norm, loop.grad_norm)


class TestSkips:
    CASES = [
        (AdamW, {}),
        (SGD, {"lr": 0.1, "momentum": 0.9}),
        (NAdam, {}),
        (ScheduleFreeAdamW, {}),
    ]
    STORAGE = [{}, {"rounding": "stochastic"}, {"rounding": "kahan"}]

    def steps(self, optimizer, wrong, how):
        """Step; where it is said so, with a gradient that is infinite, or as a scaler would."""
        for number, is_wrong in enumerate(wrong):
            generator = torch.Generator().manual_seed(number)
            for p in flat(optimizer):
                p.grad = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
            if how == "found_inf":
                optimizer.found_inf = torch.tensor(float(is_wrong), device=DEVICE)
            elif is_wrong:
                flat(optimizer)[0].grad.view(-1)[0] = math.inf
            optimizer.step()
        return optimizer

    @pytest.mark.parametrize("how", ["skip_nonfinite", "found_inf"])
    @pytest.mark.parametrize("wrong", [[1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0, 1]], ids=str)
    @pytest.mark.parametrize(("cls", "options"), CASES, ids=label)
    def test_a_step_that_is_skipped_has_not_been(self, cls, options, wrong, how, launches):
        options = {**options, "skip_nonfinite": how == "skip_nonfinite"}
        ours, loop = pair(cls, **options)
        for optimizer in (ours, loop):
            self.steps(optimizer, wrong, how)
        assert launches.count("update") == len(wrong)  # nobody has waited to know
        assert (
            ours.skipped_steps
            == loop.skipped_steps
            == (sum(wrong) if how == "skip_nonfinite" else 0)
        )
        assert_near(ours, loop, WITHIN[torch.float32])
        found, expected = ours.state_dict(), loop.state_dict()
        assert found["param_groups"] == [
            {**group, "foreach": None} for group in expected["param_groups"]
        ]

    @pytest.mark.parametrize("storage", STORAGE, ids=label)
    def test_so_it_is_with_numbers_that_groups_count(self, storage):
        def run(**choice):
            p = torch.nn.Parameter(torch.linspace(-1, 1, 9).to(DEVICE, torch.bfloat16))
            optimizer = AdamW([p], skip_nonfinite=True, state_dtype="float32", **storage, **choice)
            return self.steps(optimizer, [0, 1, 0, 1, 1], "skip_nonfinite")

        ours, loop = run(), run(foreach=False)
        assert_same(flat(ours)[0], flat(loop)[0], 2**-7)
        found = [optimizer.state_dict()["param_groups"][0] for optimizer in (ours, loop)]
        assert found[0].get("rounding_step") == found[1].get("rounding_step")

    @pytest.mark.parametrize("clip", CLIPPED, ids=label)
    def test_what_a_scaler_alone_has_skipped_is_not_counted_as_left_out(self, clip):
        ours, loop = pair(AdamW, skip_nonfinite=True, **clip)
        for optimizer in (ours, loop):
            self.steps(optimizer, [0, 1, 0], "found_inf")
            assert optimizer.skipped_steps == 0
            self.steps(optimizer, [1], "skip_nonfinite")
        assert ours.skipped_steps == loop.skipped_steps == 1
        assert_near(ours, loop, WITHIN[torch.float32])

    def test_a_rate_that_is_set_meanwhile_stays(self):
        optimizer = AdamW(parameters(), skip_nonfinite=True)
        self.steps(optimizer, [0, 1], "skip_nonfinite")
        optimizer.param_groups[0]["lr"] = 0.5
        assert optimizer.skipped_steps == 1
        assert optimizer.param_groups[0]["lr"] == 0.5

    def test_who_looks_at_the_state_sees_what_is(self):
        optimizer = AdamW(parameters(), skip_nonfinite=True)
        self.steps(optimizer, [0, 1], "skip_nonfinite")
        assert {float(kept["step"]) for kept in optimizer.state.values()} == {1.0}


@pytest.mark.parametrize(
    ("cls", "options"),
    [(AdamW, {"weight_decay": 0.1}), (NAdam, {}), (SGD, {"momentum": 0.9}), (StableAdamW, {})],
    ids=label,
)
def test_a_rate_on_the_device_stays_there(cls, options, monkeypatch):
    """To read it on the host would be to wait for the device; it may change there at any time."""

    def build(rate, **choice):
        named = [{"params": [p]} for p in parameters([(30,), (7,)])]
        named[1]["lr"] = 0.1  # the other group's is a number
        return cls(named, lr=rate, **options, **choice)

    def refuse(tensor):
        assert tensor.dtype != torch.float64, "it was read"
        return read(tensor)

    rate = torch.tensor(0.01, dtype=torch.float64, device=DEVICE)
    ours, loop = build(rate), build(0.01, foreach=False)
    read = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", refuse)
    for number in (0.01, 0.02, 0.04):
        rate.fill_(number)
        loop.param_groups[0]["lr"] = number
        for optimizer in (ours, loop):
            descend(optimizer, 1, skip=False)
    assert_near(ours, loop, 2 * WITHIN[torch.float32])


class TestMemory:
    def layouts(self, kind):
        generator = torch.Generator().manual_seed(3)
        memory = torch.randn(4000, generator=generator).to(DEVICE)
        image = torch.randn(4, 8, 5, 7, generator=generator).to(DEVICE)
        return {
            "one element from its start": [memory[1:3001], memory[3001:]],
            "channels last": [image.to(memory_format=torch.channels_last), memory[:100]],
            "transposed": [memory[:1200].view(30, 40).t()],
            "next to each other": list(memory.split([1, 2, 1021, 1024, 1952])),
        }[kind]

    KINDS = ["one element from its start", "channels last", "transposed", "next to each other"]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
    @pytest.mark.parametrize("kind", KINDS)
    def test_memory_of_every_kind(self, kind, dtype, launches):
        found = []
        for choice in ({}, {"foreach": False}):
            params = [torch.nn.Parameter(t.to(dtype)) for t in self.layouts(kind)]
            before = [p.detach().clone(memory_format=torch.preserve_format) for p in params]
            optimizer = AdamW(params, lr=0.1, state_dtype="float32", **choice)
            for step in range(2):
                for p, like in zip(params, before, strict=True):
                    p.grad = like * (step + 1)
                optimizer.step()
            found.append(params)
        assert launches == ["update"] * 2
        for a, b in zip(*found, strict=True):
            assert_alike(a.detach(), b.detach(), 1e-6 if dtype == torch.float32 else 2**-7)

    def test_a_gradient_that_lies_otherwise_takes_another_way(self, launches):
        found = []
        for choice in ({}, {"foreach": False}):
            p = torch.nn.Parameter(torch.ones(3, 4, device=DEVICE))
            optimizer = SGD([p], lr=0.1, **choice)
            for step in range(4):
                g = torch.arange(12.0, device=DEVICE).view(3, 4)
                p.grad = g if step % 2 else g.t().contiguous().t()
                optimizer.step()
            found.append(p)
        assert launches == ["update"] * 2
        torch.testing.assert_close(*found)

    def test_gradients_that_move_are_followed(self, launches):
        ours, loop = pair(AdamW)
        kept = []
        for optimizer in (ours, loop):
            for step in range(4):
                for p in flat(optimizer):
                    p.grad = torch.full_like(p, step + 1.0)
                    kept.append(p.grad)  # its memory is not another's next time
                optimizer.step()
        assert launches == ["update"] * 4
        assert_near(ours, loop, WITHIN[torch.float32])

    def test_a_parameter_and_a_state_that_are_replaced_are_followed(self):
        ours, loop = pair(AdamW)
        for optimizer in (ours, loop):
            descend(optimizer, 2, skip=False)
            p = flat(optimizer)[0]
            p.data = p.data * 2
            optimizer.state[p]["exp_avg"] = torch.zeros_like(p)
            optimizer.state[flat(optimizer)[1]]["step"].zero_()
            descend(optimizer, 2, skip=False)
        assert_near(ours, loop, WITHIN[torch.float32])

    def test_complex_numbers_are_pairs(self, launches):
        ours, loop = run_both(AdamW, torch.complex64)
        assert set(launches) == {"update"}
        for p, q in zip(flat(ours), flat(loop), strict=True):
            torch.testing.assert_close(p, q)

    def test_of_another_type_than_its_neighbours_is_a_launch_of_its_own(self, launches):
        found = []
        for choice in ({}, {"foreach": False}):
            params = [*parameters(), *parameters(dtype=torch.float64)]
            found.append(descend(AdamW(params, **choice), 2, skip=False))
        assert launches == ["update"] * 4
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)

    def test_autograd_is_told_that_a_parameter_has_changed(self):
        p = torch.nn.Parameter(torch.ones(3, device=DEVICE))
        loss = (p * p).sum()
        p.grad = torch.ones_like(p)
        SGD([p], lr=0.1).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    @pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
    def test_the_default_device_is_no_concern_of_its(self, rounding, launches):
        options = {"rounding": rounding, "state_dtype": "float32", "max_grad_norm": 0.5}
        ours, loop = pair(NAdam, **options)
        with torch.device("meta"):
            for optimizer in (ours, loop):
                for step in range(2):
                    for p in flat(optimizer):
                        p.grad = torch.full(p.shape, step + 1.0, device=DEVICE)
                    optimizer.step()
        assert_near(ours, loop, WITHIN[torch.float32])

    @pytest.mark.parametrize("choice", [{"foreach": True}, {"foreach": False}], ids=label)
    def test_who_chooses_another_way_has_it(self, choice, launches):
        descend(Adam(parameters(), **choice), 1)
        assert launches == []
