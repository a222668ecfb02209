"""Muon: torch's on single matrices, many at once, convolutions, fused weights."""

import pytest
import torch
from support.labels import label
from support.tensors import descend, parameters, same_bits
from torch.testing._internal.common_optimizers import optim_db

from optimplug import ArgumentError
from optimplug._core.optim.rules.matrix import newton_schulz
from optimplug.optim import Muon

MATRICES = ((3, 4), (7, 2), (5, 5), (4, 3), (3, 4), (1, 6))
OPTIONS = [
    {},
    {"lr": torch.tensor(0.01), "weight_decay": 0.0},
    {"momentum": 0.5, "nesterov": False, "weight_decay": 0.3},
    {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
    {"ns_coefficients": (3.4, -4.7, 2.0), "eps": 1e-3},
]


def build(cls, dtype=torch.float32, shapes=MATRICES, **options):
    params = parameters(shapes, dtype)
    groups = [{"params": params[:2], "weight_decay": 0.0}, {"params": params[2:], "lr": 3e-3}]
    return cls(groups, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=label)
@pytest.mark.parametrize("options", OPTIONS, ids=label)
def test_one_by_one_is_torchs_bit_for_bit(options, dtype):
    if dtype == torch.float64 and isinstance(options.get("lr"), torch.Tensor):
        pytest.skip("torch rounds a rate that is a tensor to float32 once more")
    if dtype == torch.bfloat16 and options.get("nesterov") is False:
        pytest.skip("torch divides the momentum itself by its norm: see the next test")
    ours = descend(build(Muon, dtype, foreach=False, **options), 20)
    theirs = descend(build(torch.optim.Muon, dtype, **options), 20)
    assert all(map(same_bits, ours, theirs))


def test_the_momentum_of_narrow_weights_is_not_overwritten_by_the_iteration():
    p = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    p.grad = torch.full((2, 2), 8.0, dtype=torch.bfloat16)
    ours = Muon([p], momentum=0.5, nesterov=False)
    ours.step()
    assert ours.state[p]["momentum_buffer"].tolist() == [[4.0, 4.0]] * 2


@pytest.mark.parametrize("options", OPTIONS, ids=label)
def test_matrices_of_one_shape_together_are_no_further_from_float64_than_torchs(options):
    def error(weights):
        return sum((a.double() - b).square().sum() for a, b in zip(weights, truth, strict=True))

    shapes = [(20, 30)] * 6
    with pytest.MonkeyPatch.context() as patch:
        # All in float64 but for the bfloat16 of the iteration, which becomes float64 too.
        patch.setattr("optimplug._core.optim.rules.matrix.torch.bfloat16", torch.float64)
        truth = descend(build(Muon, torch.float64, shapes, **options), 10)
    together = error(descend(build(Muon, shapes=shapes, **options), 10))
    assert together <= 1.2 * error(descend(build(torch.optim.Muon, shapes=shapes, **options), 10))


@pytest.mark.parametrize("choice", [{}, {"foreach": False}], ids=label)
def test_inputs_of_torchs_own_table(choice):
    [row] = [row for row in optim_db if row.optim_cls is torch.optim.Muon]
    for given in row.optim_inputs_func(device="cpu", dtype=torch.float32):
        ours = descend(build(Muon, **given.kwargs, **choice), 5)
        theirs = descend(build(torch.optim.Muon, **given.kwargs), 5)
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-4)
    for error in row.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given = error.optimizer_error_input
        params = parameters([(2, 3)]) if given.params is None else given.params
        with pytest.raises(error.error_type, match=error.error_regex):
            Muon(params, **given.kwargs).step()


def test_states_go_to_torchs_and_back():
    ours, theirs = build(Muon), build(torch.optim.Muon)
    descend(ours, 3)
    theirs.load_state_dict(ours.state_dict())
    again = build(Muon, foreach=False)
    again.load_state_dict(theirs.state_dict())
    states = [list(o.state.values()) for o in (ours, again)]
    for a, b in zip(*states, strict=True):
        assert a.keys() == b.keys() == {"momentum_buffer"}
        assert same_bits(a["momentum_buffer"], b["momentum_buffer"])


def stepped(value, gradient, **options):
    p = torch.nn.Parameter(value.clone())
    p.grad = gradient.clone()
    Muon([p], **{"lr": 0.1, "foreach": False, **options}).step()
    return p.detach()


@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw", "rms_to_rms"])
def test_a_convolution_is_the_matrix_of_its_outputs_and_the_rest(adjust):
    value, gradient = torch.randn(6, 3, 2, 2), torch.randn(6, 3, 2, 2)
    found = stepped(value, gradient, adjust_lr_fn=adjust)
    flat = stepped(value.flatten(1), gradient.flatten(1), adjust_lr_fn=adjust)
    assert torch.equal(found.flatten(1), flat)


