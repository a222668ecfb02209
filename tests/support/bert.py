"""A small BERT of transformers, and rows for it."""

import torch
from transformers import BertConfig, BertForSequenceClassification


def tiny_bert(layers=2, labels=3):
    """A BERT of random weights, without dropout, the same at every call."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=labels,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def tiny_rows(count=22):
    """Rows for tiny_bert: random tokens of one length, and a label that they tell."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 40, (count, 8), generator=generator)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 3}
        for row in tokens
    ]


def collate(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
