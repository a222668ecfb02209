"""A small Llama of transformers, and what TRL trains it with."""

import datasets
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def llama():
    """A Llama of random weights, the same at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def rows():
    """Sequences of random tokens for it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 40, (22, 8), generator=generator)
    return datasets.Dataset.from_dict({"input_ids": tokens.tolist()})


def tokenizer():
    """A tokenizer of as many words, which TRL asks for."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 40)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")),  # noqa: S106 (no secret)
        pad_token="<pad>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
    )