def test_three_dimensions_are_taken_as_a_convolution_only_where_that_is_said():
    value, gradient = torch.randn(6, 3, 2), torch.randn(6, 3, 2)
    with pytest.raises(ArgumentError, match="flatten=True"):
        stepped(value, gradient)
    found = stepped(value, gradient, flatten=True)
    assert torch.equal(found.flatten(1), stepped(value.flatten(1), gradient.flatten(1)))


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("adjust", [None, "match_rms_adamw", "rms_to_rms"])
@pytest.mark.parametrize(("split", "rows"), [(3, [4, 4, 4]), ((8, 2, 2), [8, 2, 2])], ids=label)
def test_blocks_of_a_fused_weight_are_matrices_of_their_own(split, rows, adjust, foreach):
    value, gradient = torch.randn(12, 5), torch.randn(12, 5)
    options = {"adjust_lr_fn": adjust, "foreach": foreach}
    found = stepped(value, gradient, split=split, **options)
    pairs = zip(value.split(rows), gradient.split(rows), strict=True)
    apart = [stepped(v, g, **options) for v, g in pairs]
    torch.testing.assert_close(found, torch.cat(apart), rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("adjust", [None, "match_rms_adamw", "rms_to_rms"])
@pytest.mark.parametrize("split", [None, 3, (8, 2, 2)], ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=label)
def test_a_transposed_weight_is_the_plain_one_on_its_side(dtype, split, adjust, foreach):
    options = {"lr": 0.1, "split": split, "adjust_lr_fn": adjust, "foreach": foreach}
    # To bfloat16, torch rounds the last few of a tensor in another way than the others.
    shapes = [(12, 16), (12, 16), (12, 32), *([(12, 5)] if dtype == torch.float32 else [])]
    plain = parameters(shapes, dtype)
    on_its_side = [torch.nn.Parameter(p.detach().T.contiguous()) for p in plain]
    ours, theirs = Muon(on_its_side, transposed=True, **options), Muon(plain, **options)
    for _ in range(3):
        for a, b in zip(on_its_side, plain, strict=True):
            b.grad = torch.randn_like(b)
            a.grad = b.grad.T.contiguous()
        ours.step()
        theirs.step()
    assert all(same_bits(a.detach().T, b.detach()) for a, b in zip(on_its_side, plain, strict=True))


def test_a_convolution_is_never_transposed():
    value, gradient = torch.randn(6, 3, 2, 2), torch.randn(6, 3, 2, 2)
    options = {"adjust_lr_fn": "rms_to_rms", "split": 2}
    found = stepped(value, gradient, transposed=True, **options)
    assert torch.equal(found, stepped(value, gradient, **options))


def test_the_scale_of_the_modular_norm_is_the_root_of_outputs_by_inputs():
    value, gradient = torch.zeros(2, 8), torch.randn(2, 8)
    plain = stepped(value, gradient, weight_decay=0.0)
    torch.testing.assert_close(
        stepped(value, gradient, weight_decay=0.0, adjust_lr_fn="rms_to_rms"), plain / 2
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"split": 5}, r"split=5 does not fit the 12 rows"),
        ({"split": (4, 4)}, r"split=\(4, 4\) does not fit the 12 rows"),
        (
            {"split": 3, "transposed": True},
            "split=3 does not fit the 5 columns, with transposed=True the outputs",
        ),
        ({"split": 0}, "split should be counts of 1 or more but is: 0"),
        ({"ns_steps": 100}, "ns_steps should be an int >= 0 and < 100"),
        ({"ns_steps": 2.5}, "ns_steps should be an int >= 0 and < 100"),
        ({"eps": -1.0}, "eps should be a number > 0"),
        ({"ns_coefficients": (1.0, 2.0)}, "three numbers"),
        ({"adjust_lr_fn": "x"}, "one of original, match_rms_adamw, rms_to_rms"),
    ],
    ids=label,
)
def test_what_can_not_be_meant_is_refused(options, error):
    with pytest.raises(ArgumentError, match=error):
        Muon(parameters([(12, 5)]), **options)


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    ours = Muon(parameters([(3, 4)]))
    with pytest.raises(ArgumentError, match=r"param_groups\[1\]: Muon only supports 2D"):
        ours.add_param_group({"params": parameters([(7,)])})
    assert len(ours.param_groups) == 1


def test_singular_values_come_near_one():
    torch.manual_seed(0)
    for shape in ((3, 8, 5), (2, 5, 8), (1, 6, 6)):
        found = newton_schulz(torch.randn(shape), (3.4445, -4.7750, 2.0315), 8, 1e-7).float()
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.5
        assert values.max() < 1.35


def test_clipping_comes_before_the_matrix_is_made_orthogonal():
    # The length of a gradient has no effect after; its momentum is what shows it.
    p = torch.nn.Parameter(torch.zeros(2, 3))
    p.grad = torch.full((2, 3), 10.0)
    ours = Muon([p], lr=0.1, max_grad_norm=1.0, momentum=0.5)
    ours.step()
    norm = ours.state[p]["momentum_buffer"].norm()
    torch.testing.assert_close(norm, torch.tensor(0.5), rtol=1e-5, atol=0)


def test_a_state_that_lacks_what_a_weight_is_leaves_it_so():
    theirs = torch.optim.Muon(parameters([(12, 4)]))
    ours = Muon(parameters([(12, 4)]), split=2, transposed=True)
    ours.load_state_dict(theirs.state_dict())
    [group] = ours.param_groups
    assert (group["split"], group["transposed"], group["flatten"]) == (2, True, False)
