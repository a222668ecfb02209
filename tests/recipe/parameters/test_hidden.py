"""Which parameters Muon is given, held against what a reader of each model says."""

import re

import pytest
import torch
import transformers
from torch import nn

from optimplug import Horizon, Recipe

RECIPE = {"optimizer": {"name": "Muon", "lr": 0.02, "fallback": "AdamW"}}
ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# By the class of a model: its configuration, and a pattern on the names of its hidden matrices.
MODELS = {
    "BertForMaskedLM": (
        {**ENCODER, "vocab_size": 40},
        r"bert\.encoder\.layer\.\d\..*(query|key|value|dense)\.weight",
    ),
    "GPT2LMHeadModel": (
        {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 40, **SPECIAL},
        r"transformer\.h\.\d\.(attn|mlp)\.c_\w+\.weight",
    ),
    "LlamaForCausalLM": (
        {**ENCODER, "num_key_value_heads": 2, "vocab_size": 40, "tie_word_embeddings": True},
        r"model\.layers\.\d\.(self_attn|mlp)\.\w+_proj\.weight",
    ),
    "T5ForConditionalGeneration": (
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 40},
        r"(en|de)coder\.block\..*(Attention\.[qkvo]|\.w[io])\.weight",
    ),
    "MixtralForCausalLM": (
        {**ENCODER, "num_key_value_heads": 2, "num_local_experts": 2, "vocab_size": 40},
        r"model\.layers\.\d\.(self_attn\.\w_proj|mlp\.gate)\.weight",  # experts are in one tensor
    ),
    "MambaForCausalLM": (
        {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 40},
        r"backbone\.layers\.\d\.mixer\.(\w+_proj|conv1d)\.weight",  # and not A_log
    ),
    "ViTForImageClassification": (
        {**ENCODER, "image_size": 32},
        r"vit\.(encoder\.layer|layers)\.\d\..*(?<!norm)\.weight(?<!layernorm_before\.weight)"
        r"(?<!layernorm_after\.weight)",
    ),
    "SwinForImageClassification": (
        {
            "embed_dim": 8,
            "depths": [2, 2],
            "num_heads": [2, 2],
            "image_size": 32,
            "window_size": 4,
        },
        r"swin\.encoder\.layers\.\d\..*(query|key|value|dense|reduction|fc\d|_proj)\.weight",
    ),
    "ResNetForImageClassification": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic"},
        r"resnet\.encoder\.stages\..*convolution\.weight",
    ),
}


def hidden(model):
    plan = Recipe(RECIPE).plan(model, Horizon(total_steps=5))
    return {
        name for group in plan.groups for name in group.parameters if group.optimizer.name == "Muon"
    }


@pytest.mark.parametrize("name", MODELS)
def test_hidden_matrices_of_what_people_train(name):
    settings, pattern = MODELS[name]
    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class(**settings))
    names = [n for n, p in model.named_parameters() if p.ndim > 1]
    expected = {n for n in names if re.fullmatch(pattern, n)}
    assert expected
    assert hidden(model) == expected


class Block(nn.Module):
    """Matrices of a module's own, by whatever name, beside tables."""

    def __init__(self):
        super().__init__()
        for name in ("weight", "w1", "W_q", "in_proj_weight", "kernel"):
            setattr(self, name, nn.Parameter(torch.ones(4, 4)))
        for name in ("relative_position_bias_table", "A_log", "bias_weight", "tokens"):
            setattr(self, name, nn.Parameter(torch.ones(4, 4)))
        self.stack_weight = nn.Parameter(torch.ones(2, 4, 4))


def test_of_a_module_of_ones_own_the_name_tells():
    names = ("weight", "w1", "W_q", "in_proj_weight", "kernel")
    expected = {f"{i}.{name}" for i in range(2) for name in names}
    assert hidden(nn.Sequential(Block(), Block())) == expected


def test_the_last_of_linear_layers_is_the_output():
    lines = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    assert hidden(lines) == {"0.weight", "1.weight"}
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))
    assert hidden(blocks) == {"0.0.weight", "1.0.weight", "2.0.weight"}
