"""Parameters are known by their names, whatever is around the model."""

import pytest

from optimplug.recipe.checkpoint.names import bare_name, match_names

OWN = ["body.weight", "body.bias", "head.weight"]


@pytest.mark.parametrize(
    ("saved", "bare"),
    [
        ("module.body.weight", "body.weight"),
        ("module._orig_mod.body.weight", "body.weight"),
        ("_fsdp_wrapped_module.layers.0._fsdp_wrapped_module.q.weight", "layers.0.q.weight"),
        ("layers.0._checkpoint_wrapped_module.q.weight", "layers.0.q.weight"),
        ("_forward_module.body.weight", "body.weight"),
        ("base_model.model.q.base_layer.weight", "q.weight"),
        ("base_model.model.head.modules_to_save.default.weight", "head.weight"),
        ("base_model.model.q.lora_A.default.weight", "q.lora_A.default.weight"),
        ("submodule.weight", "submodule.weight"),
        ("body.module.weight", "body.module.weight"),
    ],
)
def test_wrappers_are_no_part_of_a_name(saved, bare):
    assert bare_name(saved) == bare
    assert bare_name(bare) == bare
    assert match_names([bare], [saved]) == ({bare: saved}, None)


@pytest.mark.parametrize(
    ("own", "saved", "pairs", "words"),
    [
        (OWN, OWN[::-1], dict(zip(OWN, OWN, strict=True)), None),
        (OWN, ["body.bias", "other"], {"body.bias": "body.bias"}, None),
        (OWN, ["a", "b"], {}, None),
        (OWN, [], {}, None),
        ([], OWN, {}, None),
        (
            [f"model.{name}" for name in OWN], OWN, {f"model.{name}": name for name in OWN},
            "'model.' stands before every name now",
        ),
        (
            OWN, [f"net.model.{name}" for name in OWN], {n: f"net.model.{n}" for n in OWN},
            "'net.model.' stands before every name there",
        ),
        # With one name as it was, nothing has moved as a whole.
        (["head", "m.body"], ["head", "body"], {"head": "head"}, None),
        # What only some have before them is no prefix.
        (["m.body", "n.head"], ["body", "head"], {}, None),
        # Two that are alike without wrappers are not guessed at.
        (["w"], ["module.w", "_orig_mod.w"], {}, None),
        (["w", "x"], ["w", "module.w", "module.x"], {"w": "w", "x": "module.x"}, None),
    ],
)  # fmt: skip
def test_names_are_matched(own, saved, pairs, words):
    assert match_names(own, saved) == (pairs, words)
