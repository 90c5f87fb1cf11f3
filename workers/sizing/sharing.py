"""What each device holds of a model, by the choice of --shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.sharding.spreading import limits_of, place_units
from workers.sizing.blueprint import Blueprint, Tensor, weigh_all
from workers.sizing.numbers import Numbers

#: Choices of --shard; the first is none.
SHARDS = ("none", "auto", "tensor", "fsdp")

#: Layers that a device holds whole at a time under fsdp: one that computes, and the next, which arrives meanwhile.
GATHERED = 2


@dataclass(frozen=True)
class Share:
    """What one device holds.

    Attributes:
        weights_bytes: of the weights, always.
        gathered_bytes: of other devices' weights, while the model computes.
        most_bytes: of weights that the worker lays there at most; None if only the device itself sets a limit.
        loading_bytes: of the weights as they are read, where they are quantised on the device itself.
    """

    weights_bytes: int
    gathered_bytes: int = 0
    most_bytes: int | None = None
    loading_bytes: int = 0

    def left_bytes(self, usable_bytes: int) -> int:
        """Return what is left for batches of what a device has for both; less than nothing if weights do not fit."""
        return usable_bytes - self.weights_bytes - self.gathered_bytes

    def lacking_bytes(self, usable_bytes: int) -> int:
        """Return what a device lacks to load the weights and compute with them; 0 if it has enough."""
        beyond = 0 if self.most_bytes is None else self.weights_bytes - self.most_bytes
        return max(0, -self.left_bytes(usable_bytes), beyond, self.loading_bytes - usable_bytes)


def why_not(blueprint: Blueprint, shard: str, numbers: Numbers, n_devices: int) -> str | None:
    """Say why a model cannot be kept and shared out so, or return None."""
    if numbers.quantize and not any(tensor.is_linear for tensor in blueprint.tensors):
        return "no linear layers in repeated blocks"
    if shard == "none":
        return None
    if reason := dict(blueprint.why_not).get(shard):
        return reason
    uneven = [str(heads) for heads in blueprint.heads if heads % n_devices]
    if shard == "tensor" and uneven:
        return f"{' and '.join(dict.fromkeys(uneven))} heads do not divide by {n_devices}"
    return None


def shares(
    blueprint: Blueprint, shard: str, numbers: Numbers, rooms: Sequence[int], *, is_cpu: bool = False
) -> list[Share]:
    """Return what each device holds, as many as there are rooms.

    Args:
        blueprint: of the model.
        shard: one of SHARDS.
        numbers: that the weights are kept in.
        rooms: bytes that may still be taken of each device.
        is_cpu: whether the devices are. There weights are read in --precision and quantised where they lie.
    """
    n = len(rooms)
    if shard == "none":
        loading = weigh_all(blueprint.tensors, Numbers(numbers.precision).weigh) if numbers.quantize and is_cpu else 0
        return [Share(weigh_all(blueprint.tensors, numbers.weigh), loading_bytes=loading)] * n
    if shard == "auto":
        sizes = unit_sizes(blueprint, numbers)
        limits = limits_of(rooms, sizes) or limits_of(rooms, None) or []
        return [Share(held, most_bytes=most) for held, most in zip(place_units(sizes, limits), limits, strict=True)]
    if shard == "tensor":
        return [Share(_parted(blueprint.tensors, numbers, rank, n)) for rank in range(n)]
    return [_gathering(blueprint, numbers, rank, n) for rank in range(n)]


def unit_sizes(blueprint: Blueprint, numbers: Numbers) -> list[int]:
    """Return the bytes of each part of a model that stays whole, in their order."""
    return [weigh_all(tensors, numbers.weigh) for tensors in blueprint.by("unit").values()]


def _parted(tensors: Sequence[Tensor], numbers: Numbers, rank: int, n: int) -> int:
    return round(sum(numbers.weigh(one, _part(one.shape, one.split, rank, n)) for one in tensors))


def _gathering(blueprint: Blueprint, numbers: Numbers, rank: int, n: int) -> Share:
    """Return what a rank of fsdp holds: a part of every tensor along its first dimension, and whole layers in turn."""
    own = round(
        sum(
            numbers.weigh(one, _part(one.shape, 0 if one.shape and not one.number_bytes else None, rank, n))
            for one in blueprint.tensors
        )
    )
    sizes = {group: weigh_all(tensors, numbers.weigh) for group, tensors in blueprint.by("group").items()}
    kept = sizes.pop("", 0)
    return Share(own, kept + sum(sorted(sizes.values())[-GATHERED:]))


def _part(shape: tuple[int, ...], split: int | None, rank: int, n: int) -> tuple[int, ...]:
    """Return the shape of a rank's part: all have as many as the first, but for the last ones, as torch.chunk does."""
    if split is None:
        return shape
    most = -(-shape[split] // n)
    own = max(0, min(most, shape[split] - rank * most))
    return (*shape[:split], own, *shape[split + 1 :])
