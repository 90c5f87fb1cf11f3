"""Opening what ``--model laser...`` names: one checkpoint, or all that are chosen from by language."""

from __future__ import annotations

import os
from pathlib import Path

from tasks import weights
from tasks.messages import ModelSpec
from tasks.ports import Encoder
from tasks.settings import Settings
from workers.engines.laser.by_language import LaserByLanguage
from workers.engines.laser.checkpoints import files_of, named_by
from workers.engines.laser.download import Downloads
from workers.engines.laser.encoder import load_encoder
from workers.memory import DeviceMemory
from workers.planning import SLOTS_VARIABLE


def load_laser(spec: ModelSpec, device: str, settings: Settings) -> Encoder:
    """Load LASER, and download what is missing of it.

    Raises:
        ModelNotFound: there is no such checkpoint, or a file of it is missing, damaged or somebody else's.
        StoreUnavailable: a file is not here, and the server that has it does not answer.
        UsageError: a setting is not for LASER.
    """
    folder = Path(weights.locate(spec))
    names = named_by(spec, folder)
    downloads = None if spec.name.startswith("laser:/") else Downloads(settings.laser_url, folder)
    if downloads is not None:
        downloads.fetch(files_of(names[0], folder).names)
    if len(names) == 1:
        return load_encoder(names[0], folder, device, settings)
    memory = DeviceMemory(device, settings.memory_ratio, int(os.environ.get(SLOTS_VARIABLE, "1")))
    return LaserByLanguage(names, folder, downloads, device, settings, memory)
