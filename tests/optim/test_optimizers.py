import copy
import io
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.labels import label
from support.optimizers import TABLE, torchs, with_eps
from support.rows import few_quick
from support.tensors import descend, parameters, same_bits

from optimplug import ArgumentError, GradientError
from optimplug._core.optim.executions.operands import TensorList
from optimplug.optim import ASGD, SGD, Adam, AdamW, Rprop, ScheduleFreeAdamW, ScheduleFreeSGD

OPTIONS = [(cls, options) for cls, row in TABLE.items() for options in row.options]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def has_tensors(options):
    return any(
        isinstance(value, torch.Tensor)
        for given in options.values()
        for value in (given if isinstance(given, tuple) else (given,))
    )


def cases(*more, only=lambda cls, options, *rest: True):
    """Every class and options, times what is given, where ``only`` holds; with readable names."""
    rows = ((cls, options, *rest) for cls, options in OPTIONS for rest in itertools.product(*more))
    return [
        pytest.param(
            *row.values,
            marks=row.marks,
            id="-".join(getattr(x, "__name__", str(x)) for x in row.values),
        )
        for row in few_quick(row for row in rows if only(*row))
    ]


SHAPES = ((3, 4), (7,), (5, 5, 2), ())


def build(cls, dtype=torch.float32, shapes=SHAPES, **options):
    params = parameters(shapes, dtype)
    second = {"betas": (0.8, 0.95)} if "betas" in options else {"lr": 3e-3}
    if isinstance(options.get("betas", [0])[0], torch.Tensor):
        second = {}
    groups = [
        {"params": params[:2], "lr": 1e-2, "weight_decay": 0.0},
        {"params": params[2:], **second},
    ]
    return cls(groups, **options)


# torch rounds tensor betas to the parameter's type; here they keep their precision.
@pytest.mark.parametrize(
    ("cls", "options", "dtype"),
    cases(
        DTYPES,
        only=lambda cls, options, dtype: (
            not (dtype == torch.bfloat16 and isinstance(options.get("betas", [0])[0], torch.Tensor))
        ),
    ),
)
def test_single_is_torchs_loop_bit_for_bit(cls, options, dtype):
    ours = descend(build(cls, dtype, foreach=False, **options), 50)
    theirs = descend(build(torchs(cls), dtype, foreach=False, **options), 50)
    assert all(map(same_bits, ours, theirs))


@pytest.mark.parametrize(("cls", "options"), cases())
def test_foreach_is_within_2e_7_of_torchs_loop(cls, options):
    # As in torch, foreach=True takes no tensors for numbers.
    numbers = {
        name: tuple(b.item() for b in value)
        if isinstance(value, tuple) and isinstance(value[0], torch.Tensor)
        else value.item()
        if isinstance(value, torch.Tensor)
        else value
        for name, value in options.items()
    }
    ours = descend(build(cls, foreach=True, **numbers), 50)
    theirs = descend(build(torchs(cls), foreach=False, **numbers), 50)
    for a, b in zip(ours, theirs, strict=True):
        rtol = TABLE[cls].foreach_rtol
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-9 if rtol < 1e-6 else 1e-6)


def error(found, truth):
    """Root mean square error, relative to the size of what was learnt."""
    pairs = zip(found, truth, strict=True)
    return sum((a.double() - b).square().sum().item() for a, b in pairs) ** 0.5


@pytest.mark.parametrize(
    ("cls", "options", "dtype", "execution"),
    cases(
        [torch.float32, torch.bfloat16, torch.float16],
        ["fused", "foreach", None],
        only=lambda cls, options, dtype, execution: (
            not (has_tensors(options) and execution) and (execution != "fused" or TABLE[cls].fused)
        ),
    ),
)
def test_an_execution_is_no_further_from_float64_than_torchs_best(cls, options, dtype, execution):
    if dtype == torch.float16:
        options = {**options, **with_eps(cls, 0.1)}
    choice = {execution: True} if execution else {}

    def run(cls, dtype, **choice):
        optimizer = build(cls, dtype, [(40, 30), (30,), (20, 20), ()], **{**options, **choice})
        return descend(optimizer, 20, skip=False, rounding=torch.bfloat16)

    truth = run(torchs(cls), torch.float64, foreach=False)
    loop = error(run(torchs(cls), dtype, foreach=False), truth)
    has_fused = TABLE[cls].fused
    needs_many = execution == "foreach" or not has_fused
    many = error(run(torchs(cls), dtype, foreach=True), truth) if needs_many else loop
    fused = error(run(torchs(cls), dtype, fused=True), truth) if has_fused else many
    ours = error(run(cls, dtype, **choice), truth)
    # Rounding is a matter of luck, though little in so many numbers.
    allowed = {
        "fused": max(loop, min(fused, 2 * loop)),
        "foreach": max(loop, many),
        None: max(loop, min(fused, 2 * loop)),
    }
    assert ours <= 1.05 * allowed[execution] + 1e-12


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_complex_parameters_are_torchs(foreach, amsgrad):
    def run(cls):
        torch.manual_seed(3)
        p = torch.nn.Parameter(torch.randn(4, dtype=torch.complex64))
        optimizer = cls([p], foreach=foreach, amsgrad=amsgrad)
        for _ in range(10):
            p.grad = torch.randn(4, dtype=torch.complex64)
            optimizer.step()
        return p

    torch.testing.assert_close(run(AdamW), run(torch.optim.AdamW), rtol=2e-7, atol=0)


