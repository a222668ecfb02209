"""Steps that a CUDA graph may record; ``test_triton.py`` runs this file in Triton's interpreter.

There a tensor on the CPU plays one on a GPU: whoever reads its value would wait for the device, and
what is recorded is done at once.
"""

import copy
import math
from contextlib import contextmanager

import pytest
import torch
from support.labels import label
from support.optimizers import TABLE
from support.triton_runs import (
    DEVICE,
    NEEDS_A_DEVICE,
    WITHIN,
    assert_near,
    flat,
    parameters,
)

from optimplug import ArgumentError
from optimplug._core.optim.executions import capture
from optimplug._core.optim.executions.triton import counted, tables
from optimplug.optim import (
    ADOPT,
    ASGD,
    CAME,
    LAMB,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    AdEMAMix,
    Lion,
    MultiOptimizer,
    NAdam,
    RAdam,
    StableAdamW,
    TransformersAdafactor,
)

pytestmark = NEEDS_A_DEVICE

OWN = {
    Lion: [{"weight_decay": 0.1}],
    AdEMAMix: [{"weight_decay": 0.1}, {"t_alpha": 3, "t_beta3": 4}],
    ADOPT: [{}, {"clip_exp": None, "weight_decay": 0.1, "decouple": True}],
    StableAdamW: [{"weight_decay": 0.1}],
    LAMB: [{}, {"bias_correction": False}],
    CAME: [{}],
    TransformersAdafactor: [{"relative_step": False, "beta1": 0.9}],
}
ROWS = [(cls, row) for cls, rows in OWN.items() for row in rows]
ROWS += [(cls, row) for cls, table in TABLE.items() for row in table.options]
QUICK = [(cls, rows[-1]) for cls, rows in OWN.items() if cls in (Lion, AdEMAMix, ADOPT)]
QUICK += [(cls, TABLE[cls].options[-1]) for cls in (NAdam, RAdam, ASGD)]
SHAPES = [(30, 4), (7,), (), (1500,)]
CLIPPED = {"max_grad_norm": 0.5, "skip_nonfinite": True}
"""By a kernel: the norm that torch finds stands on the CPU here, where it is read."""


@contextmanager
def nobody_reads(monkeypatch):
    """Fail where the value of a tensor is asked for."""

    def refuse(tensor, *given):
        raise AssertionError("a value was read, for which the host waits on a GPU")

    with monkeypatch.context() as patch:
        for name in ("__float__", "__bool__", "__int__", "item", "tolist"):
            patch.setattr(torch.Tensor, name, refuse)
        yield


@contextmanager
def recorded(monkeypatch):
    """Step as within a capture: nothing is read, and nothing uploaded."""

    def refuse(*given):
        raise AssertionError("what is uploaded within a capture is gone when it is replayed")

    with nobody_reads(monkeypatch), monkeypatch.context() as patch:
        patch.setattr(capture, "_is_recorded", lambda: True)
        for module in (tables, counted):
            patch.setattr(module, "upload", refuse)
        yield


def four_groups(rates, shapes=SHAPES, dtype=torch.float32):
    pairs = zip(parameters(shapes, dtype), rates, strict=True)
    return [{"params": [p], "lr": rate} for p, rate in pairs]


def both(cls, dtype=torch.float32, shapes=SHAPES, **options):
    """The same in a step that may be recorded, and in the loop; rates stand on the device."""
    options.pop("lr", None)
    found = []
    for choice in ({"capturable": True}, {"foreach": False}):
        rates = [torch.full((), 0.01 * i, device=DEVICE) for i in (1, 1, 2, 3)]
        found.append(cls(four_groups(rates, shapes, dtype), **options, **choice))
    return found


def give(optimizer, number, missing=()):
    generator = torch.Generator().manual_seed(number)
    for i, p in enumerate(flat(optimizer)):
        g = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
        p.grad = None if i in missing else g


def step_both(pair, number, monkeypatch, missing=(), within=nobody_reads):
    """One step of each; the first of them as a context allows."""
    ours, loop = pair
    for optimizer in pair:
        give(optimizer, number, missing)
        for i, group in enumerate(optimizer.param_groups):
            group["lr"].fill_(0.01 * (1 + (number + i) % 3))
    with within(monkeypatch):
        ours.step()
    loop.step()


@contextmanager
def as_it_is(monkeypatch):
    yield


def runs(pair, monkeypatch, steps=6, laid_out=1):
    for number in range(steps):
        within = as_it_is if number < laid_out else nobody_reads
        step_both(pair, number, monkeypatch, within=within)


