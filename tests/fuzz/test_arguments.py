"""The command line: real options with values that nobody expects, in any combination."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import typer

from producer import cli
from producer.commands import options
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
    "--vector-dtype": ["float16"],
    "--truncate-dim": ["2"],
    "--stdin-format": ["csv", "jsonl.gz", "parquet"],
    "--on-error": ["fail"],
    "--broker": BROKERS,
    "--store": STORES,
    "--devices": ["cpu"],
    "--ended-before": ["7d", "0s"],
}
#: Argument -> what makes sense for it.
ARGUMENTS = {"inputs": INPUTS, "store": STORES}
#: What is left out: it starts a process that loads torch.
LEFT_OUT = {"doctor"}


@functools.cache
def commands() -> dict[str, Any]:
    """Return the commands that there are, by name."""
    group: Any = typer.main.get_command(cli.full_app())
    return {name: command for name, command in group.commands.items() if name not in LEFT_OUT}


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
    """Return a command with random options, now and then one word too many."""
    name = rng.choice(sorted(commands())) if rng.random() < 0.5 else "encode"
    options = [param for param in commands()[name].params if param.opts[0].startswith("--")]
    words = [name]
    for option in rng.sample(options, rng.randrange(min(6, len(options)) + 1)):
        words.append(rng.choice(option.opts + option.secondary_opts))
        if not option.is_flag:
            known = OPTIONS.get(option.opts[0], ["1"])
            words.append(rng.choice(known) if rng.random() < 0.5 else value(rng))
    if name == "encode":
        words += ["--dry-run"] if "--broker" not in words else []
        words += ["--model", "fake"] if rng.random() < 0.7 else []
    for argument in (param for param in commands()[name].params if not param.opts[0].startswith("--")):
        known = ARGUMENTS.get(argument.name, ["encode-0123456789"])
        words += [rng.choice(known) if rng.random() < 0.7 else value(rng) for _ in range(rng.choice([1, 1, 1, 0, 2]))]
    if rng.random() < 0.05:
        words.insert(rng.randrange(len(words)), value(rng))
    return words


def test_no_arguments_end_in_a_traceback(folder, monkeypatch):
    """Whatever the options: done, or a short message and an exit code that says what is wrong."""

    def execve(*_: object) -> None:
        print("worker")  # noqa: T201 - the command's only word here
        raise SystemExit(0)

    monkeypatch.setattr(options.os, "execve", execve)
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
