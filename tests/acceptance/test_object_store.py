"""A cluster whose store is a bucket."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.acceptance.conftest import Cluster, texts


@pytest.fixture
def bucket(cluster: Cluster, make_bucket: Callable[[str], object], s3_environment: dict[str, str]) -> str:
    """A bucket that the cluster uses as its store."""
    make_bucket("corpora")
    cluster.shell.environment |= {**s3_environment, "PENSTOCK_STORE_URL": "s3://corpora/penstock"}
    return "s3://corpora"


def test_a_job_goes_through_a_bucket_from_end_to_end(cluster: Cluster, bucket: str) -> None:
    """Input, chunks, results and output are all objects; the vectors are those of a local run."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(100))
    cluster.start_worker("fake", processes=2)
    shell.run("encode", "corpus.txt", "--model", "fake", "--out", "local.npy", "--chunk-rows", 10)
    assert shell.run("doctor", "--model", "fake").stdout.count("FAIL") == 0
    shell.run("encode", "corpus.txt", "--model", "fake", "--out", f"{bucket}/out/v.jsonl", "--chunk-rows", 10)
    result = shell.json("encode", f"{bucket}/out/v.jsonl", "--model", "fake", "--text-field", "id", "--out", "ids.npy")
    assert (result["rows_done"], result["failed_rows"]) == (100, 0)
    assert np.load(shell.folder / "local.npy").shape == (100, 32)
