"""How large a model is, from its files on disk, before anything is loaded."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks import weights
from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec
from workers.engines.laser.checkpoints import files_of, named_by
from workers.widths import NUMBER_BYTES

#: Bytes of a number in a weight file that does not say, as pytorch_model.bin.
FLOAT32_BYTES = NUMBER_BYTES["fp32"]
#: A safetensors file begins with the length of its header; a larger one is none.
LARGEST_HEADER_BYTES = 100_000_000
#: What reading the header of a file raises that has none.
NO_HEADER = (OSError, ValueError, TypeError, LookupError, AttributeError, struct.error)
#: In the names of a repeated block's tensors, as in ``layers.3.mlp.up_proj.weight``.
_IN_BLOCK = re.compile(r"\.\d+\..*weight$")
#: In the names of experts, which transformers joins into one tensor a layer that is no linear layer's.
_EXPERTS = ".experts."


def count_parameters(spec: ModelSpec) -> int | None:
    """Return the numbers in a model's weight files, or None where these are not on this machine yet.

    Raises:
        ModelNotFound: the model's folder or package is not there, or is empty.
    """
    if spec.engine == "fake":
        return 0
    place = Path(weights.locate(spec))
    if not place.is_dir():
        return _in_folder(snapshot) if (snapshot := hub_snapshot(spec)) else None
    if not any(place.iterdir()):
        raise ModelNotFound(f"--model {spec}: the folder is empty.", model=str(spec))
    if spec.engine == "laser":
        return _of_laser(spec, place)
    return _in_folder(place)


def count_in_blocks(spec: ModelSpec) -> int:
    """Return the numbers in matrices of blocks that a transformer repeats, as far as files on this machine tell.

    That is what ``--quantize`` quantises, as `workers.engines.quantising.repeated_linears` finds it in a loaded model;
    here, without torch, by names: such tensors have the number of a block in theirs.
    """
    place = Path(weights.locate(spec))
    folder = place if place.is_dir() else hub_snapshot(spec)
    return sum(map(_in_blocks_of, weight_files(folder))) if folder else 0


def _in_blocks_of(path: Path) -> int:
    if path.suffix != ".safetensors":
        return 0
    try:
        names = {name: tensor for name, tensor in read_header(path).items() if _IN_BLOCK.search(name)}
        shapes = [tensor["shape"] for name, tensor in names.items() if _EXPERTS not in name]
        return sum(math.prod(shape) for shape in shapes if len(shape) == 2)  # noqa: PLR2004 - a matrix
    except NO_HEADER:
        return 0


def _of_laser(spec: ModelSpec, folder: Path) -> int | None:
    """Count the checkpoint that is loaded first, and the largest of the others: they are loaded one by one."""
    files = [folder / files_of(name, folder).weights for name in named_by(spec, folder)]
    first, *others = [path.stat().st_size // FLOAT32_BYTES if path.is_file() else 0 for path in files]
    return first + max(others, default=0) or None


def _in_folder(place: Path) -> int | None:
    return sum(map(_in_file, weight_files(place))) or None


def weight_files(place: Path) -> Iterator[Path]:
    """Yield the files that would be loaded: a module's weights often lie there in several formats."""
    for folder in (place, *(path for path in sorted(place.rglob("*")) if path.is_dir())):
        yield from sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _in_file(path: Path) -> int:
    if path.suffix != ".safetensors":
        return path.stat().st_size // FLOAT32_BYTES
    try:
        return sum(math.prod(tensor["shape"]) for name, tensor in read_header(path).items() if name != "__metadata__")
    except NO_HEADER:
        return path.stat().st_size // FLOAT32_BYTES  # whether it can be loaded is for the engine to say


def read_header(path: Path) -> Any:
    """Return the header of a safetensors file: tensor -> dtype and shape."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(min(length, LARGEST_HEADER_BYTES)))


def hub_snapshot(spec: ModelSpec) -> Path | None:
    """Return where the hub's cache holds a model, if it does. The places are huggingface_hub's."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    names = [spec.name] if "/" in spec.name else [f"sentence-transformers/{spec.name}", spec.name]
    for name in names:
        folder = cache / f"models--{name.replace('/', '--')}"
        try:
            commit = (folder / "refs" / (spec.revision or "main")).read_text().strip()
        except OSError:
            commit = spec.revision or "main"
        if (folder / "snapshots" / commit).is_dir():
            return folder / "snapshots" / commit
    return None
