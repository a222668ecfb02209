import pytest
import torch

from optimplug import ArgumentError, Horizon
from optimplug.recipe import build_scheduler
from optimplug.recipe.text.rule_id import RuleId


@pytest.mark.parametrize("index", [0, 2, 17])
def test_what_a_group_holds_leads_back_to_the_rule(index):
    rule = RuleId(index)
    assert rule.path == str(rule) == f"groups[{index}]"
    assert RuleId.in_group({"schedule": rule.path}, "schedule") == rule
    assert RuleId.in_group({"schedule": rule.path}, "freeze") is None


@pytest.mark.parametrize("other", ["mine", "groups[x]", "groups[1].match", 3, [], ""])
def test_what_is_no_rule_is_refused_before_anything_changes(other):
    group = {"params": [torch.nn.Parameter(torch.ones(2))], "schedule": other}
    optimizer = torch.optim.SGD([group], lr=0.1)
    before = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    with pytest.raises(ArgumentError, match="must name a rule of the recipe"):
        build_scheduler("linear", optimizer, Horizon(total_steps=3))
    after = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    assert before == after