class TestRuns:
    @pytest.mark.slow
    @pytest.mark.parametrize("clip", [{}, CLIPPED], ids=label)
    @pytest.mark.parametrize(("cls", "options"), ROWS, ids=label)
    def test_every_run_is_that_of_the_loop(self, cls, options, clip, monkeypatch):
        if isinstance(options.get("betas", (0.0,))[0], torch.Tensor):
            clip = CLIPPED  # torch's operator takes them from the host, where they stand here
        pair = both(cls, **options, **clip)
        runs(pair, monkeypatch)
        assert_near(*pair, (2 if cls is not CAME else 10) * WITHIN[torch.float32])

    @pytest.mark.parametrize(("cls", "options"), QUICK, ids=label)
    def test_a_run_is_that_of_the_loop(self, cls, options, monkeypatch, launches):
        pair = both(cls, shapes=[(5,), (7,), (), (3, 2)], **options)
        runs(pair, monkeypatch, 4)
        assert launches == ["update"] * 4
        assert_near(*pair, WITHIN[torch.float32])

    @pytest.mark.parametrize("cls", [Adam, AdamW])
    def test_torchs_operator_comes_first_where_there_is_one(self, cls, monkeypatch, launches):
        pair = both(cls)
        runs(pair, monkeypatch)
        assert launches == []
        assert_near(*pair, WITHIN[torch.float32])

    @pytest.mark.parametrize("rate", ["numbers", "both", "one tensor"])
    def test_rates_of_every_kind(self, rate, monkeypatch, launches):
        one = torch.full((), 0.02, device=DEVICE)
        rates = {
            "numbers": [0.01, 0.01, 0.02, 0.03],
            "both": [0.01, one, 0.02, one.clone()],
            "one tensor": [one] * 4,
        }[rate]
        ours = NAdam(four_groups(rates), weight_decay=0.1, capturable=True)
        loop = NAdam(four_groups(list(map(float, rates))), weight_decay=0.1, foreach=False)
        ours.param_groups[2]["betas"] = loop.param_groups[2]["betas"] = (0.5, 0.6)
        ours.param_groups[3]["weight_decay"] = loop.param_groups[3]["weight_decay"] = 0.3
        for number in range(4):
            for optimizer in (ours, loop):
                give(optimizer, number)
            with nobody_reads(monkeypatch) if number else as_it_is(monkeypatch):
                ours.step()
            loop.step()
        assert launches == ["update"] * 4
        assert_near(ours, loop, WITHIN[torch.float32])

    def test_groups_that_read_other_settings_than_the_first(self, monkeypatch):
        """Of a relative step the warm-up counts, of another the rate."""

        def build(**choice):
            groups = four_groups([None] * 4, [(3, 2), (2, 3), (4, 2), (2, 2)])
            groups[0].update(relative_step=False, lr=0.02)
            groups[1].update(warmup_init=True)
            groups[3].update(mine={"anything": [1]}, own=torch.ones(3))
            return TransformersAdafactor(groups, **choice)

        ours, loop = build(capturable=True), build(foreach=False)
        for number in range(3):
            for optimizer in (ours, loop):
                give(optimizer, number)
                optimizer.step()
        assert_near(ours, loop, 10 * WITHIN[torch.float32])

    def test_several_optimizers_in_one(self, monkeypatch, launches):
        def build(**choice):
            names = ("NAdam", "Lion", "AdamW", "NAdam")
            pairs = zip(four_groups([0.01] * 4), names, strict=True)
            own = [{**group, "optimizer": name} for group, name in pairs]
            return MultiOptimizer(own, **CLIPPED, **choice)

        ours, loop = build(capturable=True), build(foreach=False)
        for number in range(4):
            for optimizer in (ours, loop):
                give(optimizer, number)
            with nobody_reads(monkeypatch) if number else as_it_is(monkeypatch):
                ours.step()
            loop.step()
        assert set(launches) == {"norm", "update"}
        assert_near(ours, loop, 10 * WITHIN[torch.float32])

    def test_a_counter_that_is_reset_is_that_of_its_parameter(self, monkeypatch):
        pair = both(RAdam)
        for number in range(4):
            if number == 2:
                for optimizer in pair:
                    optimizer.state[flat(optimizer)[1]]["step"].zero_()
            step_both(pair, number, monkeypatch, within=as_it_is)
        assert [float(kept["step"]) for kept in pair[0].state.values()] == [4, 2, 4, 4]
        assert_near(*pair, WITHIN[torch.float32])

    STORED = [
        (AdamW, {"state_dtype": "8bit"}, torch.float32, ((5000,), (7,), (3,), (2, 2))),
        (AdamW, {"rounding": "exact"}, torch.bfloat16, SHAPES),
        (NAdam, {"rounding": "exact", "state_dtype": "bfloat16"}, torch.bfloat16, SHAPES),
        (Lion, {"rounding": "exact"}, torch.bfloat16, SHAPES),
        (RAdam, {"state_dtype": "bfloat16"}, torch.float32, SHAPES),
    ]

    @pytest.mark.slow
    @pytest.mark.parametrize(("cls", "storage", "dtype", "shapes"), STORED, ids=label)
    def test_storage_is_that_of_the_loop(self, cls, storage, dtype, shapes, monkeypatch, launches):
        pair = both(cls, dtype, shapes, **storage)
        runs(pair, monkeypatch, 4)
        assert set(launches) == {"update"}
        ours, loop = pair
        for p, q in zip(flat(ours), flat(loop), strict=True):
            near = {torch.bfloat16: 2**-7, torch.float32: 1e-4}[dtype]
            torch.testing.assert_close(p, q, rtol=near, atol=near * float(q.detach().abs().max()))


