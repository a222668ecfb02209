"""What ``capturable=True`` takes, what it refuses, and numbers computed from counts on a device.

The steps themselves are in ``triton_capture_cases.py``, and in ``test_cuda.py``.
"""

import math

import pytest
import torch
from support.labels import label
from support.optimizers import TABLE
from support.tensors import parameters

from optimplug import ArgumentError
from optimplug._core.optim.executions import choice
from optimplug._core.optim.executions.capture import are_on_device, capture_refusal
from optimplug._core.optim.group_checks import StandIn
from optimplug._core.optim.rules.rmsprop import RMSpropRule
from optimplug.optim import (
    ADOPT,
    CAME,
    LAMB,
    SGD,
    Adafactor,
    Adam,
    AdamW,
    AdEMAMix,
    Lion,
    Muon,
    NAdam,
    Prodigy,
    RMSprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    SparseAdam,
    StableAdamW,
    TransformersAdafactor,
)

OWN = {
    Lion: [{"weight_decay": 0.1}],
    AdEMAMix: [{}, {"t_alpha": 3, "t_beta3": 4}, {"t_beta3": 5, "betas": (0.0, 0.9, 0.99)}],
    ADOPT: [{}, {"clip_exp": None, "weight_decay": 0.1, "decouple": True}],
    StableAdamW: [{}],
    LAMB: [{}, {"bias_correction": False}],
    CAME: [{}],
    TransformersAdafactor: [{"relative_step": False, "lr": 0.1}, {"warmup_init": True}, {}],
    AdamW: [{"state_dtype": "8bit"}, {"rounding": "exact"}],
}
OPTIONS = [(cls, row) for cls, table in TABLE.items() for row in table.options]
OPTIONS += [(cls, row) for cls, rows in OWN.items() for row in rows]


@pytest.fixture
def a_gpu(monkeypatch):
    """Let settings be judged as on a GPU; nothing is stepped."""
    monkeypatch.setattr(choice, "DEVICES", {"cuda", "cpu"})


def group_of(cls, **options):
    """The settings of a group, and its rule, where there is no model yet."""
    optimizer = cls([StandIn(torch.zeros(1, 1))], **options)
    group = optimizer.param_groups[0]
    return group, optimizer.stored_rule(group)


@pytest.mark.parametrize(("cls", "options"), OPTIONS, ids=label)
def test_numbers_from_counts_on_a_device_are_those_from_the_hosts(cls, options):
    group, rule = group_of(cls, **options)
    steps = range(1, 12)
    kept = {f"{n}{spec.name}": 0.25 for spec in rule.scalars for n in ("", "next_")}
    hyper = {**group, **kept}
    counts = torch.tensor([float(t) for t in steps], dtype=torch.float64)
    # A setting that is a tensor is of float32, and computed with as such or as a number.
    near = 1e-6 if any(isinstance(v, torch.Tensor | tuple) for v in options.values()) else 1e-14
    for compute in (rule.coefficients, rule.next_scalars):
        found = compute(hyper, counts if rule.counts_steps else 2.0)
        expected = [compute(hyper, float(t) if rule.counts_steps else 2.0) for t in steps]
        assert all(list(found) == list(each) for each in expected)
        for name, value in found.items():
            own = torch.as_tensor(value, dtype=torch.float64).expand(len(steps)).tolist()
            assert own == pytest.approx([float(each[name]) for each in expected], rel=near), name


@pytest.mark.parametrize(("cls", "options"), OPTIONS, ids=label)
def test_who_can_be_captured_says_nothing(cls, options, a_gpu):
    group, rule = group_of(cls, **options, capturable=True)
    assert group["capturable"]
    assert capture_refusal(rule, group) is None


REFUSED = [
    (AdamW, {"rounding": "stochastic"}, "rounding='stochastic' draws by the host's count"),
    (AdamW, {"rounding": "kahan"}, "its groups count or learn on the host"),
    (Lion, {"state_dtype": "8bit"}, "its groups count or learn on the host"),
]


