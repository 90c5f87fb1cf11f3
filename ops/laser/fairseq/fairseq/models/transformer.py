"""The encoder of a transformer as LASER3's students are: layer norms after the sums, sinusoidal positions, ReLU.

Vaswani et al., "Attention Is All You Need", 2017. Modules have the names that the checkpoints give them.
"""

from __future__ import annotations

import math
from argparse import Namespace

import torch
from torch import nn
from torch.nn.functional import multi_head_attention_forward

from fairseq.data.dictionary import Dictionary

#: What the encoder is; a checkpoint that says otherwise is refused.
KIND = {
    "activation_fn": "relu",
    "encoder_learned_pos": False,
    "encoder_normalize_before": False,
    "layernorm_embedding": False,
    "no_scale_embedding": False,
    "no_token_positional_embeddings": False,
}
#: Wavelengths of the positions go up to this, times 2 pi.
LONGEST_WAVE = 10_000


class Embedding(nn.Embedding):
    """Vectors of tokens, (num_embeddings, embedding_dim)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx=padding_idx)


class TransformerEncoder(nn.Module):
    """Layers that make a vector of each token.

    Raises:
        ValueError: the checkpoint wants an encoder of another kind.
    """

    def __init__(self, args: Namespace, dictionary: Dictionary, embed_tokens: nn.Embedding) -> None:
        super().__init__()
        for name, value in KIND.items():
            if getattr(args, name, value) != value:
                raise ValueError(f"the stand-in for fairseq has no encoder with {name}={getattr(args, name)!r}")
        self.dictionary = dictionary
        self.max_source_positions = args.max_source_positions
        self.register_buffer("version", torch.tensor([3.0]))
        self.embed_tokens = embed_tokens
        self.embed_positions = Positions(args.encoder_embed_dim, dictionary.pad_index)
        self.layers = nn.ModuleList(Layer(args) for _ in range(args.encoder_layers))
        self.layer_norm: nn.LayerNorm | None = None

    def forward(self, src_tokens: torch.Tensor, src_lengths: torch.Tensor) -> dict[str, list[torch.Tensor]]:  # noqa: ARG002 - as callers pass them
        """Return the tokens' vectors, (n_tokens, n_rows, dim), for their numbers, (n_rows, n_tokens)."""
        is_pad = src_tokens.eq(self.dictionary.pad_index)
        x = self.embed_tokens(src_tokens) * math.sqrt(self.embed_tokens.embedding_dim)
        x = (x + self.embed_positions(src_tokens)).masked_fill(is_pad.unsqueeze(-1), 0).transpose(0, 1)
        for layer in self.layers:
            x = layer(x, is_pad if is_pad.any() else None)
        return {"encoder_out": [x if self.layer_norm is None else self.layer_norm(x)]}


class Positions(nn.Module):
    """Sines and cosines of places in a sentence; the first token's is one more than the padding's number."""

    def __init__(self, dim: int, pad: int) -> None:
        super().__init__()
        self.pad = pad
        rates = torch.exp(torch.arange(dim // 2, dtype=torch.float) * -(math.log(LONGEST_WAVE) / (dim // 2 - 1)))
        self.register_buffer("rates", rates, persistent=False)
        self.register_buffer("_float_tensor", torch.zeros(1))  # checkpoints hold it

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the vectors of places, (n_rows, n_tokens, dim)."""
        is_token = tokens.ne(self.pad)
        places = is_token.cumsum(dim=1) * is_token + self.pad
        angles = places.unsqueeze(-1).to(self.rates.dtype) * self.rates
        return torch.cat([angles.sin(), angles.cos()], dim=-1) * is_token.unsqueeze(-1)


class Attention(nn.Module):
    """Attention of all tokens of a sentence to each other."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: torch.Tensor, is_pad: torch.Tensor | None) -> torch.Tensor:
        """Return what each token takes from the others, (n_tokens, n_rows, dim)."""
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        found, _ = multi_head_attention_forward(
            *(x, x, x, x.shape[-1], self.n_heads),
            *(None, bias, None, None, False, 0.0),
            *(self.out_proj.weight, self.out_proj.bias, False, is_pad, False, None),
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )
        return found


class Layer(nn.Module):
    """Attention and two linear layers; after each of both parts the sum is normed."""

    def __init__(self, args: Namespace) -> None:
        super().__init__()
        dim, inner = args.encoder_embed_dim, args.encoder_ffn_embed_dim
        self.self_attn = Attention(dim, args.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, is_pad: torch.Tensor | None) -> torch.Tensor:
        """Return the next layer's input, (n_tokens, n_rows, dim)."""
        x = self.self_attn_layer_norm(x + self.self_attn(x, is_pad))
        return self.final_layer_norm(x + self.fc2(torch.relu(self.fc1(x))))
