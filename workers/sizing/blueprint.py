"""The blueprint of a model: its tensors as loading makes them, with nothing in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model.

    Attributes:
        name: as the model calls it.
        shape: its own.
        unit: the part of the model that it belongs to: one that stays whole where devices hold whole layers.
        number_bytes: of one number, whatever the precision; 0 if its numbers follow that.
        is_linear: whether it is the matrix of a linear layer in a repeated block, (n_out, n_in): what is quantised.
        split: along which dimension tensor parallelism parts it; None if each device holds all of it.
        group: with which fsdp gathers it and lets it go again; empty if it stays, once gathered.
    """

    name: str
    shape: tuple[int, ...]
    unit: str
    number_bytes: int = 0
    is_linear: bool = False
    split: int | None = None
    group: str = ""

    @property
    def numbers(self) -> int:
        """How many it has."""
        return math.prod(self.shape)


#: Says how many bytes a tensor of this shape takes, which may be a part of the blueprint's.
Weigh = Callable[[Tensor, tuple[int, ...]], float]


@dataclass(frozen=True)
class Blueprint:
    """A model to be.

    Attributes:
        tensors: in the order of the model; those that several layers share stand here once.
        heads: of attention, and of its keys and values; 0 if there is none.
        why_not: shard choice -> why this model cannot be shared out so.
    """

    tensors: tuple[Tensor, ...]
    heads: tuple[int, int] = (0, 0)
    why_not: tuple[tuple[str, str], ...] = ()

    @property
    def numbers(self) -> int:
        """How many all tensors have."""
        return sum(tensor.numbers for tensor in self.tensors)

    def by(self, kind: Literal["unit", "group"]) -> dict[str, list[Tensor]]:
        """Return the tensors of each unit or group, in the order of the model."""
        found: dict[str, list[Tensor]] = {}
        for tensor in self.tensors:
            found.setdefault(getattr(tensor, kind), []).append(tensor)
        return found


def weigh_all(tensors: Iterable[Tensor], weigh: Weigh) -> int:
    """Return the bytes of whole tensors."""
    return round(sum(weigh(tensor, tensor.shape) for tensor in tensors))
