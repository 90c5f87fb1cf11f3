"""Settings and messages: any value of a variable, of penstock.yaml or of a message's field."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.errors import UsageError
from tasks.messages import JobSpec, ModelSpec, Receipt, Ticket
from tasks.options import EncodeOptions, explain
from tasks.settings import Settings
from tests.fuzz.cases import REPORT, fuzz, share
from tests.fuzz.commands import SECRET, call, check_line
from tests.fuzz.mutations import mutate, value

#: Names of settings, and some that are none.
NAMES = [*Settings.model_fields, "nonsense", "broker", "model_config"]
#: Documents that YAML readers fall for.
YAMLS = [
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "model: !!python/object/apply:os.system ['echo x']\n",
    "model: !!python/name:os.system\n",
    "model: &m\n  <<: *m\n",
    "? [a, b]\n: c\n",
    "1: 2\n",
    "- a\n- b\n",
    "model: [fake]\n",
    "model: {fake: 1}\n",
    "chunk_rows: 0x10\n",
    "chunk_rows: 1_000\n",
    "chunk_rows: .inf\n",
    "lease_s: .nan\n",
    "state_dir: 2001-01-01\n",
    "model: fake\nmodel: other\n",
    "---\nmodel: fake\n---\nmodel: fake\n",
    "%YAML 9.9\n---\nmodel: fake\n",
    "model: " + "[" * 3000,
    "model: 'fake\n",
    "\tmodel: fake\n",
    "model: fake\x00\n",
    "{" * 500,
]
VALID = b"model: fake\nchunk_rows: 10\nlease_s: 20.5\nstate_dir: /tmp/x\n# a comment\nlog_format: plain\n"


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a corpus."""
    (tmp_path / "corpus.txt").write_text(f"{SECRET}\n")
    return tmp_path


def test_any_value_of_a_variable_is_taken_or_refused(folder):
    """A variable with a wrong value is named in a line; an unknown one changes nothing."""

    def attempt(rng: random.Random) -> bool:
        changes = {}
        for name in rng.sample(NAMES, rng.choice([1, 1, 3])):
            changes[f"PENSTOCK_{name.upper()}"] = _word(rng)
        if rng.random() < 0.1:
            changes[rng.choice(["PENSTOCK_CONFIG", "XDG_STATE_HOME", "HOME", "TMPDIR"])] = _word(rng)
        command = rng.choice([["jobs"], ["encode", "corpus.txt", "--model", "fake", "--dry-run"]])
        changes.pop("PENSTOCK_BROKER_URL", None)
        try:
            return call(*command, folder=folder, environment=changes).check().is_refused
        except BaseException as exc:
            exc.add_note(str(changes))
            raise

    fuzz("settings, variables", 5, attempt)


def test_any_settings_file_is_read_or_refused(folder):
    """Mutated files, and documents that YAML readers fall for: aliases that multiply, tags that run code."""

    def attempt(rng: random.Random) -> bool:
        document = rng.choice(YAMLS).encode() if rng.random() < 0.3 else VALID
        if rng.random() < 0.8:
            document = mutate(document, rng)
        (folder / "penstock.yaml").write_bytes(document)
        command = ["encode", "corpus.txt", "--model", "fake", "--dry-run"]
        return call(*command, folder=folder).check().is_refused

    fuzz("settings, penstock.yaml", 5, attempt)


def _word(rng: random.Random) -> str:
    """Return a value that an environment variable can have, and that starts no server."""
    word = value(rng).replace("\0", "")
    return os.fsdecode(word.encode("utf-8", "surrogatepass"))


def test_any_model_is_parsed_or_refused(tmp_path, monkeypatch):
    """What --model was given becomes a spec whose name and queue are safe, or a line."""
    monkeypatch.chdir(tmp_path)

    def attempt(rng: random.Random) -> bool:
        base = rng.choice(["fake", "pkg:a.b/c", "org/name@main", "./x", "~/x", ""]).encode()
        text = value(rng) if rng.random() < 0.5 else mutate(base, rng).decode("utf-8", "surrogateescape")
        try:
            spec = ModelSpec.parse(text)
        except UsageError as exc:
            check_line(exc)
            return True
        assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
        assert spec.queue("encode").startswith("penstock.encode.")
        assert spec.engine == "fake" or Path(spec.name).is_absolute() or ".." not in Path(spec.name).parts
        return False

    fuzz("messages, --model", 4, attempt)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SPEC = JobSpec(
    job="encode-0123",
    model=ModelSpec.parse("fake"),
    options=EncodeOptions(prompt="query: "),
    store_id="s",
    key="k",
    keep_fields=("a",),
)
MESSAGES = [SPEC, Ticket(version=1, job="encode-0123", chunk=3), Receipt(rows=1), SPEC.model]


@settings(max_examples=share(2))
@given(message=st.sampled_from(MESSAGES), data=st.data())
def test_a_message_with_any_field_is_taken_whole_or_refused(message, data):
    """A field of any value, or one too many: what is taken can be written and read again, and names no path."""
    fields = json.loads(message.model_dump_json())
    name = data.draw(st.sampled_from([*fields, "extra"]))
    fields[name] = data.draw(JSON)
    check_message(type(message), json.dumps(fields))


def test_a_message_with_mutated_bytes_is_taken_whole_or_refused():
    """The same of bytes, as somebody else's Redis may hold them."""

    def attempt(rng: random.Random) -> bool:
        message = rng.choice(MESSAGES)
        data = mutate(message.model_dump_json().encode(), rng)
        return check_message(type(message), data)

    fuzz("messages, bytes", 4, attempt)


def check_message(kind, data) -> bool:
    """Return whether a message is refused; fail if it is neither that nor safe."""
    try:
        message = kind.model_validate_json(data)
    except ValidationError as exc:
        check_line(UsageError(explain(exc)))
        refused = True
    else:
        refused = False
        assert kind.model_validate_json(message.model_dump_json()) == message
        job = getattr(message, "job", "encode-0123")
        assert not set(job) & set("/.:{}*\n\0 ")
    if isinstance(data, str):
        REPORT.add("messages, fields", refused=refused)
    return refused


@settings(max_examples=share(2))
@given(st.dictionaries(st.sampled_from([*EncodeOptions.model_fields, "other"]), JSON, max_size=4))
def test_any_options_are_taken_or_refused(values):
    """Whatever a Python caller passes becomes options, or one line that names the option."""
    try:
        options = EncodeOptions.of(**values)
    except UsageError as exc:
        check_line(exc)
        REPORT.add("messages, options", refused=True)
    else:
        assert EncodeOptions.model_validate_json(options.model_dump_json()) == options
        REPORT.add("messages, options", refused=False)
