"""What INPUT arguments become, and what is refused before anything is read."""

import gzip
import io
import json
import os
import sys

import pytest
import zstandard

from producer.readers import read_rows
from producer.sources import expand
from tasks.errors import BadInput

KNOWN = ".txt, .jsonl, .ndjson, .csv, .tsv (each also with .gz or .zst) and .parquet"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, so that messages hold short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stdin(monkeypatch):
    """Return a function that puts bytes into stdin."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


def message_of(*inputs, **options):
    """Return what expand says against these inputs, and check that it is one line."""
    with pytest.raises(BadInput) as caught:
        expand(inputs, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", ("txt", None)),
        ("a.jsonl", ("jsonl", None)),
        ("a.ndjson", ("jsonl", None)),
        ("a.csv", ("csv", None)),
        ("a.tsv", ("tsv", None)),
        ("a.parquet", ("parquet", None)),
        ("a.txt.gz", ("txt", "gzip")),
        ("a.ndjson.zst", ("jsonl", "zstd")),
        ("A.JSONL.GZ", ("jsonl", "gzip")),
        ("v1.2.tsv.zst", ("tsv", "zstd")),
    ],
)
def test_the_extension_tells_format_and_compression(folder, name, kind):
    """A source knows how to read itself from its name alone."""
    (folder / name).write_bytes(b"x")
    [source] = expand([name])
    assert (source.name, source.format, source.compression) == (name, *kind)


def test_inputs_keep_their_order_and_may_repeat(folder):
    """The corpus is what was named, as it was named."""
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("x\n")
    assert [source.name for source in expand(["b.txt", "a.txt", "b.txt"])] == ["b.txt", "a.txt", "b.txt"]


def test_a_glob_is_sorted_and_skips_folders(folder):
    """Part files come in the order of their names."""
    for name in ("part-2.txt", "part-10.txt", "part-1.txt"):
        (folder / name).write_text("x\n")
    (folder / "part-3.txt").mkdir()
    assert [source.name for source in expand(["part-*.txt"])] == ["part-1.txt", "part-10.txt", "part-2.txt"]


def test_two_stars_reach_into_folders(folder):
    """A glob with ** finds files at every depth."""
    (folder / "data/deep/er").mkdir(parents=True)
    for name in ("data/a.txt", "data/deep/b.txt", "data/deep/er/c.txt"):
        (folder / name).write_text("x\n")
    names = [source.name for source in expand(["data/**/*.txt"])]
    assert names == ["data/a.txt", "data/deep/b.txt", "data/deep/er/c.txt"]


def test_two_stars_follow_no_links(folder):
    """A link to a folder above would repeat every file forty times, and two would never end."""
    (folder / "data").mkdir()
    (folder / "data/a.txt").write_text("x\n")
    for name in ("up", "again"):
        (folder / "data" / name).symlink_to(folder)
    assert [source.name for source in expand(["**/*.txt"])] == ["data/a.txt"]
    assert [source.name for source in expand([f"{folder}/**/**"])] == [f"{folder}/data/a.txt"]
    assert [source.name for source in expand(["data/up/data/*.txt"])] == ["data/up/data/a.txt"]


def test_two_stars_leave_hidden_folders_and_odd_names_alone(folder):
    """A folder whose own name is a pattern is no pattern."""
    for name in ("d[1]", ".git", "d1"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text("x\n")
    assert [source.name for source in expand(["**/a.txt"])] == ["d1/a.txt", "d[1]/a.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_taken_by_its_name(folder):
    """A file that is there is never taken for a pattern."""
    (folder / "data[1].txt").write_text("x\n")
    assert [source.name for source in expand(["data[1].txt"])] == ["data[1].txt"]


@pytest.mark.parametrize(
    ("extension", "pack"),
    [("", bytes), (".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)],
)
def test_open_gives_the_content_decompressed(folder, extension, pack):
    """Who reads lines does not care how they are stored."""
    (folder / f"a.txt{extension}").write_bytes(pack(b"one\ntwo\n"))
    [source] = expand([f"a.txt{extension}"])
    with source.open() as stream:
        assert list(stream) == [b"one\n", b"two\n"]


def test_the_identity_of_a_file_changes_with_its_content(folder):
    """A file that was written again is not the same corpus."""
    path = folder / "a.txt"
    path.write_text("x\n")
    before = expand(["a.txt"])[0].identity()
    assert before == (str(path.resolve()), 2, path.stat().st_mtime_ns)
    assert json.loads(json.dumps(before)) == list(before)
    os.utime(path, ns=(1, 1))
    assert expand(["a.txt"])[0].identity() != before


@pytest.mark.parametrize("change", [lambda path: path.write_text("x\ny\n"), lambda path: path.unlink()])
def test_a_file_that_changes_while_it_is_read_is_refused(folder, change):
    """The rows would not be those that the job is known by."""
    path = folder / "a.txt"
    path.write_text("x\n")
    rows = read_rows(expand(["a.txt"]))
    assert next(rows).text == "x"
    change(path)
    with pytest.raises(BadInput) as caught:
        list(rows)
    assert str(caught.value) == "a.txt: it changed while it was read; start again when it stays as it is"


@pytest.mark.parametrize("name", ["a\0b.txt", "*\0", "\ud83d.txt", "\ud83d*/**", "**/\0"])
def test_what_no_file_can_be_called_is_refused(folder, name):
    """Python callers can pass what no shell can."""
    assert message_of(name) == f"{name!r}: no file has such a name"


def test_links_in_a_circle_are_refused(folder):
    """The system says why."""
    (folder / "a.txt").symlink_to("b.txt")
    (folder / "b.txt").symlink_to("a.txt")
    assert message_of("a.txt") == "a.txt: cannot be read (Too many levels of symbolic links)"


def test_a_missing_file_is_named(folder):
    """The first question is whether it is there."""
    assert message_of("none.json") == "none.json: no such file"


def test_a_directory_is_answered_with_a_glob(folder):
    """Which of its files are meant is for the caller to say."""
    (folder / "data").mkdir()
    remedy = "name files or a glob such as data/*.jsonl"
    assert message_of("data/") == f"data/ is a directory; {remedy}"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a.json", "unknown extension .json"),
        ("a.json.gz", "unknown extension .json.gz"),
        ("a.parquet.gz", "unknown extension .parquet.gz"),
        ("a.gz", "unknown extension .gz"),
        ("README", "no extension"),
    ],
)
def test_an_unknown_extension_is_answered_with_those_known(folder, name, what):
    """The format is never guessed from the content."""
    (folder / name).write_text("x")
    assert message_of(name) == f"{name}: {what}; penstock reads {KNOWN}"


def test_an_empty_file_is_refused(folder):
    """An empty file is a broken export more often than an intended one."""
    (folder / "a.txt").touch()
    assert message_of("a.txt") == "a.txt is empty (0 bytes); leave it out"


def test_a_file_without_permission_is_refused(folder, monkeypatch):
    """Permissions are asked for before the corpus is read (root has them all, hence the stand-in)."""
    (folder / "a.txt").write_text("x")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert message_of("a.txt") == "a.txt: no permission to read it; chmod or chown it"


def test_a_folder_that_is_a_file_is_reported_with_the_reason_of_the_system(folder):
    """Whatever else stat says is passed on."""
    (folder / "a").write_text("x")
    assert message_of("a/b.txt") == "a/b.txt: cannot be read (Not a directory)"


def test_a_glob_without_match_is_an_error(folder):
    """Nothing to do is not what a glob means."""
    assert message_of("*.jsonl") == "*.jsonl: no file matches this glob"


def test_the_last_input_is_checked_before_the_first_is_read(folder):
    """A typo in the last name is found at once."""
    (folder / "a.txt").write_text("x\n")
    assert message_of("a.txt", "b.txt") == "b.txt: no such file"


def test_an_unknown_scheme_is_answered_with_those_known():
    """A URL that nobody can open is not looked for as a file."""
    known = "s3://, gs://, az://, https://, http://"
    assert message_of("ftp://host/a.txt") == (
        f"ftp://host/a.txt: unknown scheme; penstock reads local files and {known}"
    )


@pytest.mark.parametrize("url", ["s3://bucket", "s3:///a.txt", "https://host/", "http:///a.txt"])
def test_a_url_that_names_no_object_is_refused(url):
    """Half an address is refused before a server is asked."""
    remedy = "name one object, such as s3://bucket/folder/file.jsonl"
    assert message_of(url).endswith(f": not the address of an object; {remedy}")


def test_a_url_with_an_unknown_extension_is_refused_before_a_server_is_asked():
    """No request is needed for that; the query, which may hold a signature, is not shown."""
    message = message_of("https://user:secret@host.invalid/a.json?sig=secret")
    assert message == f"https://host.invalid/a.json: unknown extension .json; penstock reads {KNOWN}"


@pytest.mark.parametrize(
    ("data", "format_"),
    [
        (b'{"text": "x"}\n', "jsonl"),
        (b' \n\t {"text": "x"}', "jsonl"),
        (b'\xef\xbb\xbf{"text": "x"}', "jsonl"),
        (b'["text"]', "txt"),
        (b"one\ntwo\n", "txt"),
        (b"\n\n", "txt"),
        (b"", "txt"),
    ],
)
def test_stdin_is_jsonl_if_it_starts_with_a_brace(stdin, data, format_):
    """A pipe has no extension, and looking at it loses nothing."""
    stdin(data)
    [source] = expand(["-"])
    assert (source.name, source.format, source.compression) == ("stdin", format_, None)
    assert source.identity() is None
    with source.open() as stream:
        assert stream.read() == data


def test_stdin_that_is_blank_for_long_is_text(stdin):
    """The look ahead has an end."""
    stdin(b"\n" * 2**21 + b"{")
    assert expand(["-"])[0].format == "txt"


def test_stdin_may_have_its_format_given(stdin):
    """A given format is believed, compression included, whatever the content looks like."""
    stdin(gzip.compress(b"{x\n"))
    [source] = expand(["-"], stdin_format="txt.gz")
    with source.open() as stream:
        assert stream.read() == b"{x\n"


def test_stdin_stays_open(stdin):
    """Whoever reads it next finds it as usual."""
    stdin(b"x\n")
    with expand(["-"])[0].open() as stream:
        stream.read()
    assert not sys.stdin.buffer.closed


def test_closed_stdin_is_refused(monkeypatch):
    """A service may have none."""
    monkeypatch.setattr(sys, "stdin", None)
    assert message_of("-") == "-: standard input is closed; pipe something into it, or name files"


def test_stdin_named_twice_is_refused():
    """The second reading would find nothing."""
    assert message_of("-", "-") == "-: stdin can be read only once; name it once"


def test_parquet_from_stdin_is_refused():
    """Parquet is read from its end."""
    remedy = "save it to a file and name that"
    assert message_of("-", stdin_format="parquet") == f"stdin: parquet cannot be read from a pipe; {remedy}"


def test_an_unknown_format_of_stdin_is_refused():
    """The same table holds for a given format."""
    assert message_of("-", stdin_format="json") == f"stdin: unknown extension .json; penstock reads {KNOWN}"


def test_a_pipe_by_its_name_has_neither_size_nor_identity(folder):
    """A named pipe is empty by its size and full all the same."""
    os.mkfifo("a.txt")
    [source] = expand(["a.txt"])
    assert source.identity() is None
