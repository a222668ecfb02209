import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from optimplug import Horizon, Recipe
from optimplug.recipe.parameters.kinds import is_norm
from optimplug.recipe.parameters.match import places


class Scaled(nn.Module):
    """The parameters that most norms have, under a name that says nothing."""

    def __init__(self, shape=(4,)):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


class ByRoot(Scaled):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class ByPower(Scaled):
    def forward(self, x):
        return self.weight * self.shrink(x)

    def shrink(self, x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6) ** -0.5


class ByDeviation(Scaled):
    def forward(self, x):
        return self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


class ByLength(Scaled):
    def forward(self, x):
        return self.weight * x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


class ByFunction(Scaled):
    def forward(self, x):
        return nn.functional.rms_norm(x, x.shape[-1:], self.weight)


class Inherits(ByFunction):
    def forward(self, x):
        return super().forward(x.float())


class ByNormalize(Scaled):
    def __init__(self):
        super().__init__((4, 1, 1))
        self.scale = 2.0

    def forward(self, x):
        return nn.functional.normalize(x, dim=1) * self.scale * self.weight


def scaled(x, weight):
    return root_mean_square(x) * weight


def root_mean_square(x):
    return x / x.square().mean(-1, keepdim=True).add_(1e-6).sqrt_()


class ByHelper(Scaled):
    """The math is in functions beside the class."""

    def forward(self, x):
        return scaled(x, self.weight)


class Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


class ByAutogradFunction(Scaled):
    def forward(self, x):
        return Normalize.apply(x, self.weight)


module = types.ModuleType("helpers")
module.scaled = scaled


class ByHelperOfAModule(Scaled):
    def forward(self, x):
        return module.scaled(x, self.weight)


class AttentionPool(Scaled):
    """It has a mean and the root of a width, but pools."""

    def forward(self, x):
        scores = torch.softmax((x * self.weight).sum(-1) / x.shape[-1] ** 0.5, -1)
        return (x * scores.unsqueeze(-1)).mean(1)


class Cosine(Scaled):
    def forward(self, x, y):
        x, y = nn.functional.normalize(x, dim=-1), nn.functional.normalize(y, dim=-1)
        return x - self.weight * (x * y).sum(-1, keepdim=True)


class Frozen(Scaled):
    """A batch norm whose statistics do not move."""

    def __init__(self):
        super().__init__((1, 4, 1, 1))
        self.register_buffer("running_var", torch.ones(1, 4, 1, 1))

    def forward(self, x):
        return x * self.weight * (self.running_var + 1e-5).rsqrt()


class NoNorm(Scaled):
    def forward(self, x):
        return x * self.weight


class DotProduct(Scaled):
    def forward(self, x):
        return self.weight * x @ x.mT / x.shape[-1] ** 0.5


class Projection(Scaled):
    """It normalises, but its weight mixes."""

    def __init__(self):
        super().__init__((4, 4))

    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:]) @ self.weight


