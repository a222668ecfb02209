"""Compiled rules for whole tensors: the loop's results in every shape, however threads share it."""

import pytest
import torch
from support.labels import label
from support.memory import peak_of
from support.rows import each_in_turn
from support.tensors import descend, parameters, same_bits

from optimplug._core.optim.executions import compiled_whole
from optimplug._core.optim.executions.bits import joined
from optimplug._core.optim.executions.compiler import compiler
from optimplug._core.optim.executions.passes.cut import cut
from optimplug._core.optim.executions.passes.source import whole_source
from optimplug._core.optim.executions.program import trace
from optimplug._core.optim.rule import Rule, StateSpec
from optimplug._core.optim.rules.factored import AdafactorRule
from optimplug.optim import (
    CAME,
    LAMB,
    Adafactor,
    Prodigy,
    StableAdamW,
    TransformersAdafactor,
)

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="there is no C compiler that torch's threads can serve"
)

SMALL = [(), (1,), (7,), (3, 4), (5, 5, 2), (2, 3, 4, 5), (0,), (0, 3), (3, 0), (2, 0, 4)]
LARGE = [
    *((600, 400), (70_000,), (3,), (3, 200, 300), (40, 50, 60), (2, 70_000)),
    *((3000, 16), (50, 50), (7000, 3, 3)),
]
CASES = [
    (Adafactor, {"weight_decay": 0.1}),
    (Adafactor, {"maximize": True, "eps": (1e-10, 1e-2), "d": 2.0}),
    (TransformersAdafactor, {"relative_step": False, "scale_parameter": False, "lr": 1e-2}),
    (TransformersAdafactor, {"relative_step": False, "lr": 1e-2, "beta1": 0.9}),
    (TransformersAdafactor, {"relative_step": False, "lr": 1e-2, "weight_decay": 0.1}),
    (LAMB, {"lr": 1e-2}),
    (LAMB, {"weight_decay": 0.0, "always_adapt": True, "trust_clip": True}),
    (StableAdamW, {"weight_decay": 0.1}),
    (CAME, {"weight_decay": 0.1, "lr": 1e-3}),
    (Prodigy, {"weight_decay": 0.1}),
    (Prodigy, {"weight_decay": 0.1, "decouple": False, "betas": (0.0, 0.9)}),
]
OF_EACH = list({cls: (cls, options) for cls, options in CASES}.values())


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    """How many tensors a compiled rule has updated, at each of its runs."""
    ran = []
    original = compiled_whole.ReadyCompiledWhole.run

    def watched(self, scale, found_inf):
        ran.append(len(self.params))
        return original(self, scale, found_inf)

    monkeypatch.setattr(compiled_whole.ReadyCompiledWhole, "run", watched)
    return ran


def grouped(params):
    """Two groups, where that is allowed with rates of their own."""
    return [{"params": params[:4], "weight_decay": 0.05}, {"params": params[4:]}]


def build(cls, options, params, **choice):
    return cls(grouped(params), **options, **choice)


def everything(optimizer, steps, **given):
    """Every weight and state, in double, after some steps."""
    params = descend(optimizer, steps, **given)
    kept = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    states = [value for state in kept for value in state.values()]
    return [tensor.detach().double() for tensor in (*params, *states)]


def error(found, truth):
    """Root of the summed squares of what differs, and whether the same places are NaN."""
    for a, b in zip(found, truth, strict=True):
        assert a.shape == b.shape
        assert torch.equal(a.isnan(), b.isnan())
    pairs = zip(found, truth, strict=True)
    return sum((a - b).nan_to_num(0.0).square().sum().item() for a, b in pairs) ** 0.5


@pytest.mark.parametrize(
    ("cls", "options", "dtype", "shapes"),
    each_in_turn(
        CASES, [torch.float32, torch.float64, torch.bfloat16], [SMALL, LARGE], among=OF_EACH
    ),
    ids=label,
)
def test_it_is_no_further_from_float64_than_the_loop(cls, options, dtype, shapes, runs):
    def run(dtype, **choice):
        params = parameters(shapes, torch.bfloat16)
        wide = [torch.nn.Parameter(p.detach().to(dtype)) for p in params]
        return everything(build(cls, options, wide, **choice), 4, rounding=torch.bfloat16)

    ours = run(dtype)
    assert sum(runs) > 3 * len(shapes)  # nearly all of four steps: now and then a gradient lacks
    loop, truth = run(dtype, foreach=False), run(torch.float64, foreach=False)
    if dtype == torch.float64:
        assert error(ours, truth) < 1e-11
    else:
        # Rounding is a matter of luck, though little in so many numbers.
        assert error(ours, truth) <= 1.05 * error(loop, truth) + 1e-7


