"""LASER3: a transformer for one language that was taught to give LASER2's vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Embedding, LayerNorm, Linear, Module, ModuleList, functional

from workers.engines.laser.text_steps import PAD

#: What a checkpoint holds beside the encoder's weights: versions of formats.
_NO_WEIGHTS = ("version", "embed_positions._float_tensor")
#: Parts of a checkpoint that was saved with its decoder which are the encoder's.
_KEPT = tuple(f"encoder.{name}" for name in ("embed", "layers", "layer_norm", "version"))
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"relu": functional.relu, "gelu": functional.gelu}


class Transformer(Module):
    """The encoder of a student.

    Args:
        checkpoint: the published file's content.
        n_tokens: of its vocabulary.
        dtype: of the numbers.
        device: ``cpu`` or ``cuda``.

    Raises:
        ValueError: it is of a kind that none of the published students is.
    """

    def __init__(self, checkpoint: dict[str, Any], n_tokens: int, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        cfg, weights = checkpoint["cfg"]["model"], weights_of(checkpoint)
        _refuse_others(cfg)
        self.is_cls = cfg.sentemb_criterion == "cls"
        dim = self._dim = cfg.encoder_embed_dim
        self._scale = 1.0 if getattr(cfg, "no_scale_embedding", False) else math.sqrt(dim)
        with torch.device("meta"):
            self.embed_tokens = Embedding(n_tokens, dim, PAD)
            self.layers = ModuleList(_Layer(cfg) for _ in range(cfg.encoder_layers))
            self.layer_norm = LayerNorm(dim) if "layer_norm.weight" in weights else None
        self.load_state_dict(weights, assign=True)
        self.to(device, dtype).requires_grad_(requires_grad=False)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor, *, is_fixed: bool = False) -> torch.Tensor:
        """Encode rows.

        Args:
            tokens: (n_rows, n_tokens) int64, filled up with ``PAD`` on the right.
            lengths: (n_rows,) tokens of each row, on the CPU.
            is_fixed: run the same kernels whether or not there is padding.

        Returns:
            (n_rows, dim)
        """
        is_token = tokens != PAD  # (n_rows, n_tokens)
        has_padding = is_fixed or int(lengths.min()) < tokens.shape[1]
        mask = is_token[:, None, None, :] if has_padding else None
        values = self._scale * self.embed_tokens(tokens)
        values = values + self._positions(is_token).to(values.dtype)
        for layer in self.layers:
            values = layer(values, mask)
        if self.layer_norm is not None:
            values = self.layer_norm(values)
        vectors: torch.Tensor = (
            values[:, 0] if self.is_cls else values.masked_fill(~is_token.unsqueeze(2), -torch.inf).amax(dim=1)
        )
        return vectors

    def _positions(self, is_token: torch.Tensor) -> torch.Tensor:
        """Return sines and cosines of each token's place: (n_rows, n_tokens, dim); counted from ``PAD`` + 1."""
        half = self._dim // 2
        places = (is_token.cumsum(1) * is_token + PAD).float()
        exponents = torch.arange(half, dtype=torch.float32, device=places.device)
        angles = places.unsqueeze(2) * torch.exp(exponents * -(math.log(10_000) / (half - 1)))
        return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=2), (0, self._dim % 2))


class _Layer(Module):
    """One layer: attention, then two linear ones, each with its input added and a norm after or before."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        dim, inner = cfg.encoder_embed_dim, cfg.encoder_ffn_embed_dim
        self.self_attn = _Attention(dim, cfg.encoder_attention_heads)
        self.self_attn_layer_norm = LayerNorm(dim)
        self.fc1, self.fc2 = Linear(dim, inner), Linear(inner, dim)
        self.final_layer_norm = LayerNorm(dim)
        self._activation = _ACTIVATIONS[getattr(cfg, "activation_fn", "relu")]
        self._norm_first = getattr(cfg, "encoder_normalize_before", False)

    def forward(self, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self._norm_first:
            values = values + self.self_attn(self.self_attn_layer_norm(values), mask)
            return values + self._inner(self.final_layer_norm(values))
        values = self.self_attn_layer_norm(values + self.self_attn(values, mask))
        normed: torch.Tensor = self.final_layer_norm(values + self._inner(values))
        return normed

    def _inner(self, values: torch.Tensor) -> torch.Tensor:
        outer: torch.Tensor = self.fc2(self._activation(self.fc1(values)))
        return outer


class _Attention(Module):
    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self._n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(dim, dim) for _ in range(4))

    def forward(self, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        query, key, value = (
            layer(values).unflatten(2, (self._n_heads, -1)).transpose(1, 2)  # (n_rows, n_heads, n_tokens, width)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed: torch.Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return mixed


def weights_of(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the encoder's weights by name; those of a decoder that it was trained with are left out."""
    weights: dict[str, torch.Tensor] = checkpoint["model"]
    if "decoder.version" in weights:
        weights = {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith(_KEPT)}
    return {name: weight for name, weight in weights.items() if name not in _NO_WEIGHTS}


def is_masked(checkpoint: dict[str, Any]) -> bool:
    """Whether a student was trained to guess masked tokens too; then its vocabulary ends with ``<mask>``."""
    return "layer_norm.weight" in weights_of(checkpoint)


def _refuse_others(cfg: Any) -> None:
    if getattr(cfg, "encoder_learned_pos", False) or getattr(cfg, "no_token_positional_embeddings", False):
        raise ValueError("its positions are not sines, as those of the published students are")
    if getattr(cfg, "layernorm_embedding", False):
        raise ValueError("it has a norm behind its embedding, and no published student has")
    if getattr(cfg, "activation_fn", "relu") not in _ACTIVATIONS:
        raise ValueError(f"its activation function {cfg.activation_fn!r} is none of {', '.join(_ACTIVATIONS)}")
    if cfg.sentemb_criterion == "cls" and not cfg.prepend_bos:
        raise ValueError("its vectors are those of a first token that it does not have")
