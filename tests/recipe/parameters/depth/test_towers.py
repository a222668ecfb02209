"""Models written as people write them, and where their parameters lie."""

import re

import pytest
import torch
from torch import nn

from optimplug import Horizon, Recipe
from optimplug.recipe.parameters.depth.depth import find_depths, find_layout


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


class InTurn(Parts):
    """A model of attributes, through which its input goes one after another."""

    def forward(self, x):
        x = self.stem(x)
        for block in self.low:
            x = block(x)
        x = self.turn(x)
        x = self.high(x)
        return self.head(x)


class InHalves(Parts):
    def forward(self, x):
        for i in range(2):
            x = self.high[i](self.low[i](x))
        return self.head(x)


class SideBySide(Parts):
    def forward(self, x, y):
        for block in self.low:
            x = block(x)
        for block in self.high:
            y = block(y)
        return self.head(x, y)


class Backwards(Parts):
    def forward(self, x):
        for block in reversed(self.layers):
            x = block(x)
        return self.head(x)


class Wide(Block):
    """Another block than Block: so that lists of the two look like different towers."""

    def __init__(self):
        super().__init__()
        self.queries, self.keys, self.values, self.mix = (linear() for _ in range(4))
        del self.up, self.down


class Taps(Parts):
    """The second list is used beside the layers of the first."""

    def forward(self, x):
        for i, block in enumerate(self.low):
            x = block(x)
            self.seen.append(self.high[i](x))
        return self.head(x)


class Branches(Block):
    """It sends its input through two branches at once."""

    def __init__(self):
        super().__init__()
        self.branch0, self.branch1 = Block(), Block()

    def forward(self, x):
        return self.branch0(x) + self.branch1(x)