@pytest.mark.parametrize(
    ("cls", "options", "dtype"),
    [
        *each_in_turn(OF_EACH, [torch.float32, torch.bfloat16]),
        *(
            pytest.param(*row, dtype, marks=pytest.mark.slow)
            for row in CASES
            if row not in OF_EACH
            for dtype in (torch.float32, torch.bfloat16)
        ),
    ],
    ids=label,
)
def test_how_many_threads_there_are_makes_no_difference(cls, options, dtype):
    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return descend(build(cls, options, parameters(SMALL + LARGE, dtype)), 3, skip=False)
        finally:
            torch.set_num_threads(before)

    alone = run(1)
    for threads in (2, 3, 7):
        assert all(map(same_bits, alone, run(threads)))


def test_the_number_of_threads_may_change_in_mid_run():
    def run(threads):
        optimizer = Adafactor(parameters(LARGE))
        before = torch.get_num_threads()
        try:
            for count in threads:
                torch.set_num_threads(count)
                found = descend(optimizer, 1, skip=False, seed=count)
        finally:
            torch.set_num_threads(before)
        return found

    def all_alone(seeds):
        optimizer = Adafactor(parameters(LARGE))
        return [descend(optimizer, 1, skip=False, seed=seed) for seed in seeds][-1]

    assert all(map(same_bits, run([1, 5, 2]), all_alone([1, 5, 2])))


@pytest.mark.parametrize("cls", [Adafactor, LAMB, CAME], ids=label)
def test_one_large_tensor_is_shared(cls):
    params = parameters([(900, 500), (3, 4)])
    optimizer = cls(params, **({"lr": 1e-3} if cls is CAME else {}))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    plans = []
    plan = compiled_whole._plan
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiled_whole, "_plan", lambda *a: plans.append(plan(*a)) or plans[-1])
            descend(optimizer, 2, skip=False)
    finally:
        torch.set_num_threads(before)
    ((few, order),) = {(p.few, tuple(p.order)) for p in plans}
    assert (few, order) == (1, (1, 0))
    # A shared tensor has a few numbers for each row and column, and none for each element.
    assert plans[0].scratch < params[0].nbytes / 4


@pytest.mark.parametrize(("cls", "options"), each_in_turn(CASES, among=OF_EACH), ids=label)
def test_gradients_are_clipped_as_in_the_loop(cls, options):
    def run(**choice):
        params = parameters(LARGE[2:], torch.float64)
        return everything(build(cls, {**options, "max_grad_norm": 0.5}, params, **choice), 4)

    assert error(run(), run(foreach=False)) < 1e-11


def swapped(cls, change, runs):
    """Whether, after a change of the parameters, the compiled rule still takes them."""
    p = parameters([(6, 4)])[0]
    optimizer = cls([p], lr=1e-3)
    descend(optimizer, 2, skip=False)
    assert runs == [1, 1]
    change(p)
    p.grad = torch.ones_like(p)
    return optimizer


def transpose(p):
    p.data = p.data.t().contiguous().t()


@pytest.mark.parametrize("cls", [Adafactor, LAMB], ids=label)
def test_parameters_that_are_not_contiguous_go_another_way(cls, runs):
    swapped(cls, transpose, runs).step()
    assert runs == [1, 1]


def test_a_parameter_of_another_shape_is_not_read_by_the_old_one(runs):
    def reshape(p):
        p.data = p.data.view(4, 6)

    optimizer = swapped(Adafactor, reshape, runs)
    with pytest.raises(RuntimeError, match="size"):
        optimizer.step()
    assert runs == [1, 1]


def test_tensors_that_share_memory_go_another_way(runs):
    memory = torch.ones(12)
    params = [torch.nn.Parameter(memory[:8]), torch.nn.Parameter(memory[4:])]
    descend(LAMB(params), 2, skip=False)
    assert runs == []


