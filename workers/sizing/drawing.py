"""Blueprints by the files of a model: its configuration, and the headers of its weights where that tells nothing.

A transformer is built of its configuration on torch's meta device, where tensors have shapes and no memory, by the
class with which the engine would load it: so what only some checkpoints have is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from sentence_transformers.util import load_file_path
from transformers import AutoConfig

from tasks import weights
from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.engines.loading import LOAD_ERRORS, not_loaded
from workers.model_size import count_parameters, hub_snapshot, weight_files
from workers.sizing.blueprint import Blueprint, Tensor
from workers.sizing.meta import blueprint_of, build
from workers.sizing.tables import header_of, static_tables

#: Modules of sentence-transformers that have no weights.
_WEIGHTLESS = {"Pooling", "Normalize", "Dropout", "LogitScore"}
#: What transformers raises of a configuration whose numbers make no model.
_UNUSABLE = (TypeError, AttributeError, ArithmeticError, LookupError)


def draw(spec: ModelSpec, settings: Settings) -> Blueprint:
    """Return the blueprint of the model that a worker with these settings would load.

    Raises:
        ModelNotFound: its files are not there or cannot be read, or do not tell enough.
    """
    if spec.engine == "fake":
        return _whole(0, "it has no weights")
    if spec.engine == "laser":
        return _whole(_counted(spec), "LASER fits any device")
    try:
        parts = list(_Files(spec, settings).parts())
    except LOAD_ERRORS as exc:
        raise not_loaded(spec, exc) from exc
    except _UNUSABLE as exc:
        reason = str(exc).partition("\n")[0]
        raise ModelNotFound(f"--model {spec} cannot be loaded: its configuration makes no model: {reason}") from exc
    return _joined(parts)


def _whole(n: int, reason: str) -> Blueprint:
    tensors = (Tensor("weights", (n,), "weights"),) if n else ()
    return Blueprint(tensors, why_not=tuple((shard, reason) for shard in ("auto", "tensor", "fsdp")))


def _counted(spec: ModelSpec) -> int:
    n = count_parameters(spec)
    if n is None:
        raise ModelNotFound(f"--model {spec}: its files are not on this machine yet, so its size is not known.")
    return n


@dataclass(frozen=True)
class _Files:
    """The files of one model, in a folder or on the hub."""

    spec: ModelSpec
    settings: Settings

    @property
    def place(self) -> str:
        """The folder, that of the hub's cache if it is there, or the hub's id."""
        place = weights.locate(self.spec)
        if Path(place).is_dir():
            return place
        if snapshot := hub_snapshot(self.spec):
            return str(snapshot)
        owner = "cross-encoder" if self.spec.engine == "reranker" else "sentence-transformers"
        return place if "/" in place else f"{owner}/{place}"

    def read(self, name: str, folder: str = "") -> Any:
        """Return what a JSON file holds, or None if there is none.

        Raises:
            OSError: the hub does not answer. That is told of the first file, because each takes half a minute.
        """
        if Path(self.place).is_dir():
            file = load_file_path(self.place, name, subfolder=folder)
        else:
            file = self._fetch(name, folder)
        return json.loads(Path(file).read_text(encoding="utf-8")) if file else None

    def _fetch(self, name: str, folder: str) -> str | None:
        try:
            return str(hf_hub_download(self.place, name, subfolder=folder or None, revision=self._revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None

    def parts(self) -> Iterator[Blueprint]:
        """Yield the blueprint of each module that the engine would load."""
        if self.read("adapter_config.json") is not None:
            raise ValueError("it is an adapter. Plan the model that it belongs to")
        modules = self._modules()
        if not modules or (self.spec.engine == "reranker" and self._architecture("").endswith("ForCausalLM")):
            yield self._transformer("", self._task_of_plain())
            return
        for kind, folder in modules:
            if kind == "Transformer":
                found = self.read("sentence_bert_config.json", folder) or {}
                yield self._transformer(folder, str(found.get("transformer_task", "feature-extraction")))
            elif kind not in _WEIGHTLESS:
                yield self._module(kind, folder)

    def _modules(self) -> list[tuple[str, str]]:
        """Return kind and folder of each module; of a plain transformer there are none.

        Raises:
            ValueError: the file that lists them is of another form.
        """
        found = self.read("modules.json") or []
        try:
            return [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in found]
        except (TypeError, LookupError) as exc:
            raise ValueError("its modules.json is not a list of modules, each with type and path") from exc

    def _task_of_plain(self) -> str:
        if self.spec.engine != "reranker":
            return "feature-extraction"
        is_causal = self._architecture("").endswith("ForCausalLM")
        return "text-generation" if is_causal else "sequence-classification"

    def _architecture(self, folder: str) -> str:
        return str((self._config(folder).architectures or [""])[0])

    def _config(self, folder: str) -> Any:
        trust = self.settings.trust_remote_code
        return AutoConfig.from_pretrained(
            self.place, subfolder=folder, revision=self._revision, trust_remote_code=trust
        )

    def _transformer(self, folder: str, task: str) -> Blueprint:
        config = self._config(folder)
        # A cross-encoder of one score is made of a model that says nothing of labels.
        if task == "sequence-classification" and not self._architecture(folder).endswith("ForSequenceClassification"):
            config.num_labels = 1
        return blueprint_of(build(config, task, trust_remote_code=self.settings.trust_remote_code))

    def _module(self, kind: str, folder: str) -> Blueprint:
        """Return a module that is no transformer: a dense layer by its configuration, any other by its weights.

        Raises:
            ValueError: they are not here.
        """
        place = Path(self.place) / folder
        if kind == "StaticEmbedding":
            tensors = list(static_tables(place))
        else:
            shapes = _dense(self.read("config.json", folder) or {}) or list(_saved(place))
            tensors = [Tensor(f"{kind}.{name}", shape, kind) for name, shape in shapes]
        if not tensors:
            raise ValueError(f"the size of its module {kind} is known only once its weights are on this machine")
        return Blueprint(tuple(tensors))

    @property
    def _revision(self) -> str | None:
        return None if Path(self.place).is_dir() else self.spec.revision


def _dense(config: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    if not {"in_features", "out_features"} <= set(config):
        return []
    n_in, n_out = int(config["in_features"]), int(config["out_features"])
    found: list[tuple[str, tuple[int, ...]]] = [("weight", (n_out, n_in))]
    if config.get("bias", True):
        found.append(("bias", (n_out,)))
    if config.get("use_residual") and n_in != n_out:
        found.append(("residual", (n_out, n_in)))
    return found


def _saved(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of the tensors in a folder's weight files."""
    for file in weight_files(folder):
        if file.suffix != ".safetensors":
            yield file.name, (file.stat().st_size // 4,)
            continue
        for name, tensor in header_of(file).items():
            yield name, tuple(tensor["shape"])


def _joined(parts: list[Blueprint]) -> Blueprint:
    """Put the modules of one model one behind the other; what cannot be shared out is one of them."""
    reasons = tuple(reason for part in parts for reason in part.why_not)
    heads = next((part.heads for part in parts if any(part.heads)), None)
    if heads is None:
        reasons = tuple((shard, "no transformer") for shard in ("auto", "tensor", "fsdp"))
    tensors = tuple(
        replace(tensor, unit=f"{i}.{tensor.unit}", group=tensor.group and f"{i}.{tensor.group}")
        for i, part in enumerate(parts)
        for tensor in part.tensors
    )
    return Blueprint(tensors, heads or (0, 0), reasons)
