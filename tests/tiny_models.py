"""Models that are made in a moment: random weights in the published formats, loaded by the real loading code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    M2M100Config,
    M2M100Tokenizer,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    NllbTokenizer,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)
from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder

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


def tiny_sonar(folder: Path, *, hidden: int = 32, layers: int = 2, limit: int = 64) -> str:
    """Save a random text encoder as SONAR's is published, and return its folder.

    That is an encoder of M2M100 without modules of sentence-transformers, and NLLB's tokenizer with 202 languages.

    Args:
        folder: where; made if it is not there.
        hidden: length of its vectors.
        layers: how many.
        limit: tokens that it takes.
    """
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 - not a password
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    learnt.train_from_iterator(LINES, trainers.BpeTrainer(special_tokens=special, vocab_size=300, show_progress=False))
    pieces = json.loads(learnt.to_str())["model"]
    merges = [tuple(merge) for merge in pieces["merges"]]
    tokenizer = NllbTokenizer(vocab=pieces["vocab"], merges=merges, src_lang="eng_Latn", model_max_length=limit)
    tokenizer.save_pretrained(folder)
    _save_m2m100_encoder(folder, len(tokenizer), hidden, layers, limit)
    return str(folder)


def tiny_m2m100(folder: Path, *, hidden: int = 32, layers: int = 2, limit: int = 64) -> str:
    """Do the same with M2M100's own tokenizer, which is a slow one and names languages otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "sentencepiece.bpe.model"
    with model.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES * 4), model_writer=file, vocab_size=90, model_type="bpe", minloglevel=2
        )
    found = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = [found.id_to_piece(i) for i in range(3, found.get_piece_size())]  # <unk>, <s> and </s> stand first
    known = _numbered(["<s>", "<pad>", "</s>", "<unk>", *pieces])
    (folder / "vocab.json").write_text(json.dumps(known), encoding="utf-8")
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(model), src_lang="en", model_max_length=limit)
    tokenizer.save_pretrained(folder)
    n_ids = max(tokenizer.lang_code_to_id.values()) + 1 + tokenizer.num_madeup_words
    _save_m2m100_encoder(folder, n_ids, hidden, layers, limit)
    return str(folder)


def _save_m2m100_encoder(folder: Path, vocabulary: int, hidden: int, layers: int, limit: int) -> None:
    torch.manual_seed(0)
    config = M2M100Config(
        vocab_size=vocabulary,
        d_model=hidden,
        encoder_layers=layers,
        encoder_ffn_dim=4 * hidden,
        encoder_attention_heads=4,
        max_position_embeddings=limit,
        init_std=0.2,  # so that languages differ
    )
    M2M100Encoder(config).eval().save_pretrained(folder)


