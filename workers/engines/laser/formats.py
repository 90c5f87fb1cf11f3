"""What LASER's files look like, as far as it can be seen at once. Knows no torch."""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor

from workers.engines.laser.vocabulary import numbered

#: How a checkpoint begins: as a zip file, or as the pickle that torch wrote before its version 1.6.
_CHECKPOINT = (b"PK\x03\x04", b"\x80\x02")


def flaw_of(path: Path, kind: str) -> str | None:
    """Tell a file from the page of a proxy that wants a login, or from another kind of file.

    Args:
        path: of the file, whatever its name.
        kind: ``.pt``, ``.spm`` or ``.cvocab``; nothing is asked of others.

    Returns:
        Why it is none of that kind, or None.
    """
    try:
        if kind == ".pt":
            with path.open("rb") as file:
                return None if file.read(4).startswith(_CHECKPOINT) else "it begins as no checkpoint of torch does"
        if kind == ".spm":
            SentencePieceProcessor().LoadFromSerializedProto(path.read_bytes())
        elif kind == ".cvocab":
            with path.open(encoding="utf-8") as lines:
                numbered(lines)
    except RuntimeError:
        return "sentencepiece cannot read it"
    except ValueError as exc:
        return str(exc)
    return None
