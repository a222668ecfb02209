"""A metric by its name, with the prefixes of the trainers."""

import pytest

from optimplug import ArgumentError
from optimplug._core.metrics import name_among, require_metric

FOUND = [
    ("loss", ["loss", "val_loss"], "loss"),
    ("loss", ["val_loss", "train_loss"], "val_loss"),
    ("loss", ["eval_loss"], "eval_loss"),
    ("eval_loss", ["val_loss", "loss"], "val_loss"),  # the other may be the training's
    ("val_loss", ["loss", "eval_loss"], "eval_loss"),
    ("val_loss", ["loss"], "loss"),
    ("eval_b_f1", ["b_f1"], "b_f1"),
    ("evaluation", ["uation", "eval_uation"], None),
    ("loss", ["train_loss", "val_los", "test_loss"], None),
    ("f1", [], None),
]


@pytest.mark.parametrize(("name", "there", "found"), FOUND)
def test_where_a_metric_is(name, there, found):
    assert name_among(name, there) == found


MISSING = [
    ("f1", {}, "none"),
    ("f1", {"b": 0, "a": 0}, "a, b"),
    ("vall_loss", {"accuracy": 0, "val_loss": 0}, "val_loss, accuracy"),
    ("eval_accuracy", {"a": 0, "loss": 0, "val_acuracy": 0, "accurate": 0}, "val_acuracy, accurate, a, loss"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "metrics", "listed"), MISSING)
def test_a_missing_one_is_told_with_the_nearest_names_first(name, metrics, listed):
    with pytest.raises(ArgumentError) as caught:
        require_metric(name, metrics)
    assert str(caught.value) == f"the metric {name!r} is missing; there are: {listed}"
