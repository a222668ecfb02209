import pytest
import torch
from torch import nn

from optimplug import ArgumentError
from optimplug.recipe.logged import LoggedGroups, console_logs, group_values


def optimizer(*names):
    groups = [{"params": [nn.Parameter(torch.ones(1))], "name": name} for name in names]
    return torch.optim.AdamW(groups, lr=0.1)


CHOSEN = [
    (None, ["body.0", "body.1/no_decay", "head"]),
    ([], []),
    ("head", ["head"]),
    (["body.*"], ["body.0", "body.1/no_decay"]),
    (("*/no_decay", "he?d"), ["body.1/no_decay", "head"]),
]


@pytest.mark.parametrize(("globs", "names"), CHOSEN)
def test_groups_are_chosen_by_globs_on_their_names(globs, names):
    owner = optimizer("body.0", "body.1/no_decay", "head")
    logged = LoggedGroups(globs)
    logged.check([owner])
    for more in ({}, {"momentum": True, "weight_decay": True}):
        values = group_values(owner, **more, logged=logged)
        kinds = ["lr", *more]
        assert set(values) == {f"{kind}/{name}" for kind in kinds for name in names}
        assert logged.of({**values, "loss": 1.0, "lr/other": 1.0}).keys() - {"lr/other"} == {
            *values,
            "loss",
        }


@pytest.mark.parametrize("globs", [3, [3], {"head": 1}, [["head"]]])
def test_globs_are_texts(globs):
    with pytest.raises(ArgumentError, match="log_groups must be globs on the names of groups"):
        LoggedGroups(globs)


@pytest.mark.parametrize(
    ("globs", "hint"),
    [
        (["haed"], "log_groups: 'haed' matches no group's name; did you mean 'head'\\?"),
        (["head", "HEAD"], "'HEAD' matches no .* did you mean 'head'"),
        (["zzz*"], r"'zzz\*' matches no group's name; there are body.0, head, 2$"),
    ],
)
def test_a_glob_that_names_nothing_is_an_error(globs, hint):
    owner = optimizer("body.0", "head")
    owner.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ArgumentError, match=hint):
        LoggedGroups(globs).check([owner])


def test_brackets_in_a_name_are_suggested_as_globs_have_them():
    owner = optimizer("c[0]")
    with pytest.raises(ArgumentError, match=r"'c\[0\]' matches .*; did you mean 'c\[\[\]0\]'\?"):
        LoggedGroups("c[0]").check([owner])
    LoggedGroups("c[[]0]").check([owner])


def test_a_glob_may_name_a_group_of_any_of_several_optimizers():
    LoggedGroups(["body", "head"]).check([optimizer("body"), optimizer("head")])


USUAL = {"loss": 0.6931471805599453, "grad_norm": 1.2345678806304932, "learning_rate": 1e-05}


@pytest.mark.parametrize("groups", [1, 3, 226, 5000])
@pytest.mark.parametrize("kinds", [["lr"], ["lr", "momentum", "weight_decay", "lost_updates"]])
def test_a_line_of_the_console_stays_short_whatever_is_logged(groups, kinds):
    values = {f"{kind}/layer.{i}": 1e-7 * (i + 1) for kind in kinds for i in range(groups)}
    logs = {**USUAL, **values, "epoch": 1.0}
    line = console_logs(logs)
    assert len(str(line)) < 200
    assert USUAL.items() <= line.items()
    if groups > 3:
        assert line[f"lr of {groups} groups"] == f"1e-07 ... {1e-7 * groups:.3g}"
    if len(str(logs)) < 200:
        assert line == logs
    assert len(values) == groups * len(kinds)


def test_with_too_little_room_the_range_stands_for_the_first_rate():
    own = {"text": "x" * 100, "learning_rate": 1e-05}
    rates = {f"lr/a.long.name.of.layer.{i}": 1e-5 * (i + 1) for i in range(9)}
    assert console_logs({**own, **rates}) == {**own, "lr of 9 groups": "1e-05 ... 9e-05"}
    own["text"] = "x" * 135
    assert console_logs({**own, **rates}) == {**own, "learning_rate": "1e-05 ... 9e-05"}
    own["text"] = "x" * 160
    assert console_logs({**own, **rates}) == own


def test_what_is_the_users_own_stays_however_long_it_is():
    own = {"text": "x" * 300, "seen/lr": 2.0, "mine": 1, "lr/note": "as before", "lr/none": None}
    assert console_logs({**own, "lr/a": 0.1}) == own


def test_equal_values_are_one():
    logs = {**USUAL, **{f"weight_decay/a.long.name.of.a.layer.{i}": 0.1 for i in range(9)}}
    assert console_logs(logs)["weight_decay of 9 groups"] == "0.1"
