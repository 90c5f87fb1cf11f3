"""The command line: real options with values that nobody expects, in any combination."""

from __future__ import annotations

import random

import pytest

from producer.commands import worker
from tasks import broker, object_store
from tests.fuzz.cases import fuzz
from tests.fuzz.commands import SECRET, call, leftovers, run
from tests.fuzz.mutations import value

#: Inputs that are there, and some that are not.
INPUTS = ["corpus.jsonl", "corpus.txt", "corpus.csv", "*.jsonl", "**/*.txt", "-", "none.jsonl", "folder", "."]
#: Addresses that are answered at once, by a refusal: no case may wait for a network.
BROKERS = [
    "redis://127.0.0.1:1/0",
    "redis://127.0.0.1:1/0?db=x",
    "redis://127.0.0.1:1/0?foo=bar",
    "redis://127.0.0.1:1/0?socket_timeout=x",
    "redis://127.0.0.1:1/0?max_connections=-1",
    "redis://127.0.0.1:1/0?health_check_interval=inf",
    "redis://127.0.0.1:99999",
    "redis://127.0.0.1:-1",
    "redis://user:pass@word@127.0.0.1:1",
    "redis://[::1",
    "redis://:@:",
    "rediss://127.0.0.1:1/0?ssl_cert_reqs=maybe",
    "rediss://127.0.0.1:1/0?ssl_ca_certs=/none",
    "unix:///none/v.sock",
    "unix://",
    "unix:///" + "x" * 200,
    "redis+socket:///none/v.sock?virtual_host=x",
    "http://127.0.0.1:1",
]
STORES = [
    "file:///dev/null",
    "file:///dev/null/x",
    "file:///proc/none",
    "file://host/x",
    "file:///%00",
    "file:///%ff",
    "file:relative",
    "s3://",
    "s3://bucket",
    "s3:///key",
    "gs://bucket",
    "az://container",
    "redis://127.0.0.1:1/0",
    "redis://127.0.0.1:1/x",
    "ftp://127.0.0.1/x",
]
MODELS = ["fake", "fake:dim=4", "fake:dim=x", "a/b@c", "./folder", "pkg:none/x", "pkg:../x", "/dev/zero"]
OUTS = ["out.npy", "out.parquet", "out.jsonl.gz", "new/", "folder/", "there.npy", "none/out.npy", "s3://bucket/out.npy"]

#: Option -> what makes sense for it. Every one also gets values that make none.
OPTIONS = {
    "--model": MODELS,
    "--out": OUTS,
    "--text-field": ["text", "none"],
    "--id-field": ["id", "none"],
    "--keep-fields": ["n", "n,none", "row,id", ",,"],
    "--workers": ["1"],
    "--vector-dtype": ["float16"],
    "--truncate-dim": ["2"],
    "--prompt": ["query: "],
    "--prompt-name": ["query"],
    "--max-tokens": ["5"],
    "--stdin-format": ["csv", "jsonl.gz", "parquet"],
    "--chunk-rows": ["1"],
    "--chunk-bytes": ["1"],
    "--on-error": ["fail"],
    "--name": ["nightly"],
    "--broker": BROKERS,
    "--store": STORES,
    "--devices": ["cpu"],
    "--processes-per-device": ["1"],
    "--threads-per-process": ["1"],
    "--max-batch-tokens": ["1"],
}
SHARED = ["--broker", "--store"]
WORKER = [*SHARED, "--model", "--devices", "--processes-per-device", "--threads-per-process", "--max-batch-tokens"]
#: Command -> its options and flags.
COMMANDS = {
    "encode": [*OPTIONS, "--overwrite", "--json", "--detach", "--normalize"],
    "worker": WORKER,
    "jobs": [*SHARED, "--json"],
    "status": [*SHARED, "--json"],
    "wait": [*SHARED, "--json"],
    "collect": [*SHARED, "--out", "--overwrite", "--json"],
    "cancel": [*SHARED, "--json"],
    "retry": [*SHARED],
    "workers": [*SHARED, "--json"],
}
FLAGS = {"--overwrite", "--json", "--detach", "--normalize"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with some files, in which no address costs time."""
    (tmp_path / "corpus.jsonl").write_text(f'{{"id": "a", "text": "{SECRET}", "n": 1}}\n')
    (tmp_path / "corpus.txt").write_text(f"{SECRET}\n")
    (tmp_path / "corpus.csv").write_text(f"id,text,n\na,{SECRET},1\n")
    (tmp_path / "there.npy").write_bytes(b"there")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(broker, "RETRIES", 0)
    monkeypatch.setitem(object_store.RETRIES, "max_retries", 0)
    for name in ("AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "eHh4")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", "/none")
    return tmp_path


def arguments_of(rng: random.Random) -> list[str]:
    """Return a command with random options, now and then one that it does not have."""
    command = rng.choice(list(COMMANDS)) if rng.random() < 0.5 else "encode"
    own = COMMANDS[command]
    arguments = [command]
    for name in rng.sample(own, rng.randrange(min(6, len(own)) + 1)):
        arguments.append(name)
        if name not in FLAGS:
            arguments.append(rng.choice(OPTIONS[name]) if rng.random() < 0.5 else value(rng))
    if command == "encode":
        arguments += ["--dry-run"] if "--broker" not in arguments else []
        arguments += ["--model", "fake"] if rng.random() < 0.7 else []
        arguments += [rng.choice(INPUTS) if rng.random() < 0.8 else value(rng) for _ in range(rng.choice([1, 1, 2]))]
    elif command not in {"jobs", "workers", "worker"} or rng.random() < 0.05:
        arguments.append(rng.choice(["encode-0123456789", value(rng)]))
    if rng.random() < 0.05:
        arguments.insert(rng.randrange(len(arguments)), value(rng))
    return arguments


def test_no_arguments_end_in_a_traceback(folder, monkeypatch):
    """Whatever the options: done, or a short message and an exit code that says what is wrong."""

    def execve(*_: object) -> None:
        print("worker")  # noqa: T201 - the command's only word here
        raise SystemExit(0)

    monkeypatch.setattr(worker.os, "execve", execve)
    before = set(folder.iterdir())

    def attempt(rng: random.Random) -> bool:
        arguments = arguments_of(rng)
        try:
            outcome = call(*arguments, folder=folder, stdin=b'{"text": "x"}\n').check()
        except BaseException as exc:
            exc.add_note(f"penstock {arguments}")
            raise
        assert not leftovers(folder)
        assert (folder / "there.npy").read_bytes() == b"there"
        return outcome.is_refused

    fuzz("command lines", 25, attempt)
    assert set(folder.iterdir()) - before <= {folder / "state"}


def test_a_real_process_takes_them_as_well(folder):
    """The same in processes of their own, where the words come in as bytes and may be no UTF-8."""

    def attempt(rng: random.Random) -> bool:
        arguments = arguments_of(rng)
        if arguments[0] == "worker":
            arguments[0] = "encode"
        words = [word.replace("\0", "").encode("utf-8", "surrogatepass") for word in arguments]
        return run(*words, folder=folder).check().is_refused

    fuzz("command lines, real processes", 0.3, attempt)
