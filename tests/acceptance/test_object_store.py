"""A cluster whose store is a bucket."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from tests.acceptance.conftest import Cluster, texts


@pytest.fixture
def bucket(cluster: Cluster) -> Iterator[str]:
    """An S3 server with one bucket that the cluster uses as its store."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    endpoint = f"http://{host}:{port}"
    boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="key",
        aws_secret_access_key="secret",  # noqa: S106 - not a secret
        region_name="us-east-1",
    ).create_bucket(Bucket="corpora")
    cluster.shell.environment |= {
        **keys,
        "AWS_ENDPOINT_URL": endpoint,
        "PENSTOCK_STORE_URL": "s3://corpora/penstock",
    }
    yield "s3://corpora"
    server.stop()


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
