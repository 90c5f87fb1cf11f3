"""Rerankers with random weights in published shapes, made on the spot: their speed is that of the real ones.

Their tokenizers are trained on the texts that they will read, so that a text has about as many tokens as with the real
ones. Where a real vocabulary is larger, the output layer has its size all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

#: Words of Qwen2's output layer.
QWEN2_VOCABULARY = 151_936
#: Merges that a tokenizer learns: more need more text than a benchmark has.
LEARNT_VOCABULARY = 16_000
#: How often the labels of templates are shown to a tokenizer, so that each becomes one token.
LABELS = ["yes", "no"] * 100
#: Of the random weights: more than is usual before training, so that scores differ by more than rounding.
SPREAD = 0.05


class Shape(NamedTuple):
    """The size of a transformer: layers, width, width inside the MLP, heads, and heads of keys and values."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int


#: Qwen2.5-0.5B. Source: its config.json on the Hugging Face hub.
QWEN2_HALF_B = Shape(24, 896, 4864, 14, 2)
#: A quarter of its width, with its proportions: the output layer is most of what it computes.
QWEN2_SMALL = Shape(6, 224, 1216, 4, 2)
#: cross-encoder/ms-marco-MiniLM-L6-v2. Source: its config.json on the Hugging Face hub.
MINILM_L6 = Shape(6, 384, 1536, 12, 12)


def save_qwen2(folder: Path, shape: Shape, texts: Sequence[str]) -> str:
    """Save a causal language model with Qwen2's chat tokens, and return its folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNT_VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *LABELS], trainer)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=QWEN2_VOCABULARY,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.inner,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        initializer_range=SPREAD,
        dtype="float32",
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 - not a password
        pad_token="<|endoftext|>",  # noqa: S106
        model_max_length=32_768,
    ).save_pretrained(folder)
    return str(folder)


def save_cross_encoder(folder: Path, shape: Shape, texts: Sequence[str]) -> str:
    """Save a BERT with one label, and return its folder."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - not a password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=LEARNT_VOCABULARY, special_tokens=list(special.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30_522,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.inner,
        num_attention_heads=shape.heads,
        num_labels=1,
        initializer_range=SPREAD,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    ).save_pretrained(folder)
    return str(folder)
