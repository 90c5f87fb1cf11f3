"""FlashAttention-2 by its published interface, computed by torch: which models take it, and rows without padding.

The kernels themselves were not yet run on a GPU.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import WordWeights
from transformers import PreTrainedModel, modeling_flash_attention_utils

from tests.tiny_models import WORDS, tiny_bert, tiny_sonar
from workers.engines import attention
from workers.engines.attention import is_unpadded, use_flash_attention
from workers.engines.blocks import NO_LIMIT
from workers.engines.features import TEXTS as TEXT_ROWS
from workers.engines.features import features_of

TEXTS = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(i)) for i in (1, 9, 4, 30, 2)]


def flash_attn_varlen_func(  # noqa: PLR0913 - its published arguments
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    """Attend inside each row of (n_tokens, n_heads, dim), as the package does."""
    assert cu_seqlens_q.dtype == torch.int32
    assert max_seqlen_q == max(cu_seqlens_q.diff().tolist())
    assert not causal
    outputs = []
    for begin, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        rows = (part[begin:end].transpose(0, 1) for part in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(*rows, scale=softmax_scale)
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def flash_attn(monkeypatch):
    """Let flash_attn be installed."""
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    package.flash_attn_varlen_func = flash_attn_varlen_func
    package.flash_attn_func = package.flash_attn_with_kvcache = flash_attn_varlen_func
    padding.pad_input = padding.unpad_input = None
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    monkeypatch.setattr(modeling_flash_attention_utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a small BERT."""
    folder = tiny_bert(tmp_path / "bert")
    return lambda dtype: SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype}).eval()


@pytest.mark.usefixtures("flash_attn")
def test_rows_without_padding_have_the_vectors_of_padded_ones(load) -> None:
    """As the engine makes its batches: every row in one, each attending to itself."""
    padded, flat = load(torch.bfloat16), load(torch.bfloat16)
    use_flash_attention(flat)
    assert is_unpadded(flat)
    assert not is_unpadded(padded)
    features = features_of(flat, "cpu", TEXT_ROWS)
    assert not features.pads
    prepared = features.prepare(TEXTS, None, NO_LIMIT)
    batch = features.batch(prepared, np.arange(len(TEXTS)))
    assert batch["input_ids"].shape == (1, prepared.lengths.sum())
    with torch.inference_mode():
        found = flat(batch)["sentence_embedding"].float()
        expected = padded.encode(TEXTS, convert_to_tensor=True).float()
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999


@pytest.mark.usefixtures("flash_attn")
def test_modules_that_need_padding_get_it(load) -> None:
    """A module behind the transformer that may not know rows without padding keeps them padded."""
    model = load(torch.float16)
    tokenizer = model.tokenizer
    weights = WordWeights(vocab=list(tokenizer.get_vocab()), word_weights={})
    model = SentenceTransformer(modules=[model[0], weights, model[1]], device="cpu")
    use_flash_attention(model)
    assert model[0].model.config._attn_implementation == "flash_attention_2"
    assert not is_unpadded(model)


@pytest.mark.usefixtures("flash_attn")
def test_fp32_stays_with_torch_s_attention(load) -> None:
    """FlashAttention has no fp32."""
    model = load(torch.float32)
    use_flash_attention(model)
    assert model[0].model.config._attn_implementation == "sdpa"
    assert not is_unpadded(model)


@pytest.mark.usefixtures("flash_attn")
def test_a_dense_layer_sees_vectors_only(load) -> None:
    """So it does not mind."""
    model = load(torch.bfloat16)
    model = SentenceTransformer(modules=[*model, Dense(32, 8)], device="cpu")
    use_flash_attention(model)
    assert is_unpadded(model)


def test_without_the_package_nothing_changes(load) -> None:
    """Attention stays torch's, with padding."""
    model = load(torch.bfloat16)
    use_flash_attention(model)
    assert model[0].model.config._attn_implementation == "sdpa"
    assert not is_unpadded(model)


@pytest.mark.usefixtures("flash_attn")
def test_a_model_that_numbers_tokens_by_itself_stays_padded(tmp_path) -> None:
    """M2M100 takes no positions: rows one behind the other would be numbered as one."""
    folder = tiny_sonar(tmp_path / "sonar")
    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.bfloat16})
    use_flash_attention(model)
    assert model[0].model.config._attn_implementation == "flash_attention_2"
    assert not is_unpadded(model)
    assert features_of(model, "cpu", TEXT_ROWS).pads
