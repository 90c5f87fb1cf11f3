"""What a cache holds: names of texts, and encoded rows as bytes that tell whether they are whole."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from tasks.options import EncodeOptions

#: Begins every name: a change of the format of the values makes them unknown.
_FORMAT = b"penstock vectors 1"
#: Tokens of the row, and whether it was truncated. The vector follows, little-endian float32, then the checksum.
_HEAD = struct.Struct("<I?")
_CHECKSUM = struct.Struct("<I")

#: A row: vector (dim,) float32, tokens, whether it was truncated.
Known = tuple[np.ndarray, int, bool]


def name_texts(texts: Sequence[str], weights: str, options: EncodeOptions, place: str = "") -> list[bytes]:
    """Return the names under which the vectors of texts are kept: SHA-256 of all that they depend on.

    An option that has its default does not enter, so that a release that adds one finds what is there.

    Args:
        texts: n of them.
        weights: fingerprint of the model.
        options: all count but the type of the stored vectors, which are kept as float32, and the field with languages,
            as all texts are of one.
        place: device and libraries, where the bits depend on them.
    """
    how = options.model_dump_json(exclude={"vector_dtype", "language_field"}, exclude_defaults=True)
    head = hashlib.sha256(_FORMAT)
    for part in (weights, how, place):
        head.update(hashlib.sha256(part.encode()).digest())
    names = []
    for text in texts:
        name = head.copy()
        name.update(text.encode())
        names.append(name.digest())
    return names


def pack(name: bytes, vector: np.ndarray, n_tokens: int, truncated: bool) -> bytes:
    """Write a row. The checksum is also of its name."""
    body = _HEAD.pack(n_tokens, truncated) + vector.astype("<f4", copy=False).tobytes()
    return body + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(name)))


def unpack(name: bytes, value: bytes, dim: int) -> Known | None:
    """Read a row. Returns None if it is damaged, another name's or of another length: it is unknown then."""
    if len(value) != _HEAD.size + 4 * dim + _CHECKSUM.size:
        return None
    body = value[: -_CHECKSUM.size]
    if value[-_CHECKSUM.size :] != _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(name))):
        return None
    n_tokens, truncated = _HEAD.unpack_from(body)
    return np.frombuffer(body, "<f4", offset=_HEAD.size), n_tokens, truncated
