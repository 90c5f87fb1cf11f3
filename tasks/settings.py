"""Settings: defaults < penstock.yaml < PENSTOCK_* environment variables < arguments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)
from yaml import YAMLError

from tasks import broker
from tasks.errors import UsageError
from tasks.options import Operation, explain
from tasks.redaction import redact

#: The settings file: this one of the working folder, or the one that PENSTOCK_CONFIG names.
CONFIG_FILE = "penstock.yaml"

#: Settings that may hold the address of a server, and a password.
_ADDRESSES = ("broker_url", "store_url", "cache_url")

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - never raises
    return Path(base) / "penstock"


class Settings(BaseSettings):
    """All that can be configured. Durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_", extra="forbid", frozen=True)

    broker_url: str | None = Field(
        None, description="Redis or Valkey of the cluster; without it, `penstock encode` runs embedded."
    )
    store_url: str | None = Field(
        None,
        description="Where chunk inputs and results live: file://, s3://, gs://, az:// or redis://. Default: the "
        "broker's Redis for a cluster, the state folder for an embedded run.",
    )
    broker_tls_ca: Path | None = Field(
        None, description="Certificates that a rediss:// server's is checked with. Default: the system's."
    )
    broker_tls_cert: Path | None = Field(None, description="Our own certificate, for a rediss:// server that asks.")
    broker_tls_key: Path | None = Field(None, description="The key of broker_tls_cert. Default: in the same file.")
    signing_key_file: Path | None = Field(
        None, description="Keys that sign and check job specs and tickets, a line each; the first one signs."
    )
    state_dir: Path = Field(
        default_factory=_default_state_dir,
        description="Folder of the embedded runs. Default: $XDG_STATE_HOME/penstock or ~/.local/state/penstock.",
    )
    chunk_rows: Annotated[int, Field(ge=1)] = Field(2000, description="Rows of a chunk at most.")
    chunk_bytes: Annotated[int, Field(ge=1)] = Field(
        256 * KIB, description="Bytes of text of a chunk at most; 2 MiB suits GPU workers better."
    )
    max_queued_chunks: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Tickets of a job in the broker at most. Default: 4 a live slot, at least 32."
    )
    heartbeat_s: Annotated[float, Field(gt=0)] = Field(5.0, description="How often a slot renews its lease.")
    lease_s: Annotated[float, Field(gt=0)] = Field(
        20.0, description="How long a slot that says nothing keeps its chunk."
    )
    ticket_s: Annotated[float, Field(gt=0)] = Field(
        900.0, description="Age at which a ticket counts as lost although its queue is not empty."
    )
    reconcile_s: Annotated[float, Field(gt=0)] = Field(
        2.0, description="How often nodes and waiting clients look for lost tickets and lapsed leases."
    )
    max_attempts: Annotated[int, Field(ge=1)] = Field(
        10, description="Attempts at a chunk that end with their process, after which all its rows are error rows."
    )
    stall_s: Annotated[float, Field(gt=0)] = Field(
        60.0,
        description="Seconds that a batch or chunk may take in any case; more only as far as 20 times what the slot's "
        "measured pace lets expect. A slot over its limit is replaced.",
    )
    grace_s: Annotated[float, Field(ge=0)] = Field(
        25.0,
        description="Seconds that a worker that is told to stop gets to finish its chunks; then they are handed back.",
    )
    redis_store_limit_bytes: Annotated[int, Field(ge=1)] = Field(
        64 * MIB, description="Bytes of a job that a redis:// store takes at most, inputs and results each."
    )
    model: str | None = Field(None, description="Worker: the model that this node loads.")
    operation: Operation = Field("encode", description="Worker: what it does with the model: encode or score.")
    template: str | None = Field(
        None,
        description="Scoring: how a causal reranker is asked, a name or a .toml file. Default: by the model's hub id.",
    )
    block_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        4 * GIB, description="Worker: bytes of text blocks of scoring jobs that a host keeps in state_dir."
    )
    trust_remote_code: bool = Field(
        False, description="Worker: run Python code that the model's files bring along, with this worker's rights."
    )
    devices: str = Field("auto", description="Worker: cpu, cuda (all), cuda:0,cuda:1 or auto.")
    workers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Embedded: slots in all, shared out among the devices. Default: as for a worker."
    )
    processes_per_device: Annotated[
        Annotated[int, Field(ge=1)] | None, BeforeValidator(lambda value: None if value == "auto" else value)
    ] = Field(
        None,
        description="Worker: slots per device. Default, or auto: on a CPU one a core, on a GPU as many as a model of "
        "that size needs to keep it busy; capped by memory either way.",
    )
    threads_per_process: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Worker: compute threads of a slot. Default: the CPU's cores shared by its slots."
    )
    max_batch_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Worker: tokens of a batch at most, padding included. Default: found by probing the device."
    )
    memory_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="Worker: share of the device's memory that may be in use, other processes' included."
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto", description="Worker: numbers that the model computes with. auto: fp32 on a CPU, bf16 or fp16 on a GPU."
    )
    backend: Literal["torch", "onnx", "openvino"] = Field(
        "torch", description="Worker: what runs the model; onnx and openvino are for CPUs."
    )
    engine: Literal["laser_encoders"] | None = Field(
        None, description="Worker: laser_encoders runs LASER by its official package. Default: penstock's own engines."
    )
    laser_url: str = Field(
        "https://dl.fbaipublicfiles.com/nllb/laser", description="Worker: where LASER's files are downloaded from."
    )
    shard: Literal["auto", "tensor", "fsdp"] | None = Field(
        None,
        description="Worker: one slot over all its devices, for a model larger than one: auto lays whole layers on "
        "each device, tensor and fsdp part every layer among processes. Default: a slot is on one device.",
    )
    quantize: Literal["int8", "int4"] | None = Field(
        None, description="Worker: numbers that the weights of linear layers are kept in. Default: as computed with."
    )
    compile: bool = Field(False, description="Worker: compile the model with torch.compile; for long jobs.")
    deduplicate: bool = Field(True, description="Worker: compute equal texts of a chunk once.")
    cache_url: str | None = Field(
        None, description="Worker: a folder or redis:// URL with vectors of texts that were encoded before."
    )

    log_format: Literal["plain", "json"] = Field("plain", description="Worker: plain log lines, or JSON ones.")

    @model_validator(mode="after")
    def _lease_outlives_heartbeat(self) -> Settings:
        if self.lease_s <= self.heartbeat_s:
            raise ValueError(f"lease_s ({self.lease_s:g}) must be more than heartbeat_s ({self.heartbeat_s:g})")
        return self

    @model_validator(mode="after")
    def _state_dir_has_a_place(self) -> Settings:
        try:
            self.state_dir.expanduser()
        except RuntimeError as exc:
            raise ValueError(f"state_dir ({self.state_dir}) lies in a home that this machine does not know") from exc
        return self

    @model_validator(mode="before")
    @classmethod
    def _put_tls_into_urls(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Make the files of TLS options of the URLs, where redis-py, kombu and child processes find them."""
        url, has_tls = str(values.get("broker_url")), any(values.get(f"broker_tls_{name}") for name in ("ca", "cert"))
        if has_tls and url.startswith("redis://"):
            raise ValueError("broker_tls_ca and broker_tls_cert are for rediss://, and broker_url is redis://")
        files = {name: values.get(f"broker_tls_{name}") for name in ("ca", "cert", "key")}
        urls = {name: values[name] for name in _ADDRESSES if isinstance(values.get(name), str)}
        return {**values, **{name: broker.with_tls(url, **files) for name, url in urls.items()}}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Show no password."""
        for name, value in super().__repr_args__():
            yield name, redact(value) if name in _ADDRESSES and value else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over penstock.yaml."""
        config = Path(os.environ.get("PENSTOCK_CONFIG", CONFIG_FILE))
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=config)

    @classmethod
    def load(cls, **arguments: Any) -> Settings:
        """Read the settings; arguments that are None do not count.

        Raises:
            UsageError: a value is wrong; the line names it and where settings come from.
        """
        named = os.environ.get("PENSTOCK_CONFIG")
        if named and not Path(named).is_file():
            raise UsageError(f"PENSTOCK_CONFIG={named}: no such file.")
        try:
            return cls(**{name: value for name, value in arguments.items() if value is not None})
        except ValidationError as exc:
            raise UsageError(
                f"Settings: {explain(exc)}. They come from arguments, PENSTOCK_* variables and {CONFIG_FILE}."
            ) from exc
        except (YAMLError, AttributeError, RecursionError, TypeError, ValueError) as exc:  # also of a list or numbers
            mark = getattr(exc, "problem_mark", None)
            where = f" (line {mark.line + 1})" if mark else ""
            raise UsageError(
                f"{named or CONFIG_FILE}: not a YAML file with one `setting: value` a line{where}."
            ) from exc

    @property
    def blocks_folder(self) -> Path:
        """Where the workers of this host keep text blocks."""
        return self.state_dir.expanduser() / "blocks"

    def environment(self) -> dict[str, str]:
        """Return these settings as PENSTOCK_* variables, for a child process."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {f"PENSTOCK_{name.upper()}": str(value) for name, value in values.items()}
