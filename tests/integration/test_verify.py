"""The worker's part of ``penstock verify``."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pytest

from tasks import tables
from tasks.messages import JobSpec, ModelSpec
from tasks.options import EncodeOptions
from tests.tiny_models import tiny_bert
from workers import verify


def test_rows_of_sharded_workers_are_computed_on_one_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the environment says of shards is for workers; verify has one process."""
    spec = JobSpec(
        job="encode-1234567890",
        model=ModelSpec.parse(tiny_bert(tmp_path / "model")),
        options=EncodeOptions(),
        store_id="a" * 8,
        key="k",
    )
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    rows = pa.table([pa.array(["the river rose"]), pa.array([None], pa.string())], names=["a", "b"])
    (tmp_path / "rows.arrow").write_bytes(tables.to_bytes(rows))
    for name, value in {"SHARD": "tensor", "QUANTIZE": "int8", "DEVICES": "cpu"}.items():
        monkeypatch.setenv(f"PENSTOCK_{name}", value)
    monkeypatch.setattr(sys, "argv", ["verify", str(tmp_path)])
    assert verify.main() == 0
    table = tables.from_bytes((tmp_path / "values.arrow").read_bytes(), "values.arrow")
    assert table["error"].to_pylist() == [None]