def stacked():
    return {"low": blocks(2), "high": blocks(2, Wide), "head": linear()}


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
    "lists that follow each other in forward": (
        lambda: InTurn(**stacked(), stem=nn.Sequential(Block(), Block()), turn=linear()),
        {
            "stem": (0, 5), "low.0": (1, 4), "low.1": (2, 3), "turn": (3, 2), "high.0": (3, 2),
            "high.1": (4, 1), "head": (5, 0),
        },
    ),
    "an embedding that looks like a block": (
        lambda: InTurn(stem=linear(), turn=linear(), **{**stacked(), "head": Block()}, patch_embed=Block()),
        {"low.0": (1, 4), "high.1": (4, 1), "patch_embed": (5, 0), "head": (5, 0)},
    ),
    "blocks with lists of their parts": (
        lambda: nn.Sequential(
            nn.Sequential(Parts(parts=blocks(2)), Parts(parts=blocks(2))),
            nn.Sequential(Parts(parts=blocks(3, Wide)), Parts(parts=blocks(3, Wide))),
        ),
        {"0.0": (1, 3), "0.1": (2, 2), "1.0.parts.2": (3, 1), "1.1.parts.0": (4, 0)},
    ),
    "lists of one length that follow each other": (
        lambda: InTurn(**stacked(), stem=linear(), turn=linear()),
        {"stem": (0, 5), "low.1": (2, 3), "turn": (3, 2), "high.0": (3, 2), "head": (5, 0)},
    ),
    "halves of layers in two lists": (
        lambda: InHalves(**stacked()), {"low.1": (2, 1), "high.0": (1, 2), "high.1": (2, 1), "head": (3, 0)},
    ),
    "lists that two inputs go through": (
        lambda: SideBySide(**stacked()),
        {"low.1": (2, 1), "high.0": (1, 2), "high.1": (2, 1), "head": (3, 0)},
    ),
    "stages of other blocks in a Sequential": (
        lambda: nn.Sequential(
            linear(), nn.Sequential(Block(), Block()), nn.Sequential(linear(), Wide(), Wide()), linear()
        ),
        {"0": (0, 5), "1.1": (2, 3), "2.0": (3, 2), "2.1": (3, 2), "2.2": (4, 1), "3": (5, 0)},
    ),
    "stages of other blocks in a list": (
        lambda: Parts(
            stages=nn.ModuleList([Parts(blocks=blocks(2)), Parts(blocks=blocks(3, Wide))])
        ),
        {"stages.0.blocks.1": (2, 3), "stages.1.blocks.0": (3, 2), "stages.1.blocks.2": (5, 0)},
    ),
    "a stage that begins with another block": (
        lambda: nn.Sequential(
            nn.Sequential(Block(), Block()), nn.Sequential(Wide(), Block(), Block())
        ),
        {"0.1": (2, 3), "1.0": (3, 2), "1.1": (4, 1), "1.2": (5, 0)},
    ),
    "branches are no layers": (
        lambda: nn.Sequential(Branches(), Branches(), Block()),
        {"0.branch0": (1, 2), "0.branch1": (1, 2), "1.branch1": (2, 1), "2": (3, 0)},
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


DOUBTS = {  # model: what may be wrong with its layers, None for nothing
    "lists that two inputs go through": (
        lambda: SideBySide(**stacked()),
        r"low, high of SideBySide were taken for 2 towers side by side; if its input goes through",
    ),
    "blocks without norms in a list with others": (
        lambda: Parts(
            parts=nn.ModuleList([
                Parts(b=Parts(c=blocks(2, Plain))), linear(), Parts(b=Parts(c=blocks(3, Plain)))
            ])
        ),
        r"0, 2 of parts were taken for 2 towers",
    ),
    "models of one shape side by side": (
        lambda: Parts(members=nn.ModuleList([Parts(x=Parts(low=blocks(2))) for _ in "ab"])),
        r"members.0 and what follows it have layers of their own, but count as one layer each; if",
    ),
    "from the end": (
        lambda: Backwards(layers=blocks(2), head=linear()),
        r"forward of Backwards goes through layers from its end, so that its last layer is used first",
    ),
    "a part of a layer that is known by another name": (
        lambda: Parts(shared=(part := linear()), layers=nn.ModuleList([Around(part), Around(linear())])),
        r"shared.weight lies outside of the layers, but is used in one, as layers.0.inner.weight "
        r"\(as 1 more tensors do\); give it a rate by its name",
    ),
    "lists that follow each other": (
        lambda: InTurn(**stacked(), stem=linear(), turn=linear()), None,
    ),
    "a list used beside another": (lambda: Taps(**{**stacked(), "low": blocks(3)}), None),
    "whole models": (lambda: nn.Transformer(4, 2, 2, 3, 8, batch_first=True), None),
    "tied embeddings": (
        lambda: Parts(embed=(table := nn.Embedding(4, 4)), layers=blocks(2), head=table), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTS)
def test_doubts(name):
    build, message = DOUBTS[name]
    doubts = find_layout(build()).doubts
    if message is None:
        assert not doubts
    else:
        (doubt,) = doubts
        assert re.match(message, doubt)


def test_doubts_are_warnings_where_depth_is_asked_for():
    model = Backwards(layers=blocks(2), head=linear())
    recipe = {"optimizer": {"name": "AdamW"}, "groups": [{"match": "*.bias", "lr": 0.1}]}
    assert not Recipe.load(recipe).plan(model, Horizon(total_steps=1)).warnings
    for rule in ({"layer_decay": 0.5}, {"match": {"not": {"depth": 1}}, "lr_scale": 2.0}):
        asking = Recipe.load({**recipe, "groups": [*recipe["groups"], rule]})
        (warning,) = asking.plan(model, Horizon(total_steps=1)).warnings
        assert warning.path == "groups[1]"
        assert "from its end" in warning.message
    told = Recipe.load(
        {**recipe, "groups": [{"layer_decay": 0.5}], "layers": ["layers.1", "layers.0"]}
    )
    assert not told.plan(model, Horizon(total_steps=1)).warnings
    assert find_depths(model, ["layers.1", "layers.0"])["layers.0.up.bias"] == (2, 1)


def test_how_many_layers_and_towers():
    assert str(find_layout(SideBySide(**stacked()))).startswith(
        "4 layers in 2 towers (2, 2); tensors"
    )
    one = find_layout(Parts(a=linear(), layers=blocks(1), z=linear()))
    assert str(one) == "1 layer in 1 tower; tensors: 2 below the first, 6 in them, 2 above the last"
    many = Parts(**{f"{name}": Parts(**{name: blocks(n + 1)}) for n, name in enumerate("abcdef")})
    assert "21 layers in 6 towers (6, 5, 4, 3, ...)" in str(find_layout(many))
