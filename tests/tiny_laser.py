"""LASER checkpoints that are made in a moment: random weights in the published files and formats.

The published LASER2 is ``laser2.pt`` (``params``, ``model``, ``dictionary``), ``laser2.spm`` and ``laser2.cvocab``. A
LASER3 student is ``laser3-CODE.v1.pt`` (``cfg`` and ``model``); some have a ``.spm`` and ``.cvocab`` of their own, and
the others use those of LASER2.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import sentencepiece
import torch

#: First and last letters that words are made of, script by script.
SCRIPTS = (
    ("a", "z"), ("à", "ö"), ("α", "ω"), ("а", "я"), ("א", "ת"), ("ا", "غ"), ("क", "ह"), ("অ", "ঔ"), ("ก", "ฮ"),
    ("ა", "ჰ"), ("ሀ", "ሏ"), ("ぁ", "ん"), ("가", "갛"), ("一", "丿"), ("ក", "អ"), ("က", "အ"), ("ⴰ", "ⵥ"),
)  # fmt: skip
PUNCTUATION = ".,?!:;'\"()-%…«»„“”‘’–—、。「」؟،"
DIGITS = "0123456789"
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
PAD = 1
#: Pieces of the published LASER2, those of ``SPECIALS`` included.
FULL_VOCABULARY = 50_004
#: How large a student's numbers are about: it has learned the vectors of LASER2, and an LSTM's stay below 1.
SIZE = 0.3
#: Width of a tiny student, and of the layer within its layers.
WIDTH, INNER = 32, 48


def words(seed: int, n: int) -> list[str]:
    """Return n words, each in one of many scripts."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    letters = [[chr(code) for code in range(ord(first), ord(last) + 1)] for first, last in SCRIPTS]
    return ["".join(rng.choices(rng.choice(letters), k=rng.randint(1, 7))) for _ in range(n)]


def make_laser2(folder: Path, *, seed: int = 0, full_size: bool = False, sentences: Sequence[str] | None = None) -> str:
    """Save a random LASER2 in its three files, and return the folder.

    Args:
        folder: where; made if it is not there.
        seed: of weights and words.
        full_size: as wide and deep as the published one (45 M parameters), with as many pieces.
        sentences: what the pieces are learned from. Default: generated words of many scripts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces = _save_pieces(folder / "laser2", sentences or list(_sentences(seed)), 20_000 if full_size else 1200)
    if full_size:  # the rest of the published number cannot be learned from a small text
        pieces += [f"<unused {i}>" for i in range(FULL_VOCABULARY - len(SPECIALS) - len(pieces))]
    params = {
        "num_embeddings": len(SPECIALS) + len(pieces),
        "padding_idx": PAD,
        "embed_dim": 320 if full_size else 16,
        "hidden_size": 512 if full_size else 16,
        "num_layers": 5 if full_size else 2,
        "bidirectional": True,
        "left_pad": True,
        "padding_value": 0.0,
    }
    torch.manual_seed(seed)
    embedding = torch.nn.Embedding(params["num_embeddings"], params["embed_dim"], padding_idx=PAD)
    lstm = torch.nn.LSTM(params["embed_dim"], params["hidden_size"], params["num_layers"], bidirectional=True)
    model = {f"embed_tokens.{name}": value for name, value in embedding.state_dict().items()}
    model |= {f"lstm.{name}": value for name, value in lstm.state_dict().items()}
    dictionary = {piece: i for i, piece in enumerate([*SPECIALS, *pieces])}
    torch.save({"params": params, "model": model, "dictionary": dictionary}, folder / "laser2.pt")
    return str(folder)


def make_laser3(  # noqa: PLR0913 - what a published student may be
    folder: Path,
    code: str,
    *,
    masked: bool,
    own_pieces: bool = False,
    left_pad: bool = False,
    has_decoder: bool = True,
    seed: int = 0,
) -> str:
    """Save a random LASER3 student, tiny in width and depth, and return the folder.

    Args:
        folder: where; made if it is not there. LASER2's pieces are added to it if the student needs and lacks them.
        code: language and script, ``wol_Latn``.
        masked: whether it was trained to guess masked tokens too: with a last layer norm and one more token,
            ``<mask>``.
        own_pieces: whether it has a ``.spm`` and ``.cvocab`` of its own, as languages that LASER2 reads badly have.
        left_pad: whether its batches are padded on the left.
        has_decoder: whether it is saved as it was trained, with a decoder beside the encoder.
        seed: of weights and words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / (f"laser3-{code}.v1" if own_pieces else "laser2")
    if own_pieces or not stem.with_name(f"{stem.name}.cvocab").exists():
        _save_pieces(stem, list(_sentences(seed + own_pieces)), 1200)
    n_pieces = len(stem.with_name(f"{stem.name}.cvocab").read_text(encoding="utf-8").splitlines())
    model = _student(len(SPECIALS) + n_pieces + masked, torch.Generator().manual_seed(seed), masked=masked)
    if has_decoder:
        model = {f"encoder.{name}": value for name, value in model.items()}
        model |= {"decoder.version": torch.tensor([3.0]), "decoder.embed_tokens.weight": torch.ones(4, 1)}
        if masked:  # what guessed the tokens
            model |= {"encoder.project_vocabulary.weight": torch.ones(4, WIDTH)}
            model |= {"encoder.lm_head_transform_weight.bias": torch.ones(WIDTH)}
    cfg = {"_name": None, "model": _student_options(left_pad=left_pad), "task": None}
    torch.save({"cfg": cfg, "model": model}, folder / f"laser3-{code}.v1.pt")
    return str(folder)