class TestRefusals:
    @pytest.mark.parametrize(("cls", "options", "why"), REFUSED, ids=label)
    def test_what_cannot_be_captured_is_refused_with_its_reason(self, cls, options, why, a_gpu):
        with pytest.raises(ArgumentError, match=why):
            cls([StandIn(torch.zeros(1, 1))], **options, capturable=True)

    def test_a_variant_is_judged_that_a_parameter_needs(self, a_gpu):
        options = {"beta1": 0.9, "lr": 0.1, "relative_step": False, "state_dtype": "8bit"}
        with pytest.raises(ArgumentError, match="8 bits beside means over rows and columns"):
            TransformersAdafactor(parameters([(70, 70)]), **options, capturable=True)

    @pytest.mark.parametrize("options", [{"rounding": "stochastic"}, {"rounding": "kahan"}])
    def test_so_is_a_group_that_is_added(self, options, a_gpu):
        optimizer = AdamW([StandIn(torch.zeros(1, 1))], capturable=True)
        with pytest.raises(ArgumentError, match=r"param_groups\[1\]: capturable=True needs a step"):
            optimizer.add_param_group({"params": [StandIn(torch.zeros(1, 1))], **options})
        assert len(optimizer.param_groups) == 1

    @pytest.mark.parametrize(
        ("cls", "why"),
        [
            (Prodigy, "count or learn on the host"),
            (ScheduleFreeAdamW, "count or learn on the host"),
            (ScheduleFreeSGD, "count or learn on the host"),
            (SparseAdam, "sparse gradients"),
            (Muon, "whole matrices"),
        ],
        ids=label,
    )
    def test_rules_whose_classes_do_not_offer_it_say_why(self, cls, why):
        group, rule = group_of(cls)
        assert why in capture_refusal(rule, group)
        with pytest.raises(TypeError, match="capturable"):
            cls([StandIn(torch.zeros(1, 1))], capturable=True)

    def test_what_the_host_decides_by_must_stand_there(self, a_gpu):
        p, there = StandIn(torch.zeros(1, 1)), torch.full((), 0.5, device="meta")
        optimizer = SGD([p], capturable=True)
        group = {"params": [StandIn(torch.zeros(1, 1))], "dampening": there, "mine": there}
        with pytest.raises(
            ArgumentError, match=r"\[1\]: with capturable=True dampening must be a n"
        ):
            optimizer.add_param_group(group)
        optimizer.add_param_group({**group, "dampening": 0.5})
        found, rule = group_of(AdEMAMix, t_beta3=5)
        assert "computed on the host" in capture_refusal(rule, {**found, "betas": (there,) * 3})

    def test_torchs_operator_takes_betas_from_the_host(self):
        assert not are_on_device({"params": [torch.ones(2, device="meta")], "betas": (0.9, 0.99)})
        assert are_on_device({"betas": (0.9, torch.full((), 0.5, device="meta"))})

    @pytest.mark.parametrize("compute", [math.sqrt, float, lambda t: 1.0 if t == 1 else 2.0])
    def test_so_is_a_rule_of_ones_own_that_reads_its_count(self, compute, a_gpu):
        class Own(RMSpropRule):
            counts_steps = True

            def coefficients(self, hyper, t):
                return {**super().coefficients(hyper, t), "eps": compute(t)}

        class Ours(RMSprop):
            @staticmethod
            def rule(hyper):
                return Own()

        Ours([StandIn(torch.zeros(1, 1))])
        with pytest.raises(ArgumentError, match="numbers are computed on the host"):
            Ours([StandIn(torch.zeros(1, 1))], capturable=True)

    @pytest.mark.parametrize("other", [{"foreach": True}, {"foreach": False}, {"fused": False}])
    def test_another_execution_is_none_for_it(self, other):
        with pytest.raises(ArgumentError, match="capturable=True chooses the execution itself"):
            Adam([StandIn(torch.zeros(1, 1))], capturable=True, **other)

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    @pytest.mark.parametrize("cls", [NAdam, SGD, Adafactor])
    def test_so_it_is_off_a_gpu(self, cls, device):
        p = torch.nn.Parameter(torch.ones(3, device=device))
        with pytest.raises(ArgumentError, match=r"capturable=True needs floating point .* on cuda"):
            cls([p], lr=0.1, capturable=True)


@pytest.mark.parametrize("cls", [SGD, Lion, Adafactor])
def test_groups_have_no_key_for_it_unless_it_is_asked_for(cls):
    """As torch's have none: their state goes on there, and theirs here."""
    group, _ = group_of(cls, lr=0.1)
    assert "capturable" not in group
