"""Random corpora, written in every format in all the ways that a format allows."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from producer.sources import KINDS
from tests.fuzz.commands import SECRET

#: Every format that is read, with its packing.
EXTENSIONS = list(KINDS)

#: Characters that end lines somewhere, or cells, or words; NUL and such that are no character of their own.
_ODD = "\x00\t\r\x0b\x0c\x1c\x85\u2028\u2029\ufeff\u200b\u202e\"',;\\{}[]\x1a\x1b\x7f\uffff\U0010ffff💥é\n"


class Corpus(NamedTuple):
    """What was written, and what must come back: ids are row numbers where there were none."""

    extension: str
    data: bytes
    ids: list[str]
    texts: list[str]


def write_corpus(rng: random.Random) -> Corpus:
    """Make a corpus of a few records and write it in some format."""
    extension = rng.choice(EXTENSIONS)
    format_, packing = KINDS[extension]
    texts = [_text(rng) for _ in range(rng.choice([1, 2, 5, 30]))]
    if format_ == "txt":
        texts = [text.replace("\n", " ").removesuffix("\r") for text in texts]
    has_ids = format_ != "txt" and rng.random() < 0.5
    ids = [f"id-{rng.getrandbits(32)}" for _ in texts] if has_ids else [str(i) for i in range(len(texts))]
    records = [
        {"id": id_, "text": text, "n": i} if has_ids else {"text": text, "n": i}
        for i, (id_, text) in enumerate(zip(ids, texts, strict=True))
    ]
    return Corpus(extension, _pack(_WRITERS[format_](records, rng), packing, rng), ids, texts)


def _text(rng: random.Random) -> str:
    odd = "".join(rng.choices(_ODD, k=rng.choice([0, 0, 1, 20])))
    return f"{SECRET} {odd}{'x' * rng.choice([0, 0, 10, 70_000])}" if rng.random() < 0.9 else odd


def _write_txt(records: list[dict[str, object]], rng: random.Random) -> bytes:
    end = rng.choice(["\n", "\r\n"])
    data = "".join(f"{record['text']}{end}" for record in records).encode()
    return rng.choice([b"", b"\xef\xbb\xbf"]) + data


def _write_jsonl(records: list[dict[str, object]], rng: random.Random) -> bytes:
    end, ascii_ = rng.choice(["\n", "\r\n", "\n\n", " \t\n"]), rng.random() < 0.5
    return "".join(json.dumps(record, ensure_ascii=ascii_) + end for record in records).encode()


def _write_csv(records: list[dict[str, object]], rng: random.Random, delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    # with other line ends than its own, Python's writer leaves a lone carriage return without quotes
    ends, quoting = rng.choice([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)])
    writer = csv.DictWriter(out, list(records[0]), delimiter=delimiter, lineterminator=ends, quoting=quoting)
    writer.writeheader()
    writer.writerows(records)
    return rng.choice([b"", b"\xef\xbb\xbf"]) + out.getvalue().encode()


def _write_tsv(records: list[dict[str, object]], rng: random.Random) -> bytes:
    return _write_csv(records, rng, "\t")


def _write_parquet(records: list[dict[str, object]], rng: random.Random) -> bytes:
    table = pa.Table.from_pylist(records)
    place = table.column_names.index("text")
    type_ = rng.choice([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
    table = table.set_column(place, "text", table["text"].combine_chunks().cast(type_))
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        compression=rng.choice(["none", "snappy", "zstd", "gzip"]),
        use_dictionary=rng.random() < 0.5,
        row_group_size=rng.choice([1, 3, 1000]),
        data_page_size=rng.choice([64, 2**20]),
        version=rng.choice(["1.0", "2.6"]),
    )
    return out.getvalue()


_WRITERS = {"txt": _write_txt, "jsonl": _write_jsonl, "csv": _write_csv, "tsv": _write_tsv, "parquet": _write_parquet}


def _pack(data: bytes, packing: str | None, rng: random.Random) -> bytes:
    """Pack bytes in one part or two, as tools that append do."""
    if not packing:
        return data
    cut = rng.choice([0, len(data), rng.randrange(len(data) + 1)])
    parts = [part for part in (data[:cut], data[cut:]) if part] or [b""]
    if packing == "gzip":
        return b"".join(gzip.compress(part, rng.randrange(10)) for part in parts)
    packer = zstandard.ZstdCompressor(write_content_size=rng.random() < 0.5, write_checksum=rng.random() < 0.5)
    return b"".join(packer.compress(part) for part in parts)
