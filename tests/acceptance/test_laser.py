"""`penstock encode --model laser:FOLDER` in several languages, on tiny checkpoints in the published formats."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings
from tests.acceptance.conftest import TEXT_MARK, Shell
from tests.tiny_laser import make_laser2, make_laser3
from workers.engines import load_engine

LANGUAGES = ("eng_Latn", "wol", "kabyle", "klingon", "")


def make_checkpoints(folder: Path) -> Path:
    """LASER2 and two students."""
    make_laser2(folder)
    make_laser3(folder, "wol_Latn", masked=True)
    make_laser3(folder, "kab_Latn", masked=False, own_pieces=True)
    return folder


def test_each_record_gets_the_vector_of_its_language_s_checkpoint(shell: Shell, tmp_path: Path) -> None:
    """The same as an engine gives them one by one; a language that LASER lacks, or none at all, is an error row."""
    model = f"laser:{make_checkpoints(tmp_path / 'laser')}"
    records = [
        {"id": str(i), "text": f"line {i}{TEXT_MARK}{i * i}", "lang": LANGUAGES[i % len(LANGUAGES)]} for i in range(50)
    ]
    shell.write("in.jsonl", [json.dumps(record) for record in records])
    command = ("encode", "in.jsonl", "--model", model, "--language-field", "lang", "--workers", 2, "--chunk-rows", 15)
    result = shell.json(*command, "--max-batch-tokens", 256, "--out", "out.parquet", code=1)
    assert (result["rows"], result["failed_rows"]) == (50, 20)
    table = pq.read_table(shell.folder / "out.parquet")
    assert table["id"].to_pylist() == [record["id"] for record in records]
    vectors = table["vector"].to_pylist()
    errors = table["error"].to_pylist()
    engine = load_engine(ModelSpec.parse(model), "cpu", Settings(max_batch_tokens=256, state_dir=tmp_path))
    for i, record in enumerate(records):
        if record["lang"] == "klingon":
            assert "LASER has no language 'klingon'" in errors[i]
        elif not record["lang"]:
            assert "has no language in field 'lang'" in errors[i]
        else:
            assert errors[i] is None
            alone = engine.encode([record["text"]], EncodeOptions(language=record["lang"])).values[0]
            np.testing.assert_allclose(vectors[i], alone, atol=1e-6)


def test_a_job_without_a_language_says_what_to_do(shell: Shell, tmp_path: Path) -> None:
    """Before it begins."""
    model = f"laser:{make_checkpoints(tmp_path / 'laser')}"
    shell.write("in.txt", ["one line"])
    done = shell.run(
        "encode", "in.txt", "--model", model, "--workers", 1, "--max-batch-tokens", 256, "--out", "out.npy", code=1
    )
    assert "give --language or --language-field, or name the checkpoint: --model laser:laser2" in done.stderr


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder."""

    def log_message(self, *_: object) -> None:
        """Keep the test's output quiet."""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Serve the files of checkpoints on this machine."""
    handler = partial(Quiet, directory=make_checkpoints(tmp_path / "published"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_checkpoints_are_downloaded_when_they_are_needed(shell: Shell, tmp_path: Path, url: str) -> None:
    """Into the cache folder, by two slots that start together; a student with the first record that needs it."""
    cache = tmp_path / "cache"
    shell.environment |= {"PENSTOCK_LASER_URL": url, "XDG_CACHE_HOME": str(cache)}
    shell.write("in.jsonl", [json.dumps({"text": f"line {i}", "lang": ("eng", "wol")[i % 2]}) for i in range(20)])
    how = ("--language-field", "lang", "--workers", 2, "--chunk-rows", 5, "--max-batch-tokens", 256)
    result = shell.json("encode", "in.jsonl", "--model", "laser", *how, "--out", "out.npy")
    assert (result["rows"], result["failed_rows"]) == (20, 0)
    assert sorted(path.name for path in (cache / "penstock" / "laser").iterdir() if path.name[0] != ".") == [
        "laser2.cvocab",
        "laser2.pt",
        "laser2.spm",
        "laser3-wol_Latn.v1.pt",
    ]


def test_files_that_cannot_be_downloaded_are_named(shell: Shell, tmp_path: Path, url: str) -> None:
    """With the folder where they belong."""
    shell.environment |= {"PENSTOCK_LASER_URL": f"{url}/elsewhere", "XDG_CACHE_HOME": str(tmp_path)}
    shell.write("in.txt", ["one line"])
    done = shell.run("encode", "in.txt", "--model", "laser:laser2", "--workers", 1, "--out", "out.npy", code=1)
    assert f"cannot be downloaded from {url}/elsewhere (laser2.pt: the server has no such file)" in done.stderr
    assert f"Put laser2.pt, laser2.spm into {tmp_path}/penstock/laser" in done.stderr