def tiny_model2vec(folder: Path, *, dim: int = 12, limit: int = 40) -> str:
    """Save random static embeddings as model2vec saves them, and return their folder.

    That is a vector for each of fewer groups of tokens, the group and the weight of each token, vectors of length 1,
    and a tokenizer that cuts at a limit by itself.

    Args:
        folder: where; made if it is not there.
        dim: length of its vectors.
        limit: tokens that it takes.
    """
    tokenizer, _ = _word_pieces()
    tokenizer.enable_truncation(limit)
    n_tokens = tokenizer.get_vocab_size()
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = {
        "embeddings": rng.standard_normal((n_tokens // 2, dim)).astype(np.float32),
        "weights": rng.random(n_tokens),
        "mapping": rng.integers(0, n_tokens // 2, n_tokens),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True}))
    modules = [("0", ".", "StaticEmbedding"), ("1", "1_Normalize", "Normalize")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
                for name, path, kind in modules
            ]
        )
    )
    return str(folder)


Shape = Literal["bert", "xlm-roberta", "modernbert"]

#: What the tokenizers of cross-encoders know, and what pairs can be made of.
LINES = (
    "It rained for a week, and the river rose above the road to the mill.",
    "Nobody knew how long the old bridge would hold, so they went round by the upper ford.",
    "Information retrieval finds documents that are relevant to what somebody asks.",
    "A library keeps an index of its books; computers keep one of every word.",
    "How are citations counted, and which journals count them?",
)


def tiny_cross_encoder(
    folder: Path, shape: Shape = "bert", *, hidden: int = 32, layers: int = 2, limit: int = 64, labels: int = 1
) -> str:
    """Save a random cross-encoder with a tokenizer of its own, and return its folder.

    Args:
        folder: where; made if it is not there.
        shape: whose. The tokenizers are WordPiece with token types, Unigram, and BPE over bytes.
        hidden: width of its layers.
        layers: how many.
        limit: tokens of a pair that it takes.
        labels: numbers that it gives a pair.
    """
    tokenizer, special = _TOKENIZERS[shape]()
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": limit + 2,  # RoBERTa's positions begin with 2
        "num_labels": labels,
        "initializer_range": 0.25,  # so that scores differ
        "bos_token_id": None,
        "eos_token_id": None,
        **{f"{name}_id": tokenizer.token_to_id(token) for name, token in special.items() if name != "unk_token"},
    }
    model: Any
    if shape == "bert":
        model = BertForSequenceClassification(BertConfig(**common))
    elif shape == "xlm-roberta":
        model = XLMRobertaForSequenceClassification(XLMRobertaConfig(**common))
    else:
        windows = {"local_attention": 16, "global_attn_every_n_layers": 2, "initializer_cutoff_factor": 4.0}
        model = ModernBertForSequenceClassification(ModernBertConfig(**common, **windows))
    model.eval().save_pretrained(folder)
    names = ["input_ids", "token_type_ids", "attention_mask"] if shape == "bert" else ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=limit, model_input_names=names, **special
    ).save_pretrained(folder)
    return str(folder)


def _word_pieces() -> tuple[Tokenizer, dict[str, str]]:
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    letters = sorted(set("".join(LINES).lower()))
    known = [*special.values(), *letters, *(f"##{letter}" for letter in letters), *_words_of(LINES)]
    tokenizer = Tokenizer(models.WordPiece(_numbered(known), unk_token="[UNK]"))  # noqa: S106 - not a password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[SEP]", tokenizer.token_to_id("[SEP]")), ("[CLS]", tokenizer.token_to_id("[CLS]"))]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer, special


def _unigrams() -> tuple[Tokenizer, dict[str, str]]:
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    pieces = [*sorted({"\u2581", *"".join(LINES)}), *(f"\u2581{word}" for word in _words_of(LINES))]
    scored = [(piece, 0.0) for piece in special.values()] + [(piece, -10.0 / len(piece)) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    ends = [("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    return tokenizer, {**special, "cls_token": "<s>", "sep_token": "</s>"}


def _byte_pairs() -> tuple[Tokenizer, dict[str, str]]:
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer, special


_TOKENIZERS = {"bert": _word_pieces, "xlm-roberta": _unigrams, "modernbert": _byte_pairs}


def _words_of(lines: Sequence[str]) -> list[str]:
    return sorted({word.strip(",.;?").lower() for line in lines for word in line.split() if len(word) > 1})


def _numbered(known: Sequence[str]) -> dict[str, int]:
    return {word: i for i, word in enumerate(dict.fromkeys(known))}


def tiny_decoder(folder: Path, *, hidden: int = 64, layers: int = 3, limit: int = 256, heads: int = 4) -> str:
    """Save a random embedding model on a Qwen2 transformer, with its last token's state for a vector.

    Args:
        folder: where; made if it is not there.
        hidden: length of its vectors.
        layers: how many.
        limit: tokens that it takes.
        heads: of its attention.
    """
    from tests.tiny_causal import tiny_causal

    base = folder.with_name(f"{folder.name}-base")
    tiny_causal(base, hidden=hidden, layers=layers, limit=limit, heads=heads)
    modules = [Transformer(str(base), max_seq_length=limit), Pooling(hidden, pooling_mode="lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return str(folder)