class TestSkips:
    CASES = [
        (NAdam, {}),
        (AdamW, {"amsgrad": True}),
        (ASGD, {"t0": 2}),
        (Lion, {}),
        (SGD, {"momentum": 0.9, "dampening": 0.5}),
    ]

    @pytest.mark.parametrize("how", ["skip_nonfinite", "found_inf"])
    @pytest.mark.parametrize("wrong", [[1, 0, 0], [0, 1, 1, 0, 1]], ids=str)
    @pytest.mark.parametrize(("cls", "options"), CASES, ids=label)
    def test_a_step_that_is_left_out_has_not_been(self, cls, options, wrong, how, monkeypatch):
        skips = how == "skip_nonfinite"
        pair = both(cls, shapes=[(5,), (7,), (), (3, 2)], skip_nonfinite=skips, **options)
        begun = False
        for number, is_wrong in enumerate(wrong):
            for optimizer in pair:
                give(optimizer, number)
                if skips and is_wrong:
                    flat(optimizer)[0].grad.view(-1)[0] = math.inf
                elif not skips:
                    optimizer.found_inf = torch.tensor(float(is_wrong), device=DEVICE)
            ours, loop = pair
            with nobody_reads(monkeypatch) if begun else as_it_is(monkeypatch):
                ours.step()
            loop.step()
            begun = begun or not is_wrong
        assert ours.skipped_steps == loop.skipped_steps == (sum(wrong) if skips else 0)
        assert_near(ours, loop, WITHIN[torch.float32])
        ours.skipped_steps = 7
        assert ours.skipped_steps == 7


