import pytest
from support.bert import tiny_bert
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from optimplug.recipe.parameters.depth.depth import depths, find_depths

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=3, n_head=2, n_positions=8))


def llama():
    config = LlamaConfig(vocab_size=20, intermediate_size=32, **SMALL)
    return LlamaForCausalLM(config)


def vit():
    config = ViTConfig(image_size=8, patch_size=4, intermediate_size=32, num_labels=2, **SMALL)
    return ViTForImageClassification(config)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)


def resnet_like():
    model = nn.Module()
    model.stem = nn.Conv2d(3, 4, 1)
    model.layer1 = nn.Sequential(Block(), Block())
    model.layer2 = nn.Sequential(Block(), Block())
    model.fc = nn.Linear(2, 2)
    return model


# model: a parameter of it, and its depth
KNOWN = [
    (lambda: tiny_bert(layers=2), "bert.embeddings.word_embeddings.weight", 0),
    (lambda: tiny_bert(layers=2), "bert.encoder.layer.0.output.dense.bias", 1),
    (lambda: tiny_bert(layers=2), "bert.encoder.layer.1.output.dense.bias", 2),
    (lambda: tiny_bert(layers=2), "bert.pooler.dense.weight", 3),
    (lambda: tiny_bert(layers=2), "classifier.weight", 3),
    (gpt2, "transformer.wpe.weight", 0),
    (gpt2, "transformer.h.2.ln_1.weight", 3),
    (gpt2, "transformer.ln_f.weight", 4),
    (gpt2, "lm_head.weight", 4),
    (llama, "model.embed_tokens.weight", 0),
    (llama, "model.layers.1.mlp.up_proj.weight", 2),
    (llama, "model.norm.weight", 4),
    (vit, "vit.embeddings.cls_token", 0),
    (vit, "classifier.weight", 4),
    (resnet_like, "stem.weight", 0),
    (resnet_like, "layer1.1.linear.weight", 2),
    (resnet_like, "layer2.0.linear.weight", 3),
    (resnet_like, "fc.weight", 5),
    (lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.LayerNorm(3)), "0.weight", 1),
    (lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.LayerNorm(3)), "2.weight", 2),
]


@pytest.mark.parametrize(("build", "name", "depth"), KNOWN, ids=[k[1] for k in KNOWN])
def test_depth(build, name, depth):
    assert depths(build())[name] == depth


def test_every_parameter_has_a_depth():
    model = tiny_bert()
    assert list(depths(model)) == [n for n, _ in model.named_parameters(remove_duplicate=False)]


def test_a_model_without_layers_says_how_to_go_on():
    with pytest.raises(
        ValueError,
        match=r"no list of layers .* Linear; say what they are under layers, or write one rule",
    ):
        depths(nn.Linear(2, 2))


def test_each_tower_has_its_own_depth_and_what_joins_them_is_above():
    small = {**SMALL, "intermediate_size": 32}
    text = {**small, "vocab_size": 20, "max_position_embeddings": 8}
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    vision = {**small, "image_size": 8, "patch_size": 4, "num_hidden_layers": 2}
    found = find_depths(CLIPModel(CLIPConfig(text_config=text, vision_config=vision)))
    assert found["text_model.encoder.layers.2.mlp.fc1.weight"] == (3, 1)
    assert found["vision_model.encoder.layers.1.mlp.fc1.weight"] == (2, 1)
    assert found["vision_model.post_layernorm.weight"] == (3, 0)
    assert found["text_projection.weight"] == found["logit_scale"] == (4, 0)
