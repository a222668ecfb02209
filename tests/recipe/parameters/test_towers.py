"""Models written as people write them, and where their parameters lie."""

import pytest
import torch
from torch import nn

from optimplug.recipe.parameters.depth import find_depths


class Block(nn.Module):
    def __init__(self, width=4, kernel=1):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 8), nn.Linear(8, width)


class Plain(nn.Module):
    """A block without a norm."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)


class Around(nn.Module):
    """A norm, then whatever it is given."""

    def __init__(self, inner):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(4), inner


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))


class Parts(nn.Module):
    """A model of the parts that it is given, in this order."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def linear():
    return nn.Linear(4, 4)


def blocks(count, kind=Block):
    return nn.ModuleList([kind() for _ in range(count)])


class UsedInAnotherOrder(Parts):
    def __init__(self):
        super().__init__(norm=nn.LayerNorm(4), layers=blocks(2), embed=linear(), head=linear())
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        if len(self.layers) > 3 and isinstance(self.head, nn.Linear) and self.norm is None:
            return x
        for layer in self.layers:
            x = layer(self.embed(x) if x is None else x)
        return self.finish(x)

    def finish(self, x):
        return [self.head(y) * self.scale for y in self.norm(x)]


class Embeds(UsedInAnotherOrder):
    def forward(self, x):
        return super().forward(self.embed(x))


class Stage(Parts):
    def __init__(self, count):
        super().__init__(down=linear(), blocks=blocks(count), norm=nn.LayerNorm(4))


