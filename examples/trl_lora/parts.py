"""What both scripts train: LoRA adapters on a small Llama of random weights, in bfloat16."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(
    str(Path(__file__).parents[1] / "low_memory")
)  # the model is that of those examples

from peft import LoraConfig, PeftModel, get_peft_model
from small import VOCABULARY, llama
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

RECIPE = Path(__file__).parent / "recipe.yaml"


def adapted() -> PeftModel:
    """Return the model with its adapters, which alone are trained."""
    adapters = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    # Without the last argument peft makes the adapters float32, of twice the size.
    return get_peft_model(llama(), adapters, autocast_adapter_dtype=False)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return what stands for the tokenizer of a real model: a word for each token, ``w3 w4``."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    found = Tokenizer(WordLevel(words, unk_token="<pad>"))  # noqa: S106 (no secret)
    found.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        pad_token="<pad>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
    )
