"""Models that are made in a moment: random weights in the published formats, loaded by the real loading code."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = ("word", "one", "two", "three", "four", "corpus", "sentence", "number", "river", "mill", "rain", "road")


def tiny_bert(folder: Path, *, hidden: int = 32, layers: int = 2, limit: int = 128) -> str:
    """Save a random BERT with mean pooling, and return its folder.

    Args:
        folder: where; made if it is not there.
        hidden: length of its vectors.
        layers: how many.
        limit: tokens that it takes.
    """
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *map(str, range(10))]
    vocabulary = {word: i for i, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - not a password
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(known),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        max_position_embeddings=limit,
    )
    base = folder.with_name(f"{folder.name}-base")
    BertModel(config).eval().save_pretrained(base)
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=limit).save_pretrained(base)
    model = SentenceTransformer(modules=[Transformer(str(base), max_seq_length=limit), Pooling(hidden)], device="cpu")
    model.save(str(folder))
    return str(folder)
