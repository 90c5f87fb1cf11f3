"""What weight files say of modules without a configuration: tensors by their headers, tables of static embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.model_size import NO_HEADER, read_header, weight_files
from workers.sizing.blueprint import Tensor
from workers.widths import NUMBER_BYTES

#: Bytes of a number by its name in a header.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1}
#: Of a table where its file does not say; and at least where tokens have weights, by which it is multiplied.
_WHOLE = NUMBER_BYTES["fp32"]


def header_of(file: Path) -> dict[str, Any]:
    """Return dtype and shape of each tensor in a safetensors file.

    Raises:
        ValueError: it is none.
    """
    try:
        return {name: {**tensor} for name, tensor in read_header(file).items() if name != "__metadata__"}
    except NO_HEADER as exc:
        raise ValueError(f"{file.name} is not a safetensors file") from exc


def static_tables(folder: Path) -> Iterator[Tensor]:
    """Yield the tables of static embeddings as they are loaded: in the numbers of their file, whatever --precision is.

    model2vec's have a row for each group of tokens, of which loading makes one for each token.
    """
    for file in (one for one in weight_files(folder) if one.parent == folder):
        if file.suffix != ".safetensors":
            yield Tensor("table", (file.stat().st_size // _WHOLE,), "table", number_bytes=_WHOLE)
            continue
        header = header_of(file)
        table = header.get("embedding.weight") or header.get("embeddings")
        if table is None:
            raise ValueError(f"{file.name} has no table of static embeddings")
        number_bytes = _BYTES.get(table["dtype"], _WHOLE)
        if "embedding.weight" not in header and "weights" in header:
            number_bytes = max(number_bytes, _WHOLE)
        rows = header["mapping"]["shape"][0] if "embeddings" in header and "mapping" in header else table["shape"][0]
        yield Tensor("table", (rows, *table["shape"][1:]), "table", number_bytes=number_bytes)