def _sentences(seed: int) -> Iterator[str]:
    """Yield sentences of generated words with punctuation and numbers."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    known = words(seed, 1500)
    for _ in range(3000):
        yield " ".join(rng.choices(known, k=rng.randint(1, 12))) + rng.choice(PUNCTUATION) + rng.choice(DIGITS)


def _save_pieces(stem: Path, sentences: Sequence[str], most: int) -> list[str]:
    """Learn pieces from sentences, save STEM.spm and STEM.cvocab, and return them without the special ones."""
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line.lower() for line in sentences]),
        model_writer=model,
        vocab_size=most,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    stem.with_name(f"{stem.name}.spm").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    known = [processor.IdToPiece(i) for i in range(processor.GetPieceSize()) if not processor.IsControl(i)]
    pieces = [piece for piece in known if piece not in SPECIALS]
    lines = [f"{piece} {len(pieces) - i}\n" for i, piece in enumerate(pieces)]
    stem.with_name(f"{stem.name}.cvocab").write_text("".join(lines), encoding="utf-8")
    return pieces


def _student(n_tokens: int, generator: torch.Generator, *, masked: bool) -> dict[str, torch.Tensor]:
    """Make the weights of a post-norm transformer encoder with two layers."""

    def matrix(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        weight = torch.randn(rows, columns, generator=generator) / columns**0.5
        return {f"{name}.weight": weight, f"{name}.bias": torch.randn(rows, generator=generator) / 10}

    def norm(name: str, size: float = 1.0) -> dict[str, torch.Tensor]:
        weight = size * (1 + torch.randn(WIDTH, generator=generator) / 10)
        return {f"{name}.weight": weight, f"{name}.bias": size * torch.randn(WIDTH, generator=generator) / 10}

    embedding = torch.randn(n_tokens, WIDTH, generator=generator) / WIDTH**0.5
    embedding[PAD] = 0
    weights = {
        "version": torch.tensor([3.0]),
        "embed_tokens.weight": embedding,
        "embed_positions._float_tensor": torch.zeros(1),
    }
    for i in range(2):
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            weights |= matrix(f"layers.{i}.self_attn.{part}", WIDTH, WIDTH)
        weights |= norm(f"layers.{i}.self_attn_layer_norm")
        weights |= matrix(f"layers.{i}.fc1", INNER, WIDTH) | matrix(f"layers.{i}.fc2", WIDTH, INNER)
        weights |= norm(f"layers.{i}.final_layer_norm", 1.0 if i == 0 else SIZE)
    return weights | (norm("layer_norm", SIZE) if masked else {})


def _student_options(*, left_pad: bool) -> argparse.Namespace:
    """Return what a student's training was told, as far as it is about the encoder."""
    return argparse.Namespace(
        _name="laser_transformer",
        activation_dropout=0.1,
        activation_fn="relu",
        attention_dropout=0.1,
        dropout=0.1,
        encoder_attention_heads=4,
        encoder_embed_dim=WIDTH,
        encoder_embed_path=None,
        encoder_ffn_embed_dim=INNER,
        encoder_layerdrop=0,
        encoder_layers=2,
        encoder_learned_pos=False,
        encoder_normalize_before=False,
        layernorm_embedding=False,
        left_pad_source=left_pad,
        max_source_positions=1024,
        no_scale_embedding=False,
        no_token_positional_embeddings=False,
        prepend_bos=True,
        sentemb_criterion="cls",
    )
