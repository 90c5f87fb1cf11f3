"""`penstock encode --engine laser_encoders`, end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.laser.texts import texts
from tests.tiny_laser import make_laser2, make_laser3

N_ROWS = 400


def encode(folder: Path, out: str, *options: str) -> dict[str, Any]:
    """Run the command on the folder's corpus and return its summary."""
    command = [sys.executable, "-P", "-m", "producer.cli", "encode", str(folder / "corpus.jsonl"), "--json"]
    where = [
        "--model",
        f"laser:{folder / 'model'}",
        "--out",
        str(folder / out),
        "--workers",
        "2",
        "--max-batch-tokens",
        "1000",
    ]
    environment = {**os.environ, "PENSTOCK_STATE_DIR": str(folder / "state"), "PENSTOCK_CHUNK_ROWS": "100"}
    ran = subprocess.run([*command, *where, *options], capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """LASER2, two students, and records in three languages."""
    make_laser2(tmp_path / "model")
    make_laser3(tmp_path / "model", "wol_Latn", masked=True)
    make_laser3(tmp_path / "model", "kir_Cyrl", masked=False, own_pieces=True)
    rows = [row for row in texts(2 * N_ROWS, seed=5) if len(row) < 1000][:N_ROWS]
    records = [
        {"id": str(i), "text": row, "lang": ("eng_Latn", "wol_Latn", "kir_Cyrl")[i % 3]} for i, row in enumerate(rows)
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def test_the_official_package_gives_the_vectors_of_the_default_engine(folder: Path) -> None:
    """Two slots, several chunks, a language in each record; the package's logs do not reach stdout."""
    language = ("--language-field", "lang")
    ours = encode(folder, "ours.npy", *language)
    package = encode(folder, "package.npy", *language, "--engine", "laser_encoders")
    assert ours["rows_done"] == package["rows_done"] == N_ROWS
    assert ours["failed_rows"] == package["failed_rows"] == 0
    assert ours["tokens"] == package["tokens"]
    found, expected = (np.load(folder / name) for name in ("package.npy", "ours.npy"))
    assert found.shape == (N_ROWS, 32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