class TestCapture:
    CASES = [
        (NAdam, {}),
        (Adam, {}),
        (SGD, {"momentum": 0.9, "max_grad_norm": 0.5}),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                (Lion, {"max_grad_norm": 0.5}),
                (ASGD, {"skip_nonfinite": True}),
                (Adagrad, {"lr_decay": 0.1}),
                (Adam, CLIPPED),
                (StableAdamW, CLIPPED),
            )
        ),
    ]

    @pytest.mark.parametrize(("cls", "options"), CASES, ids=label)
    def test_one_step_outside_is_enough(self, cls, options, monkeypatch):
        pair = both(cls, shapes=[(5,), (7,), (), (3, 2)], **options)
        for number in range(5):
            within = recorded if number in (1, 4) else as_it_is
            step_both(pair, number, monkeypatch, within=within)
        assert_near(*pair, 2 * WITHIN[torch.float32])

    def test_what_a_replay_copies_again_is_never_written_again(self, monkeypatch):
        pair = ours, _ = both(NAdam)
        step_both(pair, 0, monkeypatch, within=as_it_is)
        step_both(pair, 1, monkeypatch, within=recorded)
        addresses = [p.grad.data_ptr() for p in flat(ours)]
        every = [each for held in ours._recording._held for each in held]
        tensors = [each for each in every if isinstance(each, torch.Tensor)]
        copied = [t for t in tensors if t.dtype == torch.int64 and t.tolist() == addresses]
        assert len(copied) == 2  # on the host, and on the device
        kept = [p.grad for p in flat(ours)]
        for number in (2, 3):
            step_both(pair, number, monkeypatch, within=as_it_is)
        step_both(pair, 4, monkeypatch, within=recorded)
        assert [p.data_ptr() for p in kept] == addresses
        assert all(t.tolist() == addresses for t in copied)

    def test_who_counts_elsewhere_than_its_graphs_is_told_so(self, monkeypatch):
        pair = ours, _ = both(NAdam)
        step_both(pair, 0, monkeypatch, within=as_it_is)
        step_both(pair, 1, monkeypatch, within=recorded)
        ours.load_state_dict(ours.state_dict())
        with pytest.warns(RuntimeWarning, match="capture again"):
            step_both(pair, 2, monkeypatch, within=as_it_is)
        step_both(pair, 3, monkeypatch, within=recorded)
        assert_near(*pair, WITHIN[torch.float32])

    def refused(self, optimizer, monkeypatch, match):
        give(optimizer, 9)
        before = [p.detach().clone() for p in flat(optimizer)]
        counts = [float(kept["step"]) for kept in optimizer.state.values()]
        with recorded(monkeypatch), pytest.raises(ArgumentError, match=match):
            optimizer.step()
        assert all(map(torch.equal, before, flat(optimizer)))
        assert counts == [float(kept["step"]) for kept in optimizer.state.values()]

    def test_without_a_step_before_it_is_refused(self, monkeypatch):
        self.refused(both(NAdam)[0], monkeypatch, "call step\\(\\) once outside of the capture")

    def test_each_capture_needs_one(self, monkeypatch):
        pair = both(NAdam)
        step_both(pair, 0, monkeypatch, within=as_it_is)
        step_both(pair, 1, monkeypatch, within=recorded)
        self.refused(pair[0], monkeypatch, "must find room for the addresses of gradients")
        step_both(pair, 2, monkeypatch, within=as_it_is)
        step_both(pair, 3, monkeypatch, within=recorded)
        assert_near(*pair, WITHIN[torch.float32])

    CHANGES = [
        ("another parameter has a gradient", lambda o: give(o, 1, missing=[2])),
        ("a state is gone", lambda o: o.state.clear()),
        ("a parameter has moved", lambda o: setattr(flat(o)[0], "data", flat(o)[0].data.clone())),
        ("settings go together otherwise", lambda o: o.param_groups[0].update(betas=(0.1, 0.2))),
        ("another kernel is needed", lambda o: o.param_groups[0].update(weight_decay=0.5)),
        ("a rounding that cannot be", lambda o: o.param_groups[0].update(rounding="stochastic")),
    ]

    @pytest.mark.parametrize("change", [row[1] for row in CHANGES], ids=[row[0] for row in CHANGES])
    def test_so_is_what_would_have_to_be_laid_out(self, change, monkeypatch):
        pair = ours, _ = both(NAdam)
        step_both(pair, 0, monkeypatch, within=as_it_is)
        if change is self.CHANGES[0][1]:
            give(ours, 1, missing=[2])
            ours.step()
        else:
            change(ours)
        self.refused(ours, monkeypatch, "within a CUDA graph a step must find")

    def test_a_kernel_that_has_not_run_is_refused(self, monkeypatch):
        """Where every rate is 0, as a warm-up may begin, the kernel leaves the decay out."""
        ours = AdEMAMix(four_groups([0.0] * 4), weight_decay=0.1, capturable=True)
        give(ours, 0)
        ours.step()
        for group in ours.param_groups:
            group["lr"] = 0.1
        self.refused(ours, monkeypatch, "must find the kernel that it needs")
        ours.step()
        give(ours, 1)
        with recorded(monkeypatch):
            ours.step()

    def test_a_copy_leaves_a_graph_its_counters(self, monkeypatch):
        pair = ours, _ = both(NAdam)
        for number, within in enumerate((as_it_is, recorded)):
            step_both(pair, number, monkeypatch, within=within)
        before = [[id(number) for number in kept.values()] for kept in ours.state.values()]
        counts = [kept["step"] for kept in copy.deepcopy(ours).state.values()]
        assert [float(count) for count in counts] == [2] * 4
        assert all(count.untyped_storage().nbytes() == count.nbytes for count in counts)
        after = [[id(number) for number in kept.values()] for kept in ours.state.values()]
        assert after == before
        for number, within in enumerate((as_it_is, recorded)):
            step_both(pair, 2 + number, monkeypatch, within=within)
        assert_near(*pair, WITHIN[torch.float32])

    def test_a_gradient_that_lies_otherwise_is_refused(self, monkeypatch):
        p = torch.nn.Parameter(torch.ones(3, 4, device=DEVICE))
        optimizer = NAdam([p], capturable=True)
        g = torch.arange(12.0, device=DEVICE).view(3, 4)
        p.grad = g
        optimizer.step()
        p.grad = g.t().contiguous().t()
        before = p.detach().clone()
        with recorded(monkeypatch), pytest.raises(ArgumentError, match="laid out like their param"):
            optimizer.step()
        assert torch.equal(p, before)
        optimizer.step()
        assert float(optimizer.state[p]["step"]) == 2
