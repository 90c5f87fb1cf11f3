"""Encoders with random weights in the sizes of published ones, made on the spot: their speed is that of the real ones.

Their tokenizers are trained on the texts that they will read; where a real vocabulary is larger, the embeddings have
its size all the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import M2M100Config, NllbTokenizer, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel
from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder

#: Pieces that tokenizers learn: as many tokens a word as a vocabulary of many languages has, about.
LEARNT_VOCABULARY = 8000
#: Sizes of the published vocabularies: NLLB's with SONAR, XLM-RoBERTa's with BGE-M3 and multilingual e5. Source: their
#: config.json on the Hugging Face hub.
SONAR_VOCABULARY, XLM_R_VOCABULARY = 256_206, 250_002
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def save_static(folder: Path, texts: Sequence[str], vocabulary: int, dim: int = 256) -> str:
    """Save static embeddings, and return their folder."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - not a password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=LEARNT_VOCABULARY, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    torch.manual_seed(0)
    module = StaticEmbedding(tokenizer, embedding_weights=torch.randn(vocabulary, dim))
    SentenceTransformer(modules=[module], device="cpu").save(str(folder))
    return str(folder)


def save_xlm_roberta(folder: Path, texts: Sequence[str]) -> str:
    """Save an XLM-RoBERTa of the large size (560 M parameters), as BGE-M3 is, and return its folder."""
    learnt = _learn(texts)
    ends = [("</s>", learnt.token_to_id("</s>")), ("<s>", learnt.token_to_id("<s>"))]
    learnt.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=learnt, model_max_length=8192, **SPECIAL).save_pretrained(folder)
    config = XLMRobertaConfig(
        vocab_size=XLM_R_VOCABULARY,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=8194,
        type_vocab_size=1,
    )
    torch.manual_seed(0)
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


def save_sonar(folder: Path, texts: Sequence[str]) -> str:
    """Save an encoder of SONAR's size (766 M parameters) with NLLB's languages, and return its folder."""
    learnt: dict[str, Any] = json.loads(_learn(texts).to_str())["model"]
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = NllbTokenizer(vocab=learnt["vocab"], merges=merges, src_lang="eng_Latn", model_max_length=1024)
    tokenizer.save_pretrained(folder)
    config = M2M100Config(
        vocab_size=SONAR_VOCABULARY,
        d_model=1024,
        encoder_layers=24,
        encoder_ffn_dim=8192,
        encoder_attention_heads=16,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    M2M100Encoder(config).save_pretrained(folder)
    return str(folder)


def _learn(texts: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 - not a password
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNT_VOCABULARY, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
