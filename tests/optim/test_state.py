"""Loading a state dict: every dtype survives, and what does not fit changes nothing."""

import pytest
import torch
from support.tensors import descend, parameters, same_bits

from optimplug.optim import ADOPT, LAMB, Adagrad, AdamW, MultiOptimizer


def flat(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


class TestLoading:
    def test_every_dtype_survives(self):
        ours = AdamW([torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))], foreach=False)
        descend(ours, 1, skip=False)
        state = ours.state_dict()
        state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].float() + 1e-6
        ours.load_state_dict(state)
        kept = ours.state[flat(ours)[0]]
        assert kept["exp_avg"].dtype == torch.float32
        assert same_bits(kept["exp_avg"], state["state"][0]["exp_avg"])

    def test_a_step_that_is_a_number_becomes_a_tensor(self):
        ours = AdamW(parameters(shapes=((2,),)))
        descend(ours, 3, skip=False)
        state = ours.state_dict()
        state["state"][0]["step"] = 3
        ours.load_state_dict(state)
        descend(ours, 1, skip=False)
        assert ours.state[flat(ours)[0]]["step"] == 4

    BAD = {
        "no state": (lambda s: s.pop("state"), "must have the key 'state'"),
        "no groups": (lambda s: s.pop("param_groups"), "must have the key 'param_groups'"),
        "fewer groups": (lambda s: s["param_groups"].pop(), "different number of parameter groups"),
        "fewer params": (lambda s: s["param_groups"][0]["params"].pop(), "doesn't match the size"),
        "shape": (
            lambda s: s["state"][1].update(exp_avg=torch.ones(9)),
            r"exp_avg of b must have the shape \(3,\) .got \(9,\)",
        ),
        "other parameters": (
            lambda s: s["param_groups"][0].update(param_names=["b", "a"]),
            r"param_groups\[0\] has 'a' where the state has 'b'",
        ),
        "a moment is gone": (
            lambda s: s["state"][1].pop("exp_avg"),
            r"the state of b must have exp_avg .got \['exp_avg_sq', 'step'\]",
        ),
        "the count is gone": (lambda s: s["state"][1].pop("step"), "the state of b must have step"),
        "a moment is no tensor": (
            lambda s: s["state"][0].update(exp_avg=[0.0, 0.0]),
            r"exp_avg of a must be a tensor .got list",
        ),
        "another optimizer's": (
            lambda s: s["state"].update({0: {"momentum_buffer": torch.ones(2)}}),
            "the state of a must have step",
        ),
        "a bad rate": (lambda s: s["param_groups"][0].update(lr=-1.0), "Invalid learning rate"),
        "no rate": (lambda s: s["param_groups"][0].update(lr="x"), r"param_groups\[0\]: "),
        "no dict": (lambda s: s.update(state=None), "must be a dict by parameter .got NoneType"),
        "no parameters": (
            lambda s: s["param_groups"][0].pop("params"),
            r"param_groups\[0\] must have the key 'params'",
        ),
        "a state that is none": (
            lambda s: s["state"].update({0: 5}),
            "the state of a must be a dict",
        ),
        "step": (lambda s: s["state"][1].update(step="x"), "step of b must be a number .got 'x'"),
    }

    @pytest.mark.parametrize("bad", BAD)
    def test_a_malformed_state_changes_nothing(self, bad):
        spoil, message = self.BAD[bad]
        a, b = parameters(shapes=((2,), (3,)))
        ours = AdamW([("a", a), ("b", b)])
        descend(ours, 2, skip=False)
        before, state = ours.state_dict(), ours.state_dict()
        spoil(state)
        descend(ours, 1, skip=False)
        now = ours.state_dict()
        with pytest.raises(ValueError, match=message):
            ours.load_state_dict(state)
        assert ours.state_dict()["param_groups"] == before["param_groups"]
        for i, kept in ours.state_dict()["state"].items():
            assert all(same_bits(v, now["state"][i][k]) for k, v in kept.items())

    @pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
    def test_a_wrapper_in_the_names_makes_no_difference(self, wrapper):
        ours = AdamW([("a", parameters(shapes=((2,),))[0])])
        descend(ours, 2, skip=False)
        state = ours.state_dict()
        state["param_groups"][0]["param_names"] = [f"{wrapper}a"]
        ours.load_state_dict(state)
        twin = AdamW([(f"{wrapper}a", parameters(shapes=((2,),))[0])])
        twin.load_state_dict(ours.state_dict())

    def test_hooks_see_the_state_and_may_replace_it(self):
        ours = AdamW(parameters(shapes=((2,),)))
        descend(ours, 2, skip=False)
        calls = []
        ours.register_load_state_dict_pre_hook(
            lambda o, s: calls.append("pre") or {**s, "extra": 1}
        )
        ours.register_load_state_dict_post_hook(lambda o: calls.append("post"))
        ours.load_state_dict(ours.state_dict())
        assert calls == ["pre", "post"]

    @pytest.mark.parametrize("cls", [torch.optim.AdamW, AdamW], ids=["torch", "ours"])
    def test_what_is_a_subclass_own_is_left_alone(self, cls):
        def stepped():
            params = parameters(shapes=((2, 3),))
            optimizer = cls(params)
            descend(optimizer, 1, skip=False)
            return optimizer, params[0]

        optimizer, p = stepped()
        optimizer.state[p].update(rows=torch.ones(2), seen=[1, 2])
        optimizer.state["shared"] = {"total": torch.ones(5), "step": 3}
        optimizer.state["epoch"] = 7
        loaded, q = stepped()
        loaded.load_state_dict(optimizer.state_dict())
        assert torch.equal(loaded.state[q]["rows"], torch.ones(2))
        assert loaded.state[q]["seen"] == [1, 2]
        assert loaded.state["shared"]["step"] == 3
        assert torch.equal(loaded.state["shared"]["total"], torch.ones(5))
        assert loaded.state["epoch"] == 7
        descend(loaded, 2, skip=False)
        assert loaded.state[q]["step"] == 3

    @pytest.mark.parametrize("cls", [torch.optim.AdamW, AdamW], ids=["torch", "ours"])
    def test_a_hook_may_make_anything_of_a_state(self, cls):
        optimizer = cls(parameters(shapes=((2,),)))
        descend(optimizer, 1, skip=False)
        hook = optimizer.register_state_dict_post_hook(
            lambda o, s: {"mine": s, "state": "see mine"}
        )
        saved = optimizer.state_dict()
        assert (saved.keys(), saved["state"]) == ({"mine", "state"}, "see mine")
        hook.remove()
        optimizer.register_load_state_dict_pre_hook(lambda o, s: s["mine"])
        optimizer.load_state_dict(saved)

    def test_a_hook_that_leaves_nothing_has_said_so(self):
        ours = AdamW(parameters(shapes=((2,),)))
        descend(ours, 1, skip=False)
        ours.register_load_state_dict_pre_hook(lambda o, s: {})
        with pytest.raises(ValueError, match="must have the key 'state'"):
            ours.load_state_dict(ours.state_dict())

    def test_sparse_and_expanded_moments_become_whole(self):
        a, b = parameters(shapes=((2,), (3,)))
        ours = AdamW([a, b])
        descend(ours, 1, skip=False)
        state = ours.state_dict()
        state["state"][0]["exp_avg"] = torch.tensor([0.0, 2.0]).to_sparse()
        state["state"][1]["exp_avg"] = torch.tensor([3.0]).expand(3)
        ours.load_state_dict(state)
        assert torch.equal(ours.state[a]["exp_avg"], torch.tensor([0.0, 2.0]))
        assert ours.state[b]["exp_avg"].is_contiguous()
        descend(ours, 1, skip=False)

    def test_adagrad_has_its_state_from_the_beginning_as_in_torch(self):
        def state(cls):
            params = [torch.ones(2), torch.ones(3, dtype=torch.complex64)]
            return cls(params, initial_accumulator_value=0.5).state_dict()["state"]

        ours, theirs = state(Adagrad), state(torch.optim.Adagrad)
        for i in theirs:
            assert ours[i].keys() == theirs[i].keys()
            assert all(same_bits(ours[i][key], theirs[i][key]) for key in ours[i])


SETTINGS = [(LAMB, "trust_clip", True), (ADOPT, "decouple", True), (AdamW, "eps", 0.5)]


@pytest.mark.parametrize(("cls", "key", "value"), SETTINGS)
@pytest.mark.parametrize("several", [False, True])
def test_a_setting_that_a_state_lacks_stays_as_the_group_has_it(cls, key, value, several):
    group = {"params": [torch.nn.Parameter(torch.ones(2))], key: value}
    ours = MultiOptimizer([{**group, "optimizer": cls.__name__}]) if several else cls([group])
    state = ours.state_dict()
    del state["param_groups"][0][key]
    ours.load_state_dict(state)
    assert ours.param_groups[0][key] == value
