"""Bytes of a weight, by ``--precision`` and ``--quantize``."""

from __future__ import annotations

#: Bytes of a number by --precision. fp16 takes what bf16 takes, but in families that keep some layers in fp32 then.
NUMBER_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
#: Bytes of a quantised number without its scale.
QUANTISED_BYTES = {"int8": 1.0, "int4": 0.5}
#: Bytes of a scale: one a row of int8, one a block of int4.
SCALE_BYTES = 4
#: Numbers that share a scale in int4: bitsandbytes' own choice. The scales are an eighth of what is kept.
INT4_BLOCK = 64


def quantised_bytes(quantize: str, n_numbers: int, n_rows: int = 0) -> float:
    """Return what a quantised matrix takes, with its scales.

    Args:
        quantize: int8 or int4.
        n_numbers: of the matrix.
        n_rows: likewise; 0 if that is not known, which leaves out the scales of int8, less than a percent of it.
    """
    n_scales = n_rows if quantize == "int8" else -(-n_numbers // INT4_BLOCK)
    return n_numbers * QUANTISED_BYTES[quantize] + n_scales * SCALE_BYTES