@pytest.mark.parametrize("foreach", [False, True])
def test_an_empty_tensor_is_no_trouble(foreach):
    params = parameters(shapes=((0,), (2,)))
    before = params[1].detach().clone()
    descend(AdamW(params, foreach=foreach), 2, skip=False)
    assert not torch.equal(params[1], before)


def test_mixed_dtypes_step_together():
    mixed = [p for dtype in DTYPES for p in parameters(shapes=((3,),), dtype=dtype)]
    apart = [torch.nn.Parameter(p.detach().clone()) for p in mixed]
    together = descend(AdamW(mixed, foreach=False), 5)
    reference = descend(torch.optim.AdamW(apart, foreach=False), 5)
    assert all(map(same_bits, together, reference))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=6, max_size=6), st.permutations(range(6)), st.booleans()
)
def test_splitting_and_permuting_groups_changes_nothing(owners, order, foreach):
    shapes = [(2, 3), (4,), (), (1, 5), (3, 3), (2,)]

    def run(grouped):
        params = parameters(shapes)
        groups = [
            {"params": [params[i] for i in order if owners[i] == owner], "lr": 0.01}
            for owner in sorted(set(owners))
        ]
        optimizer = AdamW(groups if grouped else params, lr=0.01, foreach=foreach)
        for step in range(4):
            for i, p in enumerate(params):
                generator = torch.Generator().manual_seed(100 * step + i)
                p.grad = torch.randn(p.shape, generator=generator) if (step + i) % 4 else None
            optimizer.step()
        return params

    assert all(map(same_bits, run(True), run(False)))


def test_a_step_of_many_groups_is_one_call_per_operation(monkeypatch):
    calls = []
    original = TensorList.lerp_

    def counted(self, *rest):
        calls.append(len(self.tensors))
        return original(self, *rest)

    monkeypatch.setattr(TensorList, "lerp_", counted)
    params = parameters(shapes=[(2,)] * 200)
    descend(
        AdamW([{"params": [p], "lr": i / 1e4} for i, p in enumerate(params)], foreach=True),
        1,
        skip=False,
    )
    assert calls == [200]


