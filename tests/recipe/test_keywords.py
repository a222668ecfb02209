"""Keyword arguments that a class would only swallow, and those that it does something with."""

import functools

import pytest
import torch

from optimplug import Recipe, RecipeError
from optimplug.recipe.keywords import keywords_of, takes


class Base(torch.optim.Optimizer):
    def __init__(self, params, defaults, rounding="up", **others):
        super().__init__(params, {**defaults, **others})


class Google(Base):
    """In Google's style.

    Args:
        lr: the rate.
        width (int): documented, and read from the group elsewhere.
        `quoted`: in quotes.

    It also mentions swallowed, and that is all.
    """

    def __init__(self, params, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, **kwargs):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, **kwargs})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["read"] = group.get("scale", 1.0)

    @staticmethod
    @functools.cache
    def looked_up(group):
        return [group[key] for key in group if key == "looked"]

    @property
    def asked(self):
        return [option for option in ("one", "two") if self.defaults[option]]


class Sphinx(torch.optim.SGD):
    """In Sphinx' style."""

    def __init__(self, params, **kwargs):
        """Make one.

        :param int width: documented.
        :param height: documented.
        """
        super().__init__(params, lr=kwargs.pop("rate", 0.1), **kwargs)


class Closed(Google):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)


class Open(Closed):
    def __init__(self, params, wide=1, **kwargs):
        super().__init__(params, **kwargs)


TAKEN = {
    Google: ["lr", "betas", "rounding", "width", "quoted", "scale", "one", "two", "looked"],
    Sphinx: ["lr", "momentum", "width", "height", "rate"],
    Closed: ["lr"],
    torch.optim.SGD: ["lr", "momentum", "nesterov"],
}
SWALLOWED = {
    Google: ["swallowed", "lrr", "weight_decy", "kwargs", "others", "momentum"],
    Sphinx: ["lrr", "kwargs", "weight"],
    Closed: ["rounding", "width", "scale", "betas"],
    torch.optim.SGD: ["rounding", "max_grad_norm"],
}


@pytest.mark.parametrize("cls", TAKEN)
def test_what_a_class_takes(cls):
    assert [key for key in TAKEN[cls] if not takes(cls, key)] == []
    assert [key for key in SWALLOWED[cls] if takes(cls, key)] == []


def test_arguments_are_those_of_the_bases_that_they_are_handed_on_to():
    assert list(keywords_of(Google, ["params", "defaults"])) == [
        "rounding",
        "lr",
        "betas",
        "weight_decay",
    ]
    assert list(keywords_of(Closed)) == ["params", "lr"]
    assert set(keywords_of(Open)) == {"params", "lr", "wide"}  # Closed hands on nothing
    assert keywords_of(Sphinx)["momentum"].default == 0


def recipe_of(cls, rules=(), **settings):
    name = f"{__name__}.{cls.__name__}"
    return Recipe.load({"optimizer": {"name": name, "lr": 0.1, **settings}, "groups": list(rules)})


BAD = [
    ({"weight_decy": 0.1}, "optimizer.weight_decy: unknown key; did you mean 'weight_decay'?"),
    ({"max_gard_norm": 1}, "optimizer.max_gard_norm: unknown key; did you mean 'max_grad_norm'?"),
    ({"defaults": 1}, "optimizer.defaults: unknown key"),
    ({"rules": [{"beta": [0, 0]}]}, "groups[0].beta: unknown key; did you mean 'betas'?"),
    ({"max_grad_norm": "1"}, "optimizer.max_grad_norm: must be a finite number (got '1')"),
    ({"max_grad_norm": -1}, "optimizer.max_grad_norm: Invalid max_grad_norm: -1; must be > 0"),
    (
        {"rules": [{"max_grad_norm": 1.0}]},
        "groups[0].max_grad_norm: is for the whole optimizer; move it to 'optimizer'",
    ),
    ({"skip_nonfinite": 1}, "optimizer.skip_nonfinite: must be true or false (got 1)"),
]


@pytest.mark.parametrize(("said", "line"), BAD)
def test_a_recipe_is_refused_for_what_its_optimizer_would_swallow(said, line):
    with pytest.raises(RecipeError) as caught:
        recipe_of(Google, **said)
    assert str(caught.value).startswith(line)


def test_a_recipe_may_say_what_is_read():
    rules = [{"match": "weight", "scale": 2.0}]
    recipe = recipe_of(Google, rules, betas=[0.5, 0.5], rounding="down", width=3)
    assert recipe.hyperparameters["betas"] == (0.5, 0.5)
    assert recipe.hyperparameters["max_grad_norm"] is None
    optimizer = recipe.build_optimizer(torch.nn.Linear(1, 1))
    assert [group.get("scale") for group in optimizer.param_groups] == [2.0, None]
    assert optimizer.defaults["width"] == 3


def test_a_class_is_looked_into_once(monkeypatch):
    looked = []
    monkeypatch.setattr(
        "optimplug.recipe.keywords.keywords_of", lambda cls: looked.append(cls) or ["width"]
    )

    class Fresh(torch.optim.SGD):
        pass

    assert [takes(Fresh, key) for key in ("width", "width", "width")] == [True] * 3
    assert looked == [Fresh]
