"""What is read in the code of ``forward``."""

import pytest
from torch import nn

from optimplug.recipe.parameters.code.forward import (
    backwards,
    calls,
    chained,
    in_loops,
    iterated,
    used,
    words,
)


class Others(nn.Module):
    """It reads attributes of others, of the same names as its own."""

    def forward(self, x, batch):
        x = x * batch.head + x.tail
        x = self.embed(x, batch.layers)
        for layer in self.layers:
            x = layer(x) * x.norm
        other = batch
        return self.head(other.norm(x))


class Methods(nn.Module):
    def forward(self, x):
        self._rescale()
        x = self._bottom(x)
        shapes = self._shapes()
        return self.top(x) + shapes

    def _rescale(self):
        for layer in self.top:
            layer.weight.div_(2)
        self.unused.clear_()

    def _bottom(self, x):
        return self.bottom(x)

    def _shapes(self):
        return self.table.shape


class Asks(nn.Module):
    def forward(self, x):
        if len(self.layers) > 2 and isinstance(self.head, nn.Linear):
            x = x + 1
        if self.norm is not None:
            x = self.norm(x)
        return self.head(self.layers(x))


class Above(Asks):
    def forward(self, x):
        return self.last(super().forward(self.first(x)))


class Nested(nn.Module):
    def forward(self, x):
        rows = [self.row(y) for y in x]
        return self.join(rows)


USED = {
    Others: ["embed", "layers", "head"],
    Methods: ["bottom", "table", "top", "unused"],
    Asks: ["norm", "head", "layers"],
    Above: ["last", "first", "norm", "head", "layers"],
    Nested: ["row", "join"],
    nn.Module: [],
}


@pytest.mark.parametrize("cls", USED)
def test_used(cls):
    names = list(used(cls))
    if cls is Methods:  # what only a method aside uses has a place of its own, wherever
        names.remove("unused")
        assert names == [name for name in USED[cls] if name != "unused"]
        assert "unused" in used(cls)
    elif cls is Above:
        assert set(names) == set(USED[cls])
    else:
        assert names == USED[cls]


class Chain(nn.Module):
    def forward(self, x, y=None):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, y)
        for i, block in enumerate(self.more):
            x = x + block(x) if i else block(x)
        x, _ = self.pair(x)
        x = self._middle(x)
        x = y.elsewhere(x)
        for block in y.others:
            x = block(x)
        y = self.side(x)
        x = self.mixed(y)
        y = y + self.other(y)
        self.hidden(x)
        return self.head(x)

    def _middle(self, x):
        return self.middle(x)


class Collects(nn.Module):
    """The outputs go elsewhere than through the next module."""

    def forward(self, x):
        a = self.left(x)
        b = self.right(x)
        outputs = []
        for head in self.heads:
            outputs.append(head(x))
        for i, block in enumerate(self.blocks):
            outputs[i] = block(outputs[i])
        return self.join(a, b, outputs)


CHAINED = {
    Chain: {"stem", "blocks", "more", "pair", "_middle", "middle", "head"},
    Collects: set(),
    nn.Module: set(),
}


@pytest.mark.parametrize("cls", CHAINED)
def test_chained(cls):
    assert chained(cls) == CHAINED[cls]


class Loops(nn.Module):
    def forward(self, x):
        for i, (layer, down) in enumerate(zip(self.layers, self.downs, strict=True)):
            x = self.tap[i](layer(down(x)))
        for layer in self.up:
            x = self.inner(layer(x)) + layer.outer(x)
        for layer in x.others:
            x = self.free(layer(x))
        for layer in self.low:
            x = layer(x)
            for other in self.small:
                x = self.deep(other(x))
        return self.after(x)


def test_in_loops():
    assert in_loops(Loops) == {
        ("tap", "downs"), ("inner", "up"), ("small", "low"), ("deep", "low"), ("deep", "small"),
    }  # fmt: skip


class Back(nn.Module):
    def forward(self, x):
        for layer in reversed(self.a):
            x = layer(x)
        for layer in self.b[::-1]:
            x = layer(x)
        for layer in self.c[1:]:
            x = layer(x)
        for layer in reversed(x.e):
            x = layer(x)
        for layer in x.f[::-1]:
            x = layer(x)
        return self.d[-1](x)


def test_iterated():
    assert iterated(Loops) == {"downs", "up", "low", "small"}


def test_backwards():
    assert backwards(Back) == {"a", "b"}
    assert not backwards(Loops)


class Table(nn.Module):
    def forward(self, x):
        return x * self.weight


def test_calls():
    assert not calls(Table)
    assert calls(Chain)


def test_words_have_numbers_and_names_but_no_text():
    class Words(nn.Module):
        def forward(self, x):
            "rsqrt"
            return x.mean() ** -0.5

    assert {"mean", "-0.5"} <= words(Words)
    assert "rsqrt" not in words(Words)