def test_large_batches_are_walked_in_parts(monkeypatch):
    from optimplug._core.optim.executions import foreach

    monkeypatch.setattr(foreach, "SCRATCH_BYTES", 100)
    params = parameters(shapes=[(10,), (10,), (30,), (5,), (20,)])
    whole = [torch.nn.Parameter(p.detach().clone()) for p in params]
    parts = descend(AdamW(params), 3)
    monkeypatch.undo()
    assert all(map(same_bits, parts, descend(AdamW(whole), 3)))


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
@pytest.mark.parametrize("foreach", [False, True])
def test_max_grad_norm_is_clip_grad_norm_then_step(foreach, max_norm):
    params = parameters()
    optimizer = AdamW(params, foreach=foreach, max_grad_norm=max_norm)
    references = parameters()
    reference = torch.optim.AdamW(references, foreach=False)
    for _ in range(10):
        for p, q in zip(params, references, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        given = [p.grad.clone() for p in params]
        optimizer.step()
        norm = torch.nn.utils.clip_grad_norm_(references, max_norm)
        reference.step()
        assert torch.equal(optimizer.grad_norm, norm)
        assert all(torch.equal(p.grad, g) for p, g in zip(params, given, strict=True))
    for p, q in zip(params, references, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-7, atol=0)


def test_the_closure_runs_once_with_gradients_and_its_value_comes_back():
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = AdamW([p], lr=0.5, weight_decay=0.0)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert calls == [True]
    torch.testing.assert_close(p.detach(), torch.tensor([0.5]))


def test_a_sparse_gradient_is_refused_before_anything_changes():
    table = torch.nn.Embedding(4, 2, sparse=True)
    dense = torch.nn.Parameter(torch.ones(2))
    dense.grad = torch.ones(2)
    table(torch.tensor([1])).sum().backward()
    optimizer = AdamW([("dense", dense), ("table.weight", table.weight)])
    with pytest.raises(GradientError, match=r"table\.weight is sparse"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(dense, torch.ones(2))


class TestState:
    def interchange(self, first, second, options, steps=7):
        """Train with one class, hand its state to the other, and go on."""
        start = build(first, **options)
        # torch's fused SGD fails where a first gradient comes late.
        descend(start, steps, skip=not options.get("fused"))
        go_on = build(second, **options)
        with torch.no_grad():
            for p, q in zip(self.params(go_on), self.params(start), strict=True):
                p.copy_(q)
        buffer = io.BytesIO()
        torch.save(start.state_dict(), buffer)
        buffer.seek(0)
        go_on.load_state_dict(torch.load(buffer, weights_only=True))
        return descend(start, 5, False, seed=9), descend(go_on, 5, False, seed=9)

    def params(self, optimizer):
        return [p for group in optimizer.param_groups for p in group["params"]]

    @pytest.mark.parametrize(
        "execution", [{"foreach": False}, {"foreach": True}, {"fused": True}, {}], ids=label
    )
    @pytest.mark.parametrize("way", ["torch to ours", "ours to torch", "ours to ours"])
    @pytest.mark.parametrize(
        ("cls", "options"),
        [
            (AdamW, {"amsgrad": True}),
            (Adam, {}),
            (SGD, {"lr": 0.1, "momentum": 0.9}),
            (SGD, {"lr": 0.1}),
        ],
        ids=label,
    )
    def test_a_state_dict_goes_on(self, cls, options, way, execution):
        classes = [torchs(cls) if name == "torch" else cls for name in way.split(" to ")]
        uninterrupted, resumed = self.interchange(*classes, {**options, **execution})
        for a, b in zip(uninterrupted, resumed, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)
        if way == "ours to ours" or execution == {"foreach": False}:
            assert all(map(same_bits, uninterrupted, resumed))

    def test_keys_shapes_and_dtypes_are_torchs(self):
        ours, torchs = build(AdamW, amsgrad=True), build(torch.optim.AdamW, amsgrad=True)
        descend(ours, 3)
        descend(torchs, 3)
        a, b = ours.state_dict()["state"], torchs.state_dict()["state"]
        described = [
            {i: {k: (v.shape, v.dtype) for k, v in s.items()} for i, s in x.items()} for x in (a, b)
        ]
        assert described[0] == described[1]

    def test_a_checkpoint_of_another_execution_leaves_ours_as_it_is(self):
        source = build(torch.optim.AdamW, fused=True)
        descend(source, 2, skip=False)
        optimizer = build(AdamW, foreach=False)
        optimizer.load_state_dict(source.state_dict())
        assert optimizer.param_groups[0]["foreach"] is False
        assert optimizer.param_groups[0]["fused"] is None

    def test_a_checkpoint_without_newer_keys_is_filled_from_the_defaults(self):
        optimizer = build(AdamW)
        old = optimizer.state_dict()
        for group in old["param_groups"]:
            del group["amsgrad"], group["maximize"]
        optimizer.load_state_dict(old)
        descend(optimizer, 1)
        assert optimizer.param_groups[0]["amsgrad"] is False

    def test_amsgrad_switched_on_by_a_checkpoint_starts_its_maximum(self):
        plain, peaked = build(AdamW), build(AdamW, amsgrad=True)
        descend(plain, 3)
        state = plain.state_dict()
        for group in state["param_groups"]:
            group["amsgrad"] = True
        peaked.load_state_dict(state)
        descend(peaked, 2)
        assert all("max_exp_avg_sq" in s for s in peaked.state.values())

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])  # noqa: S301
    def test_a_copy_steps_as_the_original(self, copied):
        optimizer = build(AdamW, foreach=False, max_grad_norm=0.1)
        descend(optimizer, 3)
        twin = copied(optimizer)
        assert twin.max_grad_norm == 0.1
        assert all(map(same_bits, descend(optimizer, 3, seed=5), descend(twin, 3, seed=5)))

    def test_zero_gradient_and_lr_zero_change_nothing(self):
        params = parameters()
        before = [p.detach().clone() for p in params]
        optimizer = AdamW(params, lr=0.0)
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert all(map(same_bits, params, before))


