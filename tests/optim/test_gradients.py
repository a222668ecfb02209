"""The global norm and clipping: sparse gradients, parameters that are only parts, bad arguments."""

import pytest
import torch
from support.labels import label
from support.optimizers import torchs
from support.processes import in_two_processes
from torch import nn

from optimplug import ArgumentError, GradientError
from optimplug.optim import SGD, Adagrad, AdamW

SPARSE = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.1, "maximize": True},
]


SETUPS = [
    *((SGD, options) for options in SPARSE),
    (Adagrad, {}),
    (Adagrad, {"lr_decay": 0.1, "maximize": True, "initial_accumulator_value": 0.1}),
]


def embed(sparse):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(6, 4, sparse=sparse), nn.Linear(4, 2))
    return net, list(net.parameters())


def train(cls, sparse, clip=None, **options):
    """Four steps in which a row occurs twice and others not at all."""
    net, params = embed(sparse)
    optimizer = cls(params, lr=0.05, **options)
    for i in range(4):
        optimizer.zero_grad()
        net(torch.tensor([0, 1, 1, i + 2])).square().sum().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
    return params


# torch's Adagrad makes sparse tensors without saying whether they are to be checked.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("choice", [{}, {"foreach": True}, {"foreach": False}], ids=label)
@pytest.mark.parametrize(("cls", "options"), SETUPS, ids=label)
def test_sparse_gradients_step_as_in_torch(cls, options, choice):
    for p, q in zip(
        train(cls, True, **options, **choice),
        train(torchs(cls), True, **options, foreach=False),
        strict=True,
    ):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("cls", "options"), SETUPS, ids=label)
def test_sparse_gradients_are_clipped_as_dense_ones(cls, options):
    # torch's clip_grad_norm_ refuses sparse gradients.
    for p, q in zip(
        train(cls, True, **options, max_grad_norm=0.5),
        train(torchs(cls), False, **options, foreach=False, clip=0.5),
        strict=True,
    ):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_weight_decay_of_sparse_gradients_is_refused_before_anything_moves():
    net, params = embed(sparse=True)
    before = [p.detach().clone() for p in params]
    optimizer = SGD(net.named_parameters(), lr=0.1, weight_decay=0.1)
    net(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(GradientError, match=r"weight_decay must be 0 .* 0.weight .*got 0.1"):
        optimizer.step()
    assert all(map(torch.equal, params, before))


@pytest.mark.parametrize("bad", [True, "1", float("nan"), 0, -1.0, [1.0]])
def test_a_norm_that_is_none_is_refused(bad):
    with pytest.raises(ArgumentError, match="max_grad_norm"):
        SGD([torch.zeros(1)], lr=0.1, max_grad_norm=bad)


@pytest.mark.parametrize("bad", ["no", 1, None])
def test_skipping_is_yes_or_no(bad):
    with pytest.raises(ArgumentError, match="skip_nonfinite must be True or False"):
        SGD([torch.zeros(1)], lr=0.1, skip_nonfinite=bad)


def step_under_fsdp(options):
    """One of two processes: a step of a model that FSDP's first version has flattened."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.manual_seed(0)
    net = FullyShardedDataParallel(
        nn.Linear(4, 4),
        use_orig_params=options.pop("use_orig_params"),
        device_id=torch.device("cpu"),
    )
    optimizer = AdamW(net.parameters(), **options)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.ones(2, 4)).sum().backward()
    try:
        optimizer.step()
        told = ""
    except ArgumentError as error:
        told = str(error)
    unmoved = all(map(torch.equal, net.parameters(), before))
    return told, unmoved


@pytest.mark.slow
@pytest.mark.parametrize("use_orig_params", [True, False])
@pytest.mark.parametrize("options", [{"max_grad_norm": 1.0}, {"skip_nonfinite": True}], ids=label)
def test_a_norm_of_flattened_shards_is_refused(options, use_orig_params):
    options = {**options, "use_orig_params": use_orig_params}
    for told, unmoved in in_two_processes(step_under_fsdp, options):
        assert "fully_shard" in told
        assert unmoved


def test_a_flattened_parameter_alone_in_its_process_is_whole():
    p = nn.Parameter(torch.ones(4))
    p._fsdp_flattened = True
    p.grad = torch.ones(4)
    ours = AdamW([p], max_grad_norm=1.0)
    ours.step()
    assert ours.grad_norm == 2


@pytest.mark.parametrize(
    "choice",
    [{}, {"foreach": True}, {"foreach": False}, {"fused": True}, {"rounding": "exact"}],
    ids=label,
)
def test_an_expanded_parameter_is_refused_before_anything_moves(choice):
    whole = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    expanded = nn.Parameter(torch.ones(1, dtype=torch.bfloat16).expand(3))
    optimizer = AdamW([whole, expanded], lr=0.1, **choice)
    for p in (whole, expanded):
        p.grad = torch.ones(3, dtype=torch.bfloat16)
    with pytest.raises(ArgumentError, match=r"memory for each of its elements.*\(3,\) is expanded"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(whole.detach(), torch.ones(3, dtype=torch.bfloat16))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("choice", [{}, {"foreach": True}, {"foreach": False}], ids=label)
def test_a_parameter_without_strides_is_none_that_is_expanded(choice):
    p = nn.Parameter(torch.eye(3).to_sparse_csr())
    p.grad = p.detach().clone()
    SGD([p], lr=0.25, **choice).step()
    assert torch.equal(p.detach().values(), torch.full((3,), 0.75))


def test_autograd_flows_through_clipping():
    start, rate = (torch.tensor(v, dtype=torch.float64) for v in ([1.5, -2.0], 0.1))

    def loss(x, lr):
        p = x.clone()
        optimizer = SGD([p], lr=lr, differentiable=True, max_grad_norm=1.0)
        for _ in range(2):
            p.grad = 2 * p.clone()
            optimizer.step()
        return p.square().sum()

    assert torch.autograd.gradcheck(loss, (start.requires_grad_(), rate.requires_grad_()))


def test_a_step_without_gradients_has_no_norm_and_skips_nothing():
    p = nn.Parameter(torch.ones(2))
    ours = AdamW([p], skip_nonfinite=True)
    p.grad = torch.full((2,), torch.inf)
    ours.step()
    p.grad = None
    ours.step()
    assert ours.skipped_steps == 1
    assert ours.grad_norm == 0