MODELS = {  # model: where its parameters lie, as (layer, below the top)
    "a model used in another order than it is registered": (
        Embeds,
        {"embed": (0, 3), "layers.1": (2, 1), "norm": (3, 0), "head": (3, 0), "scale": (3, 0)},
    ),
    "without a forward, the order of registration": (
        lambda: Parts(a=linear(), layers=blocks(2), z=linear()),
        {"a": (0, 3), "layers.0": (1, 2), "layers.1": (2, 1), "z": (3, 0)},
    ),
    "one layer": (
        lambda: Parts(a=linear(), layers=blocks(1), z=linear()),
        {"a": (0, 2), "layers.0": (1, 1), "z": (2, 0)},
    ),
    "layers without norms": (
        lambda: Parts(a=linear(), layers=blocks(2, Plain), z=linear()),
        {"a": (0, 3), "layers.1": (2, 1), "z": (3, 0)},
    ),
    "attributes with numbers": (
        lambda: Parts(stem=linear(), block1=Block(), block2=Block(), head=linear()),
        {"stem": (0, 3), "block1": (1, 2), "block2": (2, 1), "head": (3, 0)},
    ),
    "stages as attributes": (
        lambda: Parts(stem=linear(), stage1=Stage(1), stage2=Stage(2), head=linear()),
        {
            "stem": (0, 4), "stage1.down": (0, 4), "stage1.blocks.0": (1, 3), "stage1.norm": (1, 3),
            "stage2.down": (2, 2), "stage2.blocks.0": (2, 2), "stage2.blocks.1": (3, 1),
            "stage2.norm": (4, 0), "head": (4, 0),
        },
    ),
    "stages in lists side by side": (
        lambda: Parts(
            patch=nn.ModuleList([linear(), linear()]),
            block=nn.ModuleList([blocks(1), blocks(2)]),
            norm=nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4)]),
        ),
        {
            "patch.0": (0, 4), "block.0.0": (1, 3), "norm.0": (1, 3),
            "patch.1": (2, 2), "block.1.0": (2, 2), "block.1.1": (3, 1), "norm.1": (4, 0),
        },
    ),
    "with blocks in all of these lists": (
        lambda: Parts(
            patch=nn.ModuleList([Around(linear()), Around(linear())]),
            block=nn.ModuleList([blocks(2), blocks(2)]),
        ),
        {"patch.0": (0, 4), "block.0.1": (2, 2), "patch.1": (3, 1), "block.1.1": (4, 0)},
    ),
    "lists of blocks of two kinds under one parent": (
        lambda: Parts(
            embed=linear(), blocks=blocks(3), mergers=nn.ModuleList([Around(Attention()) for _ in "ab"])
        ),
        {"embed": (0, 3), "blocks.2": (3, 0), "mergers.0": (1, 1), "mergers.1": (2, 0)},
    ),
    "two towers beside a taller one": (
        lambda: Parts(
            eye=Parts(a=linear(), one=Parts(b=blocks(1)), two=Parts(b=blocks(2)), z=linear()),
            text=Parts(a=linear(), b=blocks(3)),
            head=linear(),
        ),
        {
            "eye.a": (0, 3), "eye.one": (1, 1), "eye.two.b.1": (2, 1), "eye.z": (3, 0),
            "text.a": (0, 4), "head": (4, 0),
        },
    ),
    "what lies between two stages": (
        lambda: Parts(layer1=nn.Sequential(Block(), Block()), turn=linear(), layer2=nn.Sequential(Block())),
        {"layer1.1": (2, 1), "turn": (3, 0), "layer2.0": (3, 0)},
    ),
    "halves of a block in equal shells": (
        lambda: Parts(
            embed=linear(),
            layers=nn.ModuleList(
                [nn.ModuleList([Around(Attention()), Around(Plain())]) for _ in range(2)]
            ),
        ),
        {"embed": (0, 2), "layers.0.0": (1, 1), "layers.0.1": (1, 1), "layers.1.1": (2, 0)},
    ),
    "stem, blocks and head in one Sequential": (
        lambda: nn.Sequential(linear(), Block(), nn.ReLU(), Block(), linear()),
        {"0": (0, 3), "1": (1, 2), "3": (2, 1), "4": (3, 0)},
    ),
    "a plain Sequential": (
        lambda: nn.Sequential(linear(), nn.ReLU(), nn.Sequential(linear(), nn.ReLU()), linear()),
        {"0": (1, 2), "2.0": (2, 1), "3": (3, 0)},
    ),
    "a backbone and its head in a Sequential": (
        lambda: nn.Sequential(Parts(embed=linear(), layers=blocks(2)), linear()),
        {"0.embed": (0, 3), "0.layers.1": (2, 1), "1": (3, 0)},
    ),
    "layers of two classes": (
        lambda: Parts(embed=linear(), layers=nn.ModuleList([Block(), Around(Plain()), Block()])),
        {"embed": (0, 3), "layers.0": (1, 2), "layers.1": (2, 1), "layers.2": (3, 0)},
    ),
    "experts and heads are no towers": (
        lambda: Parts(
            layers=nn.ModuleList(
                [Parts(norm=nn.LayerNorm(4), router=linear(), experts=blocks(4, Plain)) for _ in "ab"]
            ),
            heads=nn.ModuleList([nn.Sequential(linear(), nn.ReLU(), linear()) for _ in "abc"]),
        ),
        {"layers.0.experts.3": (1, 2), "layers.1.router": (2, 1), "heads.0.0": (3, 0)},
    ),
    "torch's own encoder and decoder": (
        lambda: nn.Transformer(4, 2, 2, 3, 8, batch_first=True),
        {
            "encoder.layers.0": (1, 2), "encoder.norm": (3, 0),
            "decoder.layers.0": (1, 3), "decoder.layers.2": (3, 1), "decoder.norm": (4, 0),
        },
    ),
    "the same tower under two names": (
        lambda: Parts(one=(tower := Parts(embed=linear(), layers=blocks(2))), two=tower, head=linear()),
        {"one.layers.1": (2, 1), "two.layers.1": (2, 1), "two.embed": (0, 3), "head": (3, 0)},
    ),
    "a wrapper": (
        lambda: nn.DataParallel(Parts(embed=linear(), layers=blocks(2), head=linear())),
        {"module.embed": (0, 3), "module.layers.0": (1, 2), "module.head": (3, 0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_depth(name):
    build, expected = MODELS[name]
    found = find_depths(build())
    for prefix, depth in expected.items():
        inside = {d for n, d in found.items() if f"{n}.".startswith(f"{prefix}.")}
        assert inside == {depth}, prefix


@pytest.mark.parametrize("model", [Block(), Parts(a=linear(), b=Block()), nn.ModuleList()])
def test_without_layers_it_says_so(model):
    with pytest.raises(
        ValueError,
        match=r"no list of layers .* say what they are under layers, or write one rule per part",
    ):
        find_depths(model)