def test_the_smallest_number_depends_on_the_type():
    rule = AdafactorRule()
    k = [
        rule.coefficients(
            {"lr": 1.0, "eps": (None, 0.0), "d": 1.0, "weight_decay": 0, "beta2_decay": -0.8}, 1
        )
    ]
    texts = {
        whole_source(cut(trace(rule, k, dtype), rule), [dtype] * 3)
        for dtype in (torch.float32, torch.float64)
    }
    assert [repr(torch.finfo(t).eps ** 2) in "".join(texts) for t in (torch.float32, torch.float64)]


class MeanOfMean(Rule):
    """Takes what passes have no place for."""

    scope = "tensor"
    state = (StateSpec("row", over=-1),)

    def __init__(self, wrong):
        self.wrong = wrong

    def coefficients(self, hyper, t):
        return {}

    def update(self, p, g, state, k):
        p.add_(g, alpha=self.wrong(p, state["row"]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda p, row: row.norm(), "of a whole tensor alone"),
        (lambda p, row: row.mean(-1).tensor, "means over each of the last two axes, once"),
        (lambda p, row: p.mean(-3).tensor, "means over each of the last two axes, once"),
    ],
)
def test_what_has_no_place_in_passes_is_refused(wrong, words):
    rule = MeanOfMean(wrong)
    with pytest.raises(TypeError, match=words):
        cut(trace(rule, [{}]), rule)


@pytest.mark.parametrize(
    ("cls", "options", "shape", "passes"),
    [
        (Adafactor, {}, (3, 4), 3),
        (Adafactor, {}, (4,), 2),
        (LAMB, {}, (3, 4), 2),
        (LAMB, {"weight_decay": 0.0}, (3, 4), 1),
        (CAME, {"lr": 1e-3}, (3, 4), 4),
        (Prodigy, {}, (3, 4), 1),
    ],
    ids=label,
)
def test_a_rule_has_no_more_passes_than_it_must(cls, options, shape, passes):
    p = torch.nn.Parameter(torch.zeros(shape))
    (group,) = cls([p], **options).param_groups
    rule = cls.rule(group).suited(p)
    k = {name: float(value) for name, value in rule.coefficients(group, 1).items()}
    assert cut(trace(rule, [k]), rule).passes == passes


def narrow(cls, options, rounding, shapes=LARGE, **choice):
    return build(cls, options, parameters(shapes, torch.bfloat16), rounding=rounding, **choice)


@pytest.mark.parametrize(("cls", "options"), OF_EACH, ids=label)
def test_exact_weights_of_large_tensors_are_those_of_float32_bit_for_bit(cls, options, runs):
    ours = narrow(cls, options, "exact")
    own = [p for group in ours.param_groups for p in group["params"]]
    wide = [torch.nn.Parameter(p.detach().float()) for p in own]
    theirs = build(cls, options, wide)
    found = descend(ours, 4, rounding=torch.bfloat16)
    assert sum(runs) > 3 * len(LARGE)
    truth = descend(theirs, 4, rounding=torch.bfloat16)
    for p, value, weight, q in zip(own, found, truth, wide, strict=True):
        kept = ours.state[p]
        assert same_bits(joined(value.float(), kept["remainder"].float()), weight)
        assert all(same_bits(kept[name], state) for name, state in theirs.state[q].items())
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert {**other, "params": None, "rounding": "exact"} == {**group, "params": None}


@pytest.mark.parametrize(
    ("cls", "options", "rounding"), each_in_turn(OF_EACH, ["kahan", "stochastic"]), ids=label
)
def test_it_draws_what_the_loop_draws(cls, options, rounding, runs):
    shapes = [*SMALL, (300, 200), (70_000,), (3, 100, 90)]
    found = descend(narrow(cls, options, rounding, shapes), 2, skip=False)
    assert sum(runs) == 2 * len(shapes)
    other = descend(narrow(cls, options, rounding, shapes, foreach=False), 2, skip=False)
    differ, total = 0, 0
    for a, b in zip(found, other, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-6, atol=1e-3)
        differ, total = differ + int((a != b).sum()), total + a.numel()
    # The last bit of a sum may decide on a rounding; other random numbers would on a third of all.
    assert differ < 0.01 * total


@pytest.mark.parametrize("rounding", ["exact", "stochastic"])
@pytest.mark.parametrize("cls", [LAMB, Adafactor])
def test_a_narrow_step_allocates_nothing_large(cls, rounding):
    ours = cls(parameters([(300, 300), (7,)], torch.bfloat16), rounding=rounding)
    descend(ours, 2, skip=False)
    assert peak_of(lambda: (torch.zeros(3), ours.step())) < 20_000
