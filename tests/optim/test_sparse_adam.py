"""SparseAdam against torch's, bit for bit."""

import copy
import io

import pytest
import torch
from support.labels import label
from support.optimizers import ALONE
from support.rows import few_quick
from support.tensors import parameters, same_bits
from torch.testing._internal.common_optimizers import optim_db

from optimplug import ArgumentError, GradientError, StateError
from optimplug._core.optim.executions.bits import joined
from optimplug._core.optim.memory import state_bytes
from optimplug.optim import AdamW, SparseAdam

SHAPES = [(6, 3), (8,), (5, 2, 2)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
[ROW] = [info for info in optim_db if info.optim_cls is torch.optim.SparseAdam]
INPUTS = [row.kwargs for row in ROW.optim_inputs_func("cpu", torch.float32)]
OPTIONS = [*ALONE[SparseAdam].options, *INPUTS]


def sparse(p, generator, dims=1):
    """A gradient for some rows, one of them given twice."""
    rows = torch.randint(len(p), (4,), generator=generator)
    rows[1] = rows[0]
    values = torch.randn((4, *p.shape[1:]), generator=generator).to(p.dtype)
    g = torch.sparse_coo_tensor(rows[None], values, p.shape, check_invariants=True)
    return g if dims == 1 else g.to_dense().to_sparse(dims)


def descend(optimizer, steps, seed=0, every_dim=False):
    generator = torch.Generator().manual_seed(seed)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(steps):
        for i, p in enumerate(params):
            g = sparse(p, generator, p.dim() if every_dim else 1)
            p.grad = None if (step + i) % 5 == 0 else g
        optimizer.step()
    return [p.detach().clone() for p in params]


def build(cls, dtype=torch.float32, **options):
    params = parameters(SHAPES, dtype)
    return cls([{"params": params[:1], "lr": 0.03}, {"params": params[1:]}], **options)


# torch rounds a step size from a tensor to the parameter's type; here it keeps its precision.
@pytest.mark.parametrize(
    ("options", "dtype", "every_dim"),
    few_quick(
        (options, dtype, every_dim)
        for options in OPTIONS
        for dtype in DTYPES
        for every_dim in (False, True)
        if not (dtype == torch.bfloat16 and isinstance(options.get("lr"), torch.Tensor))
    ),
    ids=label,
)
def test_it_is_torchs_bit_for_bit(options, dtype, every_dim):
    ours, theirs = (
        build(SparseAdam, dtype, **options),
        build(torch.optim.SparseAdam, dtype, **options),
    )
    found, expected = (descend(o, 100, every_dim=every_dim) for o in (ours, theirs))
    assert all(map(same_bits, found, expected))
    for kept, other in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert kept["step"] == other["step"]
        assert all(same_bits(kept[name], other[name]) for name in ("exp_avg", "exp_avg_sq"))


def test_a_gradient_that_holds_nothing_counts_and_moves_nothing():
    def run(cls):
        p = parameters([(4, 2)])[0]
        optimizer = cls([p], lr=0.1)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            p.grad = torch.zeros(4, 2).to_sparse() if step == 1 else sparse(p, generator)
            optimizer.step()
        return p

    assert same_bits(run(SparseAdam), run(torch.optim.SparseAdam))


def test_a_tensor_without_dimensions_moves_as_torchs():
    def run(cls):
        p = torch.nn.Parameter(torch.tensor(1.0))
        p.grad = torch.tensor(2.0).to_sparse()
        cls([p], lr=0.1).step()
        return p

    assert same_bits(run(SparseAdam), run(torch.optim.SparseAdam))


def test_rows_that_a_batch_does_not_use_stay_as_they_are():
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = SparseAdam(table.parameters(), lr=0.1)
    for used in ([0, 1], [1, 2]):
        before = table.weight.detach().clone()
        optimizer.zero_grad()
        table(torch.tensor(used)).sum().backward()
        optimizer.step()
        moved = (table.weight != before).any(1)
        assert moved.nonzero().flatten().tolist() == used


WAYS = [(torch.optim.SparseAdam, SparseAdam), (SparseAdam, torch.optim.SparseAdam)]


@pytest.mark.parametrize(("first", "second"), [*WAYS, (SparseAdam, SparseAdam)], ids=label)
def test_a_state_goes_on_bit_for_bit_in_either_class(first, second):
    start = build(first)
    values = descend(start, 7)
    buffer = io.BytesIO()
    torch.save(start.state_dict(), buffer)
    buffer.seek(0)
    go_on = build(second)
    with torch.no_grad():
        for p, value in zip(parameters_of(go_on), values, strict=True):
            p.copy_(value)
    go_on.load_state_dict(torch.load(buffer, weights_only=True))
    assert all(map(same_bits, descend(start, 30, seed=1), descend(go_on, 30, seed=1)))


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_the_state_dict_is_torchs():
    ours, theirs = build(SparseAdam), build(torch.optim.SparseAdam)
    descend(ours, 3)
    descend(theirs, 3)
    kinds = [
        {
            i: {k: (type(v), getattr(v, "shape", v)) for k, v in kept.items()}
            for i, kept in s.items()
        }
        for s in (ours.state_dict()["state"], theirs.state_dict()["state"])
    ]
    assert kinds[0] == kinds[1]


def test_a_copy_steps_as_the_original():
    optimizer = build(SparseAdam)
    descend(optimizer, 3)
    twin = copy.deepcopy(optimizer)
    assert all(map(same_bits, descend(optimizer, 3, seed=5), descend(twin, 3, seed=5)))


def test_clipping_is_that_of_the_gradient_that_is_there():
    p, q = parameters([(6, 3)])[0], parameters([(6, 3)])[0]
    ours, theirs = SparseAdam([p], lr=0.1, max_grad_norm=0.5), torch.optim.SparseAdam([q], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        p.grad = sparse(p, generator)
        norm = p.grad.to_dense().norm()
        q.grad = (p.grad * min(1.0, 0.5 / (norm + 1e-6))).coalesce()
        ours.step()
        theirs.step()
        torch.testing.assert_close(ours.grad_norm, norm)
    torch.testing.assert_close(p, q)


def test_a_step_with_what_is_no_number_is_left_out():
    p = parameters([(4, 2)])[0]
    optimizer = SparseAdam([p], lr=0.1, skip_nonfinite=True)
    before = p.detach().clone()
    p.grad = torch.full((4, 2), float("nan")).to_sparse()
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert same_bits(p, before)


def test_a_dense_gradient_is_refused_as_by_torch_before_anything_changes():
    first, dense = parameters([(4, 2), (3,)])
    optimizer = SparseAdam([("table", first), ("bias", dense)], lr=0.1)
    before = first.detach().clone()
    first.grad, dense.grad = sparse(first, torch.Generator()), torch.ones(3)
    with pytest.raises(GradientError, match=r"SparseAdam does not support dense .* bias"):
        optimizer.step()
    assert not optimizer.state
    assert same_bits(first, before)


def test_a_sparse_gradient_elsewhere_names_it():
    p = parameters([(4, 2)])[0]
    p.grad = sparse(p, torch.Generator())
    with pytest.raises(GradientError, match="or give it to SparseAdam"):
        AdamW([p]).step()


BAD = [
    ({"lr": 0.0}, "Invalid learning rate: 0"),
    ({"lr": -1.0}, "Invalid learning rate: -1"),
    ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
    ({"eps": 0.0}, "Invalid epsilon value: 0"),
    ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=label)
def test_a_bad_argument_is_named_as_by_torch(options, message):
    for cls in (torch.optim.SparseAdam, SparseAdam):
        with pytest.raises(ValueError, match=message):
            cls(parameters(), **options)


def test_a_group_that_cannot_be_is_not_added():
    optimizer = SparseAdam(parameters())
    numbers = torch.zeros(2, dtype=torch.complex64)
    with pytest.raises(ArgumentError, match=r"Complex params at indices \[\[1, 0\]\]"):
        optimizer.add_param_group({"params": [numbers]})
    assert len(optimizer.param_groups) == 1


def test_a_rate_that_a_schedule_took_to_0_loads():
    optimizer = build(SparseAdam)
    descend(optimizer, 2)
    optimizer.param_groups[0]["lr"] = 0.0
    build(SparseAdam).load_state_dict(optimizer.state_dict())
    bad = optimizer.state_dict()
    bad["param_groups"][0]["eps"] = 0.0
    with pytest.raises(StateError, match="Invalid epsilon value"):
        build(SparseAdam).load_state_dict(bad)


def test_its_memory_is_known_before_there_is_any():
    assert state_bytes(SparseAdam([torch.zeros(10, requires_grad=True)])) == 84


ROUNDINGS = ["exact", "kahan", "stochastic"]


def narrow(**options):
    return build(SparseAdam, torch.bfloat16, **options)


def value_of(optimizer, p):
    kept, plain = optimizer.state[p], p.detach().float()
    if "remainder" in kept:
        return joined(plain, kept["remainder"].float())
    return plain + kept["compensation"].float() if "compensation" in kept else plain


@pytest.mark.parametrize("every_dim", [False, True])
def test_exact_weights_are_those_of_float32_bit_for_bit(every_dim):
    ours = narrow(rounding="exact")
    wide = build(SparseAdam)
    with torch.no_grad():
        for p, q in zip(parameters_of(wide), parameters_of(ours), strict=True):
            p.copy_(q)
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        for i, (p, q) in enumerate(zip(parameters_of(ours), parameters_of(wide), strict=True)):
            g = sparse(p, generator, p.dim() if every_dim else 1)
            p.grad, q.grad = (None, None) if (step + i) % 5 == 0 else (g, g.float())
        ours.step()
        wide.step()
    for p, q in zip(parameters_of(ours), parameters_of(wide), strict=True):
        assert same_bits(value_of(ours, p), q.detach())
        for name in ("exp_avg", "exp_avg_sq"):
            assert same_bits(ours.state[p][name], wide.state[q][name])


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_small_updates_of_narrow_rows_add_up(rounding):
    table = torch.nn.Parameter(torch.ones(4, 5000, dtype=torch.bfloat16))
    ours = SparseAdam([table], lr=1e-4, rounding=rounding)
    for _ in range(200):
        ones = torch.ones(2, 5000, dtype=torch.bfloat16)
        table.grad = torch.sparse_coo_tensor([[1, 3]], ones, table.shape, check_invariants=True)
        ours.step()
    moved = value_of(ours, table) - 1
    assert torch.equal(moved[::2], torch.zeros(2, 5000))
    # Drawn, one weight is off by 3e-3 (standard deviation), the mean of a row by 4e-5.
    torch.testing.assert_close(moved[1::2].mean(1), torch.full((2,), -0.02), rtol=0.02, atol=0)


def test_rows_draw_what_their_places_draw_whatever_rows_are_beside_them():
    def moved(rows):
        table = torch.nn.Parameter(torch.ones(4, 6, 50, dtype=torch.bfloat16))
        ours = SparseAdam([table], lr=1e-3, rounding="stochastic", rounding_seed=5)
        ones = torch.ones(len(rows), 6, 50, dtype=torch.bfloat16)
        table.grad = torch.sparse_coo_tensor([rows], ones, table.shape, check_invariants=True)
        ours.step()
        return table.detach()

    few, all_ = moved([1, 3]), moved([3, 0, 1, 2])
    assert torch.equal(few[[1, 3]], all_[[1, 3]])
    assert not torch.equal(few[1], few[3])
    # They are the places of the whole parameter, as any other optimizer has them.
    dense = torch.nn.Parameter(torch.ones(4, 6, 50, dtype=torch.bfloat16))
    dense.grad = torch.ones_like(dense)
    AdamW([dense], lr=1e-3, weight_decay=0.0, rounding="stochastic", rounding_seed=5).step()
    assert torch.equal(all_, dense)


@pytest.mark.parametrize("state_dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("rounding", ["nearest", *ROUNDINGS])
def test_a_storage_goes_on_bit_for_bit(rounding, state_dtype):
    options = {"rounding": rounding, "state_dtype": state_dtype}
    whole, resumed = narrow(**options), narrow(**options)
    values = descend(whole, 3)
    with torch.no_grad():
        for p, value in zip(parameters_of(resumed), values, strict=True):
            p.copy_(value)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert all(map(same_bits, descend(whole, 4, seed=7), descend(resumed, 4, seed=7)))
    wide = state_dtype == "float32" or (state_dtype is None and rounding != "nearest")
    kept = resumed.state[parameters_of(resumed)[0]]
    assert kept["exp_avg"].dtype == (torch.float32 if wide else torch.bfloat16)
