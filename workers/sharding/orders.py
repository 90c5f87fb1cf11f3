"""What rank 0 tells the other ranks to run, as bytes on a pipe.

A pipe and no collective of torch's: a rank waits on it without a timeout and without using its device, its end is that
of rank 0, and arrays that lie in the host's memory anyway need no copy to a device.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any

import numpy as np

#: Bytes before an order that say how long its header is.
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Order:
    """One call that all ranks make at the same time.

    Attributes:
        name: of the call.
        arrays: its arguments with rows, of any shapes.
        values: its other arguments, as JSON has them.
    """

    name: str
    arrays: Sequence[np.ndarray] = ()
    values: dict[str, Any] = field(default_factory=dict)


#: All ranks give their numbers of each tensor of the model, one after the other.
TENSORS = Order("tensors")


def encode(order: Order) -> bytes:
    """Return an order as bytes."""
    arrays = [np.ascontiguousarray(array) for array in order.arrays]
    described = [[array.dtype.str, array.shape] for array in arrays]
    header = json.dumps({"name": order.name, "values": order.values, "arrays": described}).encode()
    length = len(header).to_bytes(_LENGTH_BYTES, "big")
    return b"".join([length, header, *(array.tobytes() for array in arrays)])


def read(stream: BufferedReader) -> Order | None:
    """Return the next order, or None if there is no more, or only a part of one."""
    length = stream.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        return None
    header = stream.read(int.from_bytes(length, "big"))
    if len(header) < int.from_bytes(length, "big"):
        return None
    said = json.loads(header)
    arrays = []
    for dtype, shape in said["arrays"]:
        array = np.empty(shape, dtype)
        if array.nbytes and stream.readinto(array.reshape(-1).view(np.uint8).data) < array.nbytes:
            return None
        arrays.append(array)
    return Order(said["name"], arrays, said["values"])
