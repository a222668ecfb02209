"""A small Llama in bfloat16 with random weights, and made-up sequences that it can learn."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 64


def llama() -> LlamaForCausalLM:
    """Return the model; take ``from_pretrained(name, dtype=torch.bfloat16)`` for a real one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def sequences(count: int = 192, length: int = 16) -> Tensor:
    """Return rows of tokens, of which each follows from the one before."""
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(3, VOCABULARY, (count,), generator=generator)]
    for _ in range(length - 1):
        tokens.append((tokens[-1] * 5 + 2) % (VOCABULARY - 3) + 3)
    return torch.stack(tokens, dim=1)