class Around(nn.Module):
    """It normalises, but so does its part, and that has the parameters."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.layer_norm(self.inner(x), (4,)) * self.scale


NORMS = [
    *(ByRoot, ByPower, ByDeviation, ByLength, ByFunction, Inherits, Frozen),
    *(ByNormalize, ByHelper, ByHelperOfAModule, ByAutogradFunction),
    *(lambda: nn.LayerNorm(4), lambda: nn.RMSNorm(4), lambda: nn.GroupNorm(2, 4)),
    *(lambda: nn.BatchNorm2d(4), lambda: nn.SyncBatchNorm(4)),
    lambda: nn.InstanceNorm1d(4, affine=True),
]
OTHERS = [
    *(Scaled, NoNorm, DotProduct, Projection, Around, AttentionPool, Cosine, nn.PReLU),
    lambda: nn.Linear(4, 4),
]


@pytest.mark.parametrize("build", NORMS)
def test_a_norm(build):
    assert is_norm(build())


@pytest.mark.parametrize("build", OTHERS)
def test_no_norm(build):
    assert not is_norm(build())


def families(model):
    return {place.name: set(place.families) for named in places(model) for place in named}


def test_biases_are_what_modules_add():
    model = nn.ModuleDict({
        "rnn": nn.LSTM(2, 2), "attention": nn.MultiheadAttention(2, 1, add_bias_kv=True),
        "norm": nn.LayerNorm(2), "relative_attention_bias": nn.Embedding(3, 2),
    })  # fmt: skip
    found = families(model)
    assert {name for name, kinds in found.items() if "bias" in kinds} == {
        "rnn.bias_ih_l0", "rnn.bias_hh_l0", "attention.in_proj_bias", "attention.out_proj.bias",
        "norm.bias",
    }  # fmt: skip
    assert found["norm.bias"] == {"norm", "bias"}
    assert found["relative_attention_bias.weight"] == {"embedding"}


def test_a_parametrized_weight_is_that_of_its_layer():
    model = nn.ModuleDict({"conv": parametrizations.weight_norm(nn.Conv1d(2, 2, 1))})
    assert families(model) == {
        "conv.bias": {"conv", "bias"},
        "conv.parametrizations.weight.original0": {"conv"},
        "conv.parametrizations.weight.original1": {"conv"},
    }


TIMM_NORMS = [
    *("EvoNorm2dB0", "EvoNorm2dB1", "EvoNorm2dB2", "EvoNorm2dS0", "EvoNorm2dS1", "EvoNorm2dS2"),
    *("SimpleNorm", "SimpleNorm2d", "RmsNorm", "RmsNorm2d", "FilterResponseNormTlu2d"),
    *("LayerNorm2d", "GroupNorm1", "BatchNormAct2d"),
]


@pytest.mark.parametrize("name", TIMM_NORMS)
def test_norms_of_timm(timm, name):
    assert is_norm(getattr(timm.layers, name)(8))


# torch deprecates scripting, and people have scripted models.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_modules_keep_their_kinds():
    parts = [nn.Embedding(4, 4), nn.LayerNorm(4), ByRoot(), ByHelper(), nn.Linear(4, 4), NoNorm()]
    found = families(torch.jit.script(nn.Sequential(*parts)))
    assert found == {
        "0.weight": {"embedding"}, "1.weight": {"norm"}, "1.bias": {"norm", "bias"},
        "2.weight": {"norm"}, "3.weight": {"norm"}, "4.weight": {"linear"}, "4.bias": {"linear", "bias"},
        "5.weight": set(),
    }  # fmt: skip


class Extension(Scaled):
    """Its math is not in Python."""

    forward = torch.Tensor.mul


class FusedNorm(Scaled):
    def forward(self, x):
        return torch.ops.aten.mul(x, self.weight)


class ScaleNorm(Scaled):
    """All that it does can be read."""

    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize("kind", [Extension, FusedNorm, AttentionPool])
def test_what_cannot_be_told_is_listed(kind):
    model = nn.ModuleDict({"pool": kind(), "norm": nn.LayerNorm(2), "scale": ScaleNorm()})
    for rule in ({"no_decay": "norm"}, {"match": {"any": [{"type": "norm"}]}, "lr": 0.1}):
        recipe = Recipe.load({"optimizer": {"name": "AdamW"}, "groups": [rule]})
        (warning,) = recipe.plan(model, Horizon(total_steps=1)).warnings
        assert warning.path == "groups[0]"
        assert warning.message.startswith("kinds that could not be told: pool.weight (4); they are")
    recipe = Recipe.load({"optimizer": {"name": "AdamW"}, "groups": [{"no_decay": "bias"}]})
    assert not recipe.plan(model, Horizon(total_steps=1)).warnings


def test_a_single_number_is_no_norm():
    model = nn.ModuleDict({"scale": FusedNorm((1,)), "norm": nn.LayerNorm(2)})
    recipe = Recipe.load({"optimizer": {"name": "AdamW"}, "groups": [{"no_decay": "norm"}]})
    assert not recipe.plan(model, Horizon(total_steps=1)).warnings


def test_a_long_list_is_cut():
    model = nn.Sequential(nn.LayerNorm(2), *(FusedNorm() for _ in range(10)))
    recipe = Recipe.load({"optimizer": {"name": "AdamW"}, "groups": [{"no_decay": "norm"}]})
    (warning,) = recipe.plan(model, Horizon(total_steps=1)).warnings
    assert "8.weight (4), and 2 more; they are treated as weights" in warning.message