BAD = [
    ({"lr": -1.0}, r"Invalid learning rate: -1\.0; must be >= 0"),
    ({"lr": float("nan")}, "Invalid learning rate: nan"),
    ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
    ({"betas": (1.0, 0.9)}, r"Invalid beta parameter at index 0: 1\.0"),
    ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1"),
    ({"betas": (0.9,)}, "must be two numbers"),
    ({"eps": -1e-8}, "Invalid epsilon value"),
    ({"weight_decay": -0.1}, "Invalid weight_decay value"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=label)
def test_a_bad_argument_is_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        AdamW(parameters(), **options)


@pytest.mark.parametrize(("options", "message"), BAD, ids=label)
def test_a_bad_group_changes_nothing(options, message):
    params = parameters()
    optimizer = AdamW(params[:2])
    group = {"params": params[2:], "name": "head", **options}
    given = dict(group)
    with pytest.raises(ArgumentError, match=rf"param_groups\[1\] \('head'\): .*{message}"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    assert group.keys() == given.keys()


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_max_grad_norm_must_be_positive(bad):
    with pytest.raises(ArgumentError, match="max_grad_norm"):
        AdamW(parameters(), max_grad_norm=bad)


def test_a_misspelt_group_key_is_an_error_and_other_keys_are_kept():
    params = parameters()
    with pytest.raises(ArgumentError, match="'weigth_decay'; did you mean 'weight_decay'"):
        AdamW([{"params": params, "weigth_decay": 0.0}])
    optimizer = AdamW([{"params": params, "name": "all", "lr_scale": 0.5}])
    assert optimizer.param_groups[0]["lr_scale"] == 0.5


@pytest.mark.parametrize(
    "key", ["no_weight_decay", "is_weight_decay", "weight_decay_", "weight_decay_1", "max_lr", 3]
)
def test_a_group_key_that_holds_a_hyperparameters_name_among_others_is_the_users_own(key):
    for optimizer in (torch.optim.AdamW, AdamW):
        assert optimizer([{"params": parameters(), key: True}]).param_groups[0][key] is True


@pytest.mark.parametrize("key", ["betass", "weight_decays", "xweight_decay", "amsgrads"])
def test_a_letter_more_is_a_misspelling(key):
    with pytest.raises(ArgumentError, match=f"'{key}'; did you mean"):
        AdamW([{"params": parameters(), key: True}])


@pytest.mark.parametrize("bad", [torch.ones(2), [], ["x"], [{"params": [3]}]], ids=label)
def test_what_is_no_parameter_is_refused_as_by_torch(bad):
    with pytest.raises((TypeError, ValueError)) as torchs:
        torch.optim.AdamW(bad)
    with pytest.raises(torchs.type):
        AdamW(bad)


def test_step_hooks_run_once():
    optimizer = AdamW(parameters())
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step()
    assert calls == ["before", "after"]


@pytest.mark.parametrize("cls", [ASGD, Rprop, ScheduleFreeAdamW, ScheduleFreeSGD])
def test_a_derivative_by_the_rate_that_would_be_wrong_is_refused(cls):
    rate = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(ArgumentError, match="lr must not require grad with differentiable=True"):
        cls(parameters(), lr=rate, differentiable=True)
    cls(parameters(), lr=rate.detach(), differentiable=True)


@pytest.mark.parametrize(
    ("cls", "options", "error"),
    [
        (Rprop, {"step_sizes": (50, 1e-6)}, "must be the smallest and the largest"),
        (Rprop, {"step_sizes": (50,)}, "must be the smallest and the largest"),
        (AdamW, {"rounding_seed": float("inf")}, "rounding_seed must be an int >= 0"),
        (AdamW, {"state_dtype": [1]}, "state_dtype, if not None, must be one of float32, bfloat16"),
        (AdamW, {"rounding": "up"}, "rounding must be one of nearest"),
    ],
    ids=label,
)
def test_values_that_would_fail_or_do_nothing_later_are_refused(cls, options, error):
    with pytest.raises(ArgumentError, match=error):
        cls(parameters(), **options)
