"""Models on ONNX Runtime and OpenVINO.

sentence-transformers has backends of these names, but the packages that they need (optimum-onnx 0.1, optimum-intel 2.2)
do not work with the transformers of today. So the transformer is exported here, by torch's and OpenVINO's own
converters, and everything around it stays sentence-transformers'. An export takes seconds and is kept in the state
folder, under a name made of the weights and the versions. Each load compares the vectors with torch's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers.modeling_outputs import BaseModelOutput

from tasks.errors import UsageError
from workers.engines import runtimes
from workers.engines.fingerprint import fingerprint_of
from workers.engines.probing import BATCHES, probe, worst_cosine

log = logging.getLogger(__name__)

#: What a text transformer may take, in the order of the exported graph's inputs.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
#: Cosine to torch's vectors in fp32 that every probe must reach. Seen: fp32 1.0000000, bf16 0.9998.
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.99}


class ExportedTransformer(torch.nn.Module):
    """Stands where the transformer stood.

    Args:
        config: the transformer's.
        run: arrays (n_rows, n_tokens) by name -> hidden states (n_rows, n_tokens, dim) float32.
        identity: what the graph was made of, for the fingerprint.
    """

    def __init__(self, config: Any, run: Callable[[dict[str, np.ndarray]], np.ndarray], identity: str) -> None:
        super().__init__()
        self.config = config
        self.identity = identity
        self._run = run

    def forward(self, **inputs: Any) -> BaseModelOutput:
        """Run the graph."""
        hidden = self._run({name: inputs[name].numpy() for name in INPUTS if name in inputs})
        return BaseModelOutput(last_hidden_state=torch.from_numpy(hidden))


def export_model(model: SentenceTransformer, backend: str, precision: str, state_dir: Path) -> None:
    """Put the exported graph in the place of a model's transformer.

    Args:
        model: on the CPU, in fp32.
        backend: onnx or openvino.
        precision: fp32, or with openvino bf16.
        state_dir: exports are kept in its folder ``models``.

    Raises:
        UsageError: the backend is not installed, or cannot compute this model.
    """
    needed = runtimes.PACKAGES[backend]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UsageError(f"--backend {backend} needs {' and '.join(missing)}: pip install 'penstock[{backend}]'.")
    first: Any = model[0]
    if not isinstance(first, Transformer) or first.modality_config.get("text", {}).get("method") != "forward":
        raise UsageError(f"--backend {backend} is for transformers that take plain text. Leave it out for this model.")
    weights = fingerprint_of(model)
    expected = probe(model)
    names = [name for name in INPUTS if name in model.preprocess(BATCHES[0])]
    key = hashlib.blake2b(" ".join([weights, *names, *map(version, ("torch", "transformers", *needed))]).encode())
    file = state_dir.expanduser() / "models" / key.hexdigest()[:16] / runtimes.FILES[backend]
    if not file.is_file():
        _export(model, backend, names, file)
    run = runtimes.OPEN[backend](file, precision, torch.get_num_threads())
    first.model = ExportedTransformer(first.model.config, run, f"{backend} {precision} {weights}").eval()
    if not (cosine := worst_cosine(probe(model), expected)) >= LEAST_COSINE[precision]:
        raise UsageError(f"--backend {backend} gives other vectors for this model (cosine {cosine:.4f}). Leave it out.")


def _export(model: SentenceTransformer, backend: str, names: list[str], file: Path) -> None:
    """Write the graph into a folder beside its place, and move it there: other slots may do the same."""
    first: Any = model[0]
    features = model.preprocess(BATCHES[0])
    log.info("Exporting the model", extra={"action": "load", "backend": backend, "folder": str(file.parent)})
    try:
        file.parent.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=file.parent.parent, prefix="export-"))
    except OSError as exc:
        raise UsageError(
            f"{file.parent.parent}: no place for the exported model ({exc.strerror}). Set PENSTOCK_STATE_DIR to a "
            "folder that the worker may write to."
        ) from exc
    try:
        with torch.inference_mode(), warnings.catch_warnings(action="ignore"):  # of tracing; the vectors are compared
            runtimes.EXPORT[backend](
                _HiddenStates(first.model, names), {name: features[name] for name in names}, folder / file.name
            )
        with suppress(OSError):  # another slot was faster
            folder.rename(file.parent)
    except Exception as exc:  # the converters raise anything
        reason = str(exc).strip().split("\n", 1)[0]
        raise UsageError(
            f"--backend {backend}: the model cannot be exported ({type(exc).__name__}: {reason}). Leave it out."
        ) from exc
    finally:
        model.eval()  # an export may leave it in training
        shutil.rmtree(folder, ignore_errors=True)


class _HiddenStates(torch.nn.Module):
    """A transformer with inputs by position and one output, as the converters like it."""

    def __init__(self, transformer: Any, names: list[str]) -> None:
        super().__init__()
        self._transformer = transformer
        self._names = names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return (n_rows, n_tokens, dim)."""
        output = self._transformer(**dict(zip(self._names, tensors, strict=True)), return_dict=True)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden
