"""Adafactor as transformers has it, against transformers."""

import copy

import pytest
import torch
from support.labels import label
from support.references import EXECUTIONS, SHAPES, Reference, copies, flat
from support.rows import each_in_turn
from support.tensors import descend, parameters
from transformers.optimization import Adafactor

from optimplug import ArgumentError
from optimplug.optim import TransformersAdafactor

REFERENCES = [
    Reference(
        TransformersAdafactor,
        Adafactor,
        [
            {"relative_step": False, "scale_parameter": False, "lr": 1e-3},
            {"relative_step": False, "lr": 0.05, "weight_decay": 0.3},
            {"relative_step": False, "scale_parameter": False, "weight_decay": 0.3, "lr": 1e-3},
        ],
    ),
    Reference(
        TransformersAdafactor,
        Adafactor,
        [
            {},
            {"warmup_init": True, "weight_decay": 0.3},
            {"beta1": 0.9, "weight_decay": 0.3, "clip_threshold": 0.5, "decay_rate": -0.5},
            {"beta1": 0.0, "eps": (1e-4, 2.0)},
        ],
        groups=({"weight_decay": 0.1}, {"weight_decay": 0.0}, {}),
    ),
]
CASES = [(row, options) for row in REFERENCES for options in row.options]
EVERY = pytest.mark.parametrize(
    ("row", "options", "execution"),
    each_in_turn(CASES, EXECUTIONS),
    ids=lambda value: value.theirs.__name__ if isinstance(value, Reference) else label(value),
)


@EVERY
def test_every_execution_is_the_reference(row, options, execution):
    row.check_100_steps(options, execution)


@EVERY
def test_narrow_weights_are_no_further_from_float64_than_the_reference(row, options, execution):
    row.check_narrow(options, execution)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["theirs to ours", "ours to theirs", "ours to ours"])
@pytest.mark.parametrize(("row", "options"), CASES)
def test_a_state_goes_on_in_the_other(row, options, way, dtype):
    first, second = (getattr(row, name) for name in way.split(" to "))
    begun = first(row.grouped(parameters(SHAPES, dtype)), **options)
    descend(begun, 5)
    other = second(row.grouped(copies(begun)), **options)
    other.load_state_dict(copy.deepcopy(begun.state_dict()))
    # torch rounds a state that is loaded to the type of its parameter; here it keeps its own.
    rtol = 0.02 if (way, dtype) == ("ours to theirs", torch.bfloat16) else 1e-6
    for a, b in zip(descend(begun, 5, seed=7), descend(other, 5, seed=7), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-7)
    assert {"step", "exp_avg_sq_row", "exp_avg_sq_col"} <= other.state_dict()["state"][0].keys()


def test_a_state_that_was_rounded_is_wide_again():
    ours = TransformersAdafactor([torch.nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16))])
    descend(ours, 2, skip=False)
    state = ours.state_dict()
    rounded = {key: value.bfloat16() for key, value in state["state"][0].items() if key != "step"}
    state["state"][0].update(rounded)
    ours.load_state_dict(state)
    found = ours.state[flat(ours)[0]]
    assert {found[key].dtype for key in rounded} == {torch.float32}


BAD = [
    ({"lr": 1e-3}, "Cannot combine manual `lr` and `relative_step=True`"),
    (
        {"warmup_init": True, "relative_step": False},
        "`warmup_init=True` requires `relative_step=True`",
    ),
    ({"relative_step": False}, "lr is required: give it to the optimizer"),
    ({"eps": (1e-3,)}, "Invalid eps"),
    ({"clip_threshold": 0.0}, "Invalid clip_threshold"),
    ({"decay_rate": 0.8}, "Invalid decay_rate"),
    ({"beta1": 1.0}, "Invalid beta1"),
    ({"weight_decay": -0.1}, "Invalid weight_decay value"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=label)
def test_a_bad_argument_is_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        TransformersAdafactor(parameters(), **options)


def test_groups_of_adafactor_may_have_each_a_rate_of_another_kind():
    given, found = parameters(((2, 2), (2, 2)))
    optimizer = TransformersAdafactor(
        [{"params": [given], "lr": 0.5, "relative_step": False}, {"params": [found]}]
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, None]
    with pytest.raises(ArgumentError, match=r"param_groups\[2\]: lr must be given where"):
        optimizer.add_param_group({"params": parameters(((1,),)), "relative_step": False})
