"""Random causal language models that are made in a moment, in the published formats, with a tokenizer of their own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tasks.templates import names, read_template

#: ``gemma`` caps its logits and begins with ``<bos>``; ``windows`` is the same with sliding windows in some layers.
#: ``longrope`` turns the positions of a batch otherwise as soon as a row of it has more than ``SHORT`` tokens.
#: ``gpt2`` has a table of positions, and a head of keys for each of queries; ``mla`` has keys wider than values.
Shape = Literal["qwen2", "llama", "gemma", "windows", "longrope", "gpt2", "mla"]

SHORT = 160

SPECIAL = {"bos_token": "<bos>", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
#: Where Qwen2's tokenizer cuts a text before it looks for tokens.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: What the tokenizer is trained on besides the templates, so that words and labels are tokens.
LINES = (
    "It rained for a week, and the river rose above the road to the mill.",
    "Nobody knew how long the old bridge would hold, so they went round by the upper ford.",
    "Information retrieval finds documents that are relevant to what somebody asks.",
    "A library keeps an index of its books; computers keep one of every word.",
    "yes no Yes No 0 1",
)


def tiny_causal(  # noqa: PLR0913 - a size each
    folder: Path,
    shape: Shape = "qwen2",
    *,
    hidden: int = 64,
    layers: int = 3,
    limit: int = 1024,
    vocabulary: int = 0,
    heads: int = 4,
) -> str:
    """Save a random causal language model, and return its folder.

    Args:
        folder: where; made if it is not there.
        shape: whose.
        hidden: width of its layers.
        layers: how many.
        limit: tokens of a prompt that it takes.
        vocabulary: tokens of its output layer; as many as its tokenizer has, if more.
        heads: of its attention.
    """
    tokenizer = _byte_pairs()
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": max(tokenizer.get_vocab_size(), vocabulary),
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if heads % 2 == 0 else heads,
        "max_position_embeddings": limit,
        "initializer_range": 0.1,  # so that scores differ
        "tie_word_embeddings": True,
        **{f"{name}_id": tokenizer.token_to_id(token) for name, token in SPECIAL.items()},
    }
    model: Any
    if shape == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**common))
    elif shape == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common | {"tie_word_embeddings": False}))
    elif shape == "gpt2":
        sizes = {"n_embd": hidden, "n_layer": layers, "n_head": 4, "n_positions": limit}
        kept = {name: value for name, value in common.items() if name.endswith("_id")}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=common["vocab_size"], initializer_range=0.1, **sizes, **kept))
    elif shape == "mla":
        ranks = {
            "kv_lora_rank": 16,
            "q_lora_rank": None,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
        }
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
        own = {"num_key_value_heads": 4, "moe_intermediate_size": hidden, "tie_word_embeddings": False}
        model = DeepseekV2ForCausalLM(DeepseekV2Config(**common | own, **ranks, **experts))
    elif shape == "longrope":
        factors = {"short_factor": [1.0] * (hidden // 8), "long_factor": [4.0] * (hidden // 8)}
        rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0, **factors}
        rope["original_max_position_embeddings"] = SHORT
        own = {"original_max_position_embeddings": SHORT, "rope_parameters": rope}
        model = Phi3ForCausalLM(Phi3Config(**common | {"tie_word_embeddings": False}, **own))
    else:
        kinds = ["sliding_attention", "full_attention"] if shape == "windows" else ["full_attention"]
        own = {
            "head_dim": hidden // 4,
            "query_pre_attn_scalar": hidden // 4,
            "sliding_window": 8,
            "layer_types": (layers * kinds)[:layers],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": 2.0,
        }
        model = Gemma2ForCausalLM(Gemma2Config(**common, **own))
    model.eval().save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=limit, **SPECIAL).save_pretrained(folder)
    return str(folder)


@cache
def _byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*SPECIAL.values(), "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [part for name in names() for part in read_template(name).parts]
    tokenizer.train_from_iterator([*texts, *LINES] * 4, trainer)
    return tokenizer
