"""What becomes a row, format by format, and what is refused with its place."""

import codecs
import csv
import datetime as dt
import decimal
import gzip
import io
import itertools
import json
import sys
import uuid
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from producer import formats
from producer.readers import Row, read_items, read_rows
from producer.sources import KINDS, Source
from tasks.errors import BadInput, StoreUnavailable

#: Any text that UTF-8 can encode: NUL, line ends, U+2028 and quotes among them.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))

PACKS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}

NOT_JSON = "each line must be one JSON object"
NO_PARQUET = "Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file"
FOREIGN_TIME = "holds a value that Python cannot express; cast it to string"
BAD_CELL = "a cell with quotes or line breaks stands in quotes, and its own quotes are doubled"


def source_of(name: str, data: bytes) -> Source:
    """Return a source with bytes of memory, its kind by its name."""
    kind = max((extension for extension in KINDS if name.endswith(extension)), key=len)
    return Source(name, *KINDS[kind], lambda: io.BytesIO(data))


def read(name: str, data: bytes, **options) -> list[Row]:
    """Read the rows of a file with these bytes."""
    return list(read_rows([source_of(name, data)], **options))


def message_of(name: str, data: bytes, **options) -> str:
    """Return what reading says against these bytes, and check that it is one line."""
    with pytest.raises(BadInput) as caught:
        read(name, data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def jsonl_of(records) -> bytes:
    """Write records as jsonl, with characters and not escapes."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def csv_of(records, delimiter=",") -> bytes:
    """Write records that have the same fields as csv, as Python does."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().encode()


def parquet_of(table, **options) -> bytes:
    """Write a table, or a dict of columns, as parquet."""
    out = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), out, **options)
    return out.getvalue()


WRITERS = {
    "jsonl": jsonl_of,
    "csv": csv_of,
    "tsv": lambda records: csv_of(records, "\t"),
    "parquet": lambda records: parquet_of(pa.Table.from_pylist(records)),
}
FILES = [(format_, pack) for format_ in ("jsonl", "csv", "tsv") for pack in PACKS] + [("parquet", "")]


class TestEveryFormat:
    """What holds whatever the corpus is stored in."""

    @pytest.mark.parametrize(("format_", "pack"), FILES)
    @given(texts=st.lists(TEXTS, min_size=1, max_size=20))
    def test_texts_come_back_as_they_were_written(self, format_, pack, texts):
        """Same texts, same order, whatever characters they hold."""
        data = PACKS[pack](WRITERS[format_]([{"text": text} for text in texts]))
        rows = read(f"a.{format_}{pack}", data)
        assert rows == [Row(None, text, None) for text in texts]

    @pytest.mark.parametrize("pack", PACKS)
    @given(texts=st.lists(TEXTS.filter(lambda text: "\n" not in text), min_size=1, max_size=20))
    def test_lines_of_txt_come_back_as_they_were_written(self, pack, texts):
        """Only a line feed ends a line; one carriage return before it belongs to it."""
        data = codecs.BOM_UTF8 + "".join(text + "\r\n" for text in texts).encode()
        assert [row.text for row in read(f"a.txt{pack}", PACKS[pack](data))] == texts

    @pytest.mark.parametrize(("format_", "pack"), FILES)
    def test_ids_and_kept_fields_come_along(self, format_, pack):
        """The id is found by its usual name, kept values stand in the order asked for."""
        records = [{"id": "a", "text": "one", "lang": "de"}, {"id": "b", "text": "two", "lang": "fr"}]
        data = PACKS[pack](WRITERS[format_](records))
        rows = read(f"a.{format_}{pack}", data, keep_fields=["lang", "none", "id"])
        assert rows == [Row("a", "one", ("de", None, "a")), Row("b", "two", ("fr", None, "b"))]

    @pytest.mark.parametrize(("format_", "pack"), FILES)
    def test_fields_may_have_other_names(self, format_, pack):
        """Text and id are where the caller says; a file without the id column has rows without id."""
        data = PACKS[pack](WRITERS[format_]([{"id": "a", "key": "k", "body": "one"}]))
        name = f"a.{format_}{pack}"
        assert read(name, data, text_field="body", id_field="key") == [Row("k", "one", None)]
        assert read(name, data, text_field="body", id_field="none") == [Row(None, "one", None)]

    @pytest.mark.parametrize("format_", ["txt", "jsonl", "csv", "tsv", "parquet"])
    def test_a_text_of_ten_megabytes_is_a_row_like_any_other(self, format_):
        """A whole book in one record is no fault."""
        texts = ["é" * 5_000_000, "short"]
        data = "\n".join(texts).encode() if format_ == "txt" else WRITERS[format_]([{"text": t} for t in texts])
        assert [row.text for row in read(f"a.{format_}", data)] == texts

    @pytest.mark.parametrize("pack", [".gz", ".zst"])
    def test_packed_parts_may_follow_each_other(self, pack):
        """Tools append to packed files by writing a second part."""
        data = PACKS[pack](b"one\n") + PACKS[pack](b"two\n")
        assert [row.text for row in read(f"a.txt{pack}", data)] == ["one", "two"]

    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("a.txt", b"\xef\xbb\xbf"),
            ("a.jsonl", b"\n  \n\r\n"),
            ("a.csv", b"id,text\r\n"),
            ("a.csv", b"\n\n"),
            ("a.tsv", b"id\ttext\n"),
            ("a.parquet", parquet_of({"text": pa.array([], pa.string())})),
            ("a.txt.gz", gzip.compress(b"")),
            ("stdin.txt", b""),
        ],
    )
    def test_a_file_without_records_is_refused(self, name, data):
        """A header alone is a broken export more often than a corpus."""
        assert message_of(name, data) == f"{name} holds no records"

    def test_sources_follow_each_other_and_are_opened_one_by_one(self):
        """The second file is opened when the first is read to its end."""
        opened = []

        def opener(name):
            opened.append(name)
            return io.BytesIO(f"text of {name}\n".encode())

        sources = [Source(name, "txt", None, lambda name=name: opener(name)) for name in ("a", "b")]
        rows = read_rows(sources)
        assert next(rows).text == "text of a"
        assert opened == ["a"]
        assert [row.text for row in rows] == ["text of b"]

    def test_a_stream_that_is_left_closes_its_file(self):
        """Whoever stops early leaves no open file behind."""
        stored = io.BytesIO(b"one\ntwo\n")
        rows = read_rows([Source("a.txt", "txt", None, lambda: stored)])
        next(rows)
        rows.close()
        del rows
        assert stored.closed

    @pytest.mark.parametrize(("format_", "pack"), FILES)
    def test_an_error_holds_no_text(self, format_, pack):
        """A message may be logged, a record may not."""
        data = PACKS[pack](WRITERS[format_]([{"id": "secret", "body": "secret"}]))
        assert "secret" not in message_of(f"a.{format_}{pack}", data)


class TestTxt:
    """A line is a record."""

    @pytest.mark.parametrize(
        ("data", "texts"),
        [
            (b"one\ntwo\n", ["one", "two"]),
            (b"one\ntwo", ["one", "two"]),
            (b"one\n\ntwo\n\n", ["one", "", "two", ""]),
            (b"\n", [""]),
            (b"one\r\ntwo\r\r\nthree\rfour\r", ["one", "two\r", "three\rfour"]),
            (b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n", ["one", "\ufefftwo"]),
            ("a\u2028b\x0bc\x0cd\x85e\x1cf\x00g\n".encode(), ["a\u2028b\x0bc\x0cd\x85e\x1cf\x00g"]),
        ],
    )
    def test_only_a_line_feed_ends_a_line(self, data, texts):
        """An empty line is an empty text, the end of the file no line of its own."""
        assert [row.text for row in read("a.txt", data)] == texts

    def test_kept_fields_of_txt_are_refused_before_any_file_is_read(self):
        """The second file is looked at although the first is never opened."""
        sources = [source_of("a.jsonl", b""), source_of("b.txt", b"")]
        with pytest.raises(BadInput) as caught:
            read_rows(sources, keep_fields=["lang"])
        assert str(caught.value) == (
            "b.txt: lines of text have no fields; leave out --keep-fields, or use jsonl, csv or parquet"
        )


class TestLanguages:
    """The field with the language of each text."""

    RECORDS = (
        {"text": "one", "lang": "eng_Latn"},
        {"text": "deux", "lang": "fr"},
        {"text": "tatu", "lang": None},
        {"text": "quatre", "lang": ""},
    )

    @pytest.mark.parametrize(("format_", "pack"), [found for found in FILES if found[0] != "txt"])
    def test_every_format_has_them(self, format_, pack):
        """Null, an empty cell and a field that is not there are no language."""
        records = [*self.RECORDS, {"text": "five", "lang": None}]
        rows = read(f"a.{format_}{pack}", PACKS[pack](WRITERS[format_](records)), language_field="lang")
        assert [row.language for row in rows] == ["eng_Latn", "fr", "", "", ""]
        assert [row.text for row in rows] == [record["text"] for record in records]

    def test_items_have_them(self):
        """Not a number is what data frames have for nothing."""
        items = [*self.RECORDS, {"text": "five"}, {"text": "six", "lang": float("nan")}]
        assert [row.language for row in read_items(items, language_field="lang")] == ["eng_Latn", "fr", "", "", "", ""]

    def test_without_the_argument_no_field_is_one(self):
        """A field of that name may be anything."""
        assert read("a.jsonl", b'{"text": "x", "language": 7, "lang": "no language!"}') == [Row(None, "x", None)]

    def test_a_field_may_be_kept_too(self):
        """It is read once."""
        data = parquet_of({"text": ["x"], "lang": ["fr"]})
        assert read("a.parquet", data, language_field="lang", keep_fields=["lang"]) == [Row(None, "x", ("fr",), "fr")]

    @pytest.mark.parametrize(
        ("value", "flaw"),
        [
            ("7", "is a number; a language is a string such as eng_Latn"),
            ('["fr"]', "is a list; a language is a string such as eng_Latn"),
            *(
                (json.dumps(value), "does not hold the name of a language: letters, digits, - and _, at most 32")
                for value in ("a sentence", " fr", "fr\n", "-fr", "x" * 33, "fran\u00e7ais")
            ),
        ],
    )
    def test_what_is_no_language_is_named_by_its_line_and_not_shown(self, value, flaw):
        """The wrong field may hold texts."""
        data = b'{"text": "x", "lang": "fr"}\n{"text": "x", "lang": ' + value.encode() + b"}"
        message = message_of("a.jsonl", data, language_field="lang")
        assert message.startswith(f'a.jsonl, line 2: field "lang" {flaw}')
        assert "sentence" not in message

    def test_lines_of_text_have_none(self):
        """That is said before anything is read."""
        with pytest.raises(BadInput) as caught:
            read_rows([source_of("a.jsonl", b""), source_of("b.txt", b"")], language_field="lang")
        assert str(caught.value) == (
            "b.txt: lines of text have no fields; leave out --language-field (--language says that of all), or use "
            "jsonl, csv or parquet"
        )

    @pytest.mark.parametrize("item", ["a text", ("id", "a text")])
    def test_items_without_fields_have_none(self, item):
        """Neither a string nor a pair."""
        with pytest.raises(BadInput, match=r"^item 0: .* has no fields; (.*)$") as caught:
            list(read_items([item], language_field="lang", keep_fields=["n"]))
        remedy = "leave out keep_fields and language_field (language says that of all), or pass dicts"
        assert str(caught.value).endswith(f"; {remedy}")


class TestEndlessRecords:
    """What has no end is refused before it fills the memory."""

    @pytest.fixture(autouse=True)
    def _limit(self, monkeypatch):
        monkeypatch.setattr(formats, "MAX_RECORD_BYTES", 100)

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv"])
    def test_a_line_without_end_is_named_by_its_number(self, name):
        """Such as /dev/zero, or a packed file of a few bytes that unpacks to all the disk."""
        data = b'{"text": "x"}\n' if name == "a.jsonl" else b"text\n"
        line = "longer than 64 MiB; a record takes one line"
        assert message_of(name, data + bytes(200)) == f"{name}, line 2: {line}"
        assert message_of(name, codecs.BOM_UTF8 + bytes(200)) == f"{name}, line 1: {line}"

    def test_a_quote_without_end_is_named_by_the_line_where_its_record_began(self):
        """All lines after it would be one cell."""
        data = b'text\none\n"two' + b"\nand so on" * 20
        assert message_of("a.csv", data) == (
            "a.csv, line 3: a record of more than 64 MiB; a closing quote may be missing"
        )

    def test_many_records_may_be_longer_together(self):
        """The limit is for one."""
        assert len(read("a.csv", b"text\n" + b"0123456789\n" * 50)) == 50


class TestEncoding:
    """UTF-8 and nothing else."""

    @pytest.mark.parametrize(
        ("name", "data", "where"),
        [
            ("a.txt", b"one\ncaf\xe9 x\n", "a.txt, line 2: not UTF-8 (byte 0xe9 at offset 3)"),
            ("a.txt", "one".encode("utf-16"), "a.txt, line 1: not UTF-8 (byte 0xff at offset 0)"),
            ("a.jsonl", b'\n{"text": "\xc3"}\n', "a.jsonl, line 2: not UTF-8 (byte 0xc3 at offset 10)"),
            ("a.csv", b'text\n"one\n\xff"\n', "a.csv, line 3: not UTF-8 (byte 0xff at offset 0)"),
            ("a.tsv", b"text\xff\none\n", "a.tsv, line 1: not UTF-8 (byte 0xff at offset 4)"),
        ],
    )
    def test_another_encoding_is_named_by_line_and_byte(self, name, data, where):
        """The offset counts from the start of the line, in bytes."""
        assert message_of(name, data) == f"{where}; convert it, for example with iconv -f latin1 -t utf-8"

    def test_parquet_with_another_encoding_is_named_by_column(self):
        """Arrow does not look at the bytes of a string column, so this is found on the way to a row."""
        broken = pa.array([b"one", b"caf\xe9"]).view(pa.string())
        assert message_of("a.parquet", parquet_of({"text": broken})) == (
            'a.parquet, rows 0 to 1: column "text" is not UTF-8'
        )

    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
    def test_a_byte_order_mark_belongs_to_no_field(self, name):
        """Windows programs write one before the header."""
        data = b"\xef\xbb\xbf" + (b'{"text": "x"}\n' if name == "a.jsonl" else b"text\r\nx\r\n")
        assert read(name, data) == [Row(None, "x", None)]

    @pytest.mark.parametrize(
        ("record", "field", "half"),
        [
            (r'{"text": "a \ud800 b"}', "text", "U+D800"),
            (r'{"text": "\uDFFF"}', "text", "U+DFFF"),
            (r'{"text": "x", "id": "\udc00"}', "id", "U+DC00"),
            (r'{"text": "x", "kept": ["\ud83d"]}', "kept", "U+D83D"),
            (r'{"text": "x", "kept": {"\ud83d": 1}}', "kept", "U+D83D"),
        ],
    )
    def test_half_a_surrogate_pair_is_refused_with_its_line(self, record, field, half):
        """It can be written in JSON and nowhere else; a whole pair is a character."""
        data = b'{"text": "\\ud83d\\ude00"}\n' + record.encode()
        assert message_of("a.jsonl", data, keep_fields=["kept"]) == (
            f'a.jsonl, line 2: field "{field}" holds a lone surrogate ({half}), which is no character; repair it'
        )


class TestJsonl:
    """A line is an object."""

    @pytest.mark.parametrize(
        ("value", "id_"),
        [
            ('"a"', "a"),
            ('""', ""),
            ("7", "7"),
            ("-12345678901234567890", "-12345678901234567890"),
            ("1.50", "1.5"),
            ("true", "true"),
            ("null", None),
        ],
    )
    def test_an_id_is_a_string_in_the_end(self, value, id_):
        """Numbers keep their digits, null is no id."""
        assert read("a.jsonl", f'{{"text": "x", "id": {value}}}'.encode()) == [Row(id_, "x", None)]

    def test_kept_values_are_any_json(self):
        """Nested values and nulls come along, a missing field is null."""
        line = b'{"text": "x", "a": {"b": [1, 2.5, null]}, "c": null}'
        assert read("a.jsonl", line, keep_fields=["a", "c", "d"])[0].kept == (
            {"b": [1, 2.5, None]},
            None,
            None,
        )

    def test_blank_lines_are_skipped_and_counted(self):
        """Line numbers are those of an editor."""
        data = b'\n{"text": "x"}\r\n \t\n{"text": 1}\n'
        assert message_of("a.jsonl", data) == 'a.jsonl, line 4: field "text" is a number, not a string'

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"text": "x"', "not valid JSON (Expecting ',' delimiter at column 13)"),
            ('{"text": "x', "not valid JSON (Unterminated string starting at column 10)"),
            ('{"text": "x"} {}', "not valid JSON (Extra data at column 15)"),
            ("plain", "not valid JSON (Expecting value at column 1)"),
            ('{"text": "x", "n": NaN}', "not valid JSON (NaN is no JSON number)"),
            ('{"text": "x", "n": ' + "9" * 5000 + "}", "not valid JSON (a number is too long)"),
            ("[" * 100_000, "not valid JSON (nested too deeply)"),
            ('["text"]', "a list, not an object"),
            ('"text"', "a string, not an object"),
            ("null", "null, not an object"),
        ],
    )
    def test_a_line_that_is_no_object_is_refused_with_its_number(self, line, reason):
        """The message says where to look and what a line has to be."""
        data = b'{"text": "x"}\n' * 6 + line.encode()
        assert message_of("a.jsonl", data) == f"a.jsonl, line 7: {reason}; {NOT_JSON}"

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("{}", 'no field "text"; the record has no fields'),
            ('{"id": 1, "body": "x"}', 'no field "text"; the record has "id", "body"'),
            ('{"id": 1, "text": null}', 'null in field "text"; the record has "id", "text"'),
        ],
    )
    def test_a_record_without_text_is_answered_with_its_fields(self, line, reason):
        """The remedy is to name the right one."""
        assert message_of("a.jsonl", line.encode()) == (
            f"a.jsonl, line 1: {reason}; name the one with the text with --text-field"
        )

    @pytest.mark.parametrize(
        ("value", "kind"),
        [("1.5", "a number"), ("true", "a boolean"), ("[]", "a list"), ("{}", "an object")],
    )
    def test_a_text_that_is_no_string_is_refused(self, value, kind):
        """A number in the text field is a wrong field more often than a text."""
        assert message_of("a.jsonl", f'{{"text": {value}}}'.encode()) == (
            f'a.jsonl, line 1: field "text" is {kind}, not a string'
        )

    @pytest.mark.parametrize(("value", "kind"), [("[1]", "a list"), ("{}", "an object")])
    def test_an_id_that_is_no_scalar_is_refused(self, value, kind):
        """There is no one way to write it as a string."""
        assert message_of("a.jsonl", f'{{"text": "x", "id": {value}}}'.encode()) == (
            f'a.jsonl, line 1: field "id" is {kind}; an id is a string or a number'
        )

    def test_a_number_too_large_for_a_float_cannot_be_kept(self):
        """JSON can write it, but nobody can read it back."""
        assert message_of("a.jsonl", b'{"text": "x", "n": [1e999]}', keep_fields=["n"]) == (
            'a.jsonl, line 1: field "n" holds an infinite number, which JSON cannot express'
        )

    def test_a_value_that_is_nested_too_deeply_cannot_be_kept(self, request):
        """Python walks it by recursion, whose limit torch's compiler raises for the whole process."""
        request.addfinalizer(partial(sys.setrecursionlimit, sys.getrecursionlimit()))
        sys.setrecursionlimit(1000)
        line = '{"text": "x", "n": ' + "[" * 700 + "]" * 700 + "}"
        assert message_of("a.jsonl", line.encode(), keep_fields=["n"]) == (
            'a.jsonl, line 1: field "n" is nested too deeply'
        )

    def test_many_and_long_field_names_are_cut(self):
        """Names that are data fill no log; line feeds in them break no line."""
        record = {"a\nb": 1, "x" * 50: 1, **{f"f{number}": 1 for number in range(30)}}
        names = [r'"a\nb"', f'"{"x" * 40}…"', *(f'"f{number}"' for number in range(18))]
        assert message_of("a.jsonl", jsonl_of([record])) == (
            f'a.jsonl, line 1: no field "text"; the record has {", ".join(names)} and 12 more; '
            "name the one with the text with --text-field"
        )


class TestCsv:
    """A header, then a record a row."""

    def test_quoted_cells_hold_line_breaks_and_delimiters(self):
        """A record may take several lines; CRLF inside a cell stays."""
        data = b'id,text\r\n1,"one, ""two""\r\nthree"\r\n\r\n2,four\r\n'
        assert read("a.csv", data) == [Row("1", 'one, "two"\r\nthree', None), Row("2", "four", None)]

    def test_an_empty_cell_is_an_empty_text_but_no_id(self):
        """Csv has no null; an id that nobody wrote is none."""
        assert read("a.csv", b"id,text,n\n,,\n", keep_fields=["n"]) == [Row(None, "", ("",))]

    def test_a_tab_separates_in_tsv(self):
        """A comma is a character there."""
        assert read("a.tsv", b"id\ttext\n1\ta, b\n") == [Row("1", "a, b", None)]

    @pytest.mark.parametrize(
        ("name", "data", "reason"),
        [
            ("a.csv", b"id,text\n1,a\n2,b,c\n", "line 3: 3 columns, and the header has 2"),
            ("a.csv", b'id,text\n1,"a\nb"\n\n2\n', "line 5: 1 columns, and the header has 2"),
            ("a.tsv", b"id\ttext\n1,a\n", "line 2: 1 columns, and the header has 2"),
            ("a.csv", b'text\na\n"b\nc\n', f"line 3: not valid csv (unexpected end of data); {BAD_CELL}"),
            ("a.csv", b'text\n"a" b\n', f"line 2: not valid csv (',' expected after '\"'); {BAD_CELL}"),
            (
                "a.tsv",
                b"text\na\rb\n",
                f"line 2: not valid tsv (new-line character seen in unquoted field); {BAD_CELL}",
            ),
        ],
    )
    def test_a_broken_record_is_refused_with_its_first_line(self, name, data, reason):
        """What the quotes meant is never guessed."""
        assert message_of(name, data) == f"{name}, {reason}"

    @pytest.mark.parametrize("cell", ["four short little words", "x" * 41, "一" * 41])
    def test_a_record_in_the_place_of_the_header_is_not_shown(self, cell):
        """No message may hold a record's text."""
        line = 'a.csv: no field "text"; its first line, of 2 columns, looks like a record; put a header above it'
        assert message_of("a.csv", f"1,{cell}\n2,two\n".encode()) == line

    def test_a_header_without_the_text_field_is_refused(self):
        """It is shown, so that the right name can be chosen."""
        assert message_of("a.csv", b"id,body\n1,a\n") == (
            'a.csv: no field "text"; the header has "id", "body"; name the one with the text with --text-field'
        )

    @pytest.mark.parametrize("header", [b"text,text,id,n", b"text,id,id,n", b"text,id,n,n"])
    def test_a_header_with_a_used_field_twice_is_refused(self, header):
        """Which one is meant is not known; fields that are not used may repeat."""
        message = message_of("a.csv", header + b"\n1,2,3,4\n", keep_fields=["n"])
        assert message.endswith("twice; rename one")
        assert read("a.csv", b"text,x,x\n1,2,3\n") == [Row(None, "1", None)]


class TestParquet:
    """Columns of any type but the text."""

    @pytest.mark.parametrize(
        "type_",
        [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
        ids=str,
    )
    def test_every_type_of_string_is_a_text(self, type_):
        """Which one a writer chose is of no interest."""
        data = parquet_of({"text": pa.array(["a", "b", "a"], type_)})
        assert [row.text for row in read("a.parquet", data)] == ["a", "b", "a"]

    @pytest.mark.parametrize(
        ("values", "ids"),
        [
            (pa.array([1, 2**40, None]), ["1", str(2**40), None]),
            (pa.array([1.5, float("nan"), None]), ["1.5", None, None]),
            (pa.array([True, False, None]), ["true", "false", None]),
            (pa.array([dt.date(2024, 5, 1), None, None]), ["2024-05-01", None, None]),
            (pa.array([decimal.Decimal("1.20"), None, None]), ["1.20", None, None]),
        ],
        ids=["int", "float", "bool", "date", "decimal"],
    )
    def test_an_id_of_any_type_becomes_a_string(self, values, ids):
        """As it would look in JSON, without the quotes."""
        rows = read("a.parquet", parquet_of({"text": ["a", "b", "c"], "id": values}))
        assert [row.id for row in rows] == ids

    @pytest.mark.parametrize(
        ("values", "kept"),
        [
            (pa.array([dt.datetime(2024, 5, 1, 12)], pa.timestamp("us")), "2024-05-01T12:00:00"),  # noqa: DTZ001
            (pa.array([1], pa.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
            (pa.array([1], pa.timestamp("ns", "UTC")), "1970-01-01T00:00:00.000000001Z"),
            (pa.array([0], pa.timestamp("s", "UTC")), "1970-01-01T00:00:00+00:00"),
            (pa.array([dt.time(12, 30)]), "12:30:00"),
            (pa.array([decimal.Decimal("1.20")]), "1.20"),
            (pa.array([float("nan")]), None),
            (pa.array([[1, None]]), [1, None]),
            (pa.array([{"a": dt.date(2024, 5, 1)}]), {"a": "2024-05-01"}),
            (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), [["k", 1]]),
            (pa.array([uuid.UUID(int=7).bytes], pa.uuid()), str(uuid.UUID(int=7))),
        ],
        ids=lambda value: str(value.type) if isinstance(value, pa.Array) else None,
    )
    def test_kept_values_are_json_in_the_end(self, values, kept):
        """Times are ISO 8601 with all their digits, decimals keep theirs."""
        [row] = read("a.parquet", parquet_of({"text": ["x"], "n": values}), keep_fields=["n"])
        assert row.kept == (kept,)
        assert json.loads(json.dumps(kept, allow_nan=False)) == kept

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            (
                pa.array([None, b"x"]),
                'row 1: field "n" holds a value of type bytes, which JSON cannot express',
            ),
            (
                pa.array([0.5, float("-inf")]),
                'row 1: field "n" holds an infinite number, which JSON cannot express',
            ),
            (
                pa.array([None, dt.timedelta(1)]),
                'row 1: field "n" holds a value of type timedelta, which JSON cannot express',
            ),
            (
                pa.array([0, 2**55], pa.timestamp("ms")),
                f'rows 0 to 1: column "n" of type timestamp[ms] {FOREIGN_TIME}',
            ),
        ],
        ids=["bytes", "inf", "duration", "year"],
    )
    def test_a_value_that_json_lacks_is_refused(self, values, reason):
        """The row number counts from 0, as it does in the result."""
        data = parquet_of({"text": ["x", "y"], "n": values})
        assert message_of("a.parquet", data, keep_fields=["n"]) == f"a.parquet, {reason}"

    @pytest.mark.parametrize("type_", [pa.int64(), pa.binary(), pa.list_(pa.string())], ids=str)
    def test_a_text_column_of_another_type_is_refused(self, type_):
        """The columns that could be meant are listed."""
        data = parquet_of({"text": pa.array([None], type_), "body": ["x"], "title": ["x"]})
        assert message_of("a.parquet", data) == (
            f'a.parquet: column "text" is of type {data_type(type_)}, not string; string columns: '
            '"body", "title"; name one with --text-field'
        )

    def test_a_file_without_the_text_column_is_refused(self):
        """Its columns are listed."""
        assert message_of("a.parquet", parquet_of({"id": [1], "body": ["x"]})) == (
            'a.parquet: no field "text"; the file has "id", "body"; name the one with the text with --text-field'
        )

    def test_a_column_that_is_there_twice_is_refused(self):
        """Which one is meant is not known."""
        table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
        assert message_of("a.parquet", parquet_of(table)) == ('a.parquet: the file has column "text" twice; rename one')

    def test_a_text_that_is_null_is_refused_with_its_row(self):
        """Rows are counted across batches and row groups."""
        data = parquet_of({"text": ["x"] * 1000 + [None]}, row_group_size=300)
        assert message_of("a.parquet", data).startswith('a.parquet, row 1000: null in field "text"; ')

    def test_columns_that_are_not_used_are_not_read(self):
        """A broken column costs nothing where nobody asks for it."""
        data = parquet_of({"text": ["x"], "n": [b"\x00"]})
        assert read("a.parquet", data) == [Row(None, "x", None)]


def data_type(type_: pa.DataType) -> str:
    """Return an Arrow type as parquet gives it back."""
    return str(pq.read_schema(io.BytesIO(parquet_of({"a": pa.array([], type_)}))).field("a").type)


class TestBrokenFiles:
    """Bytes that are not what the name says."""

    @pytest.mark.parametrize(
        ("name", "data", "reason"),
        [
            ("a.txt.gz", b"plain text", "gzip data (zlib inflate failed: incorrect header check)"),
            ("a.jsonl.gz", gzip.compress(b'{"text": "x"}')[:-4], "gzip data (Truncated compressed stream)"),
            ("a.csv.zst", b"plain text", "zstd data (ZSTD decompress failed: Unknown frame descriptor)"),
            ("a.txt.zst", PACKS[".zst"](b"x" * 99)[:-2], "zstd data (Truncated compressed stream)"),
            (
                "a.parquet",
                b"PAR1 and then nothing of the kind",
                f"parquet data ({NO_PARQUET})",
            ),
        ],
    )
    def test_broken_data_is_named_by_its_file(self, name, data, reason):
        """A torn download says so."""
        assert message_of(name, data) == f"{name}: broken {reason}; copy or write it again"

    @pytest.mark.parametrize("cut", range(0, 700, 50))
    def test_torn_parquet_is_refused_wherever_it_is_torn(self, cut):
        """No piece of a file is taken for the whole."""
        data = parquet_of({"text": [str(number) for number in range(100)]})
        assert message_of("a.parquet", data[:cut]).startswith("a.parquet: broken parquet data (")

    @pytest.mark.parametrize("pack", [".gz", ".zst"])
    def test_torn_packed_text_is_never_taken_for_the_whole(self, pack):
        """The rows before the tear are given, then the error."""
        data = PACKS[pack]("".join(f"{number * 7919}\n" for number in range(9999)).encode())
        rows = read_rows([source_of(f"a.txt{pack}", data[: len(data) // 2])])
        with pytest.raises(BadInput, match="Truncated compressed stream"):
            list(rows)

    @pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.parquet"])
    def test_a_disk_that_fails_is_named_with_the_reason_of_the_system(self, name):
        """It is not the file's fault."""
        with pytest.raises(BadInput) as caught:
            list(read_rows([failing(name, OSError(5, "Input/output error"))]))
        assert str(caught.value) == f"{name}: cannot be read (Input/output error)"

    @pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.txt.gz", "a.txt.zst", "a.parquet"])
    def test_a_server_that_fails_is_no_bad_input(self, name):
        """The fault of a network passes through decoders as what it is."""
        with pytest.raises(StoreUnavailable, match=r"^no answer$"):
            list(read_rows([failing(name, StoreUnavailable("no answer"))]))


def failing(name: str, exc: Exception) -> Source:
    """Return a source whose bytes raise at the first read."""

    class Failing(io.BytesIO):
        def readinto(self, *_):
            raise exc

        def read(self, *_):
            raise exc

    kind = KINDS[name.removeprefix("a")]
    return Source(name, *kind, lambda: Failing(bytes(100)))


class TestItems:
    """Python iterables in place of files."""

    def test_strings_mappings_and_pairs_are_records(self):
        """They may be mixed."""
        items = ["one", {"id": 7, "text": "two"}, ("c", "three"), (4, "four"), (None, "five")]
        ids = [None, "7", "c", "4", None]
        assert [row.id for row in read_items(items)] == ids
        assert [row.text for row in read_items(items)] == ["one", "two", "three", "four", "five"]

    def test_fields_have_the_names_that_are_given(self):
        """As in files."""
        items = [{"key": "k", "body": "x", "n": 1}]
        rows = read_items(items, text_field="body", id_field="key", keep_fields=["n", "none"])
        assert list(rows) == [Row("k", "x", (1, None))]

    def test_numbers_of_numpy_are_numbers(self):
        """Rows often come from an array."""
        [row] = read_items([{"text": "x", "id": np.int64(7), "n": np.float32(0.5)}], keep_fields=["n"])
        assert row == Row("7", "x", (0.5,))
        assert type(row.kept[0]) is float

    def test_an_endless_iterable_is_read_as_far_as_asked(self):
        """Nothing is read ahead."""
        rows = read_items(str(number) for number in itertools.count())
        assert [next(rows).text for _ in range(3)] == ["0", "1", "2"]

    @pytest.mark.parametrize(
        ("item", "reason"),
        [
            (7, "a number, not a string, a dict or an (id, text) pair"),
            (None, "null, not a string, a dict or an (id, text) pair"),
            (b"x", "a value of type bytes, not a string, a dict or an (id, text) pair"),
            (["a", "b"], "a list, not a string, a dict or an (id, text) pair"),
            (("a", "b", "c"), "a value of type tuple, not a string, a dict or an (id, text) pair"),
            (("a", 7), "a value of type tuple, not a string, a dict or an (id, text) pair"),
            (([], "x"), 'field "id" is a list; an id is a string or a number'),
            ("\ud800", 'field "text" holds a lone surrogate (U+D800), which is no character; repair it'),
            ({"text": b"x"}, 'field "text" is a value of type bytes, not a string'),
            (
                {"body": "x"},
                'no field "text"; the record has "body"; name the one with the text with text_field',
            ),
            ({"text": "x", "id": {1}}, 'field "id" holds a value of type set, which JSON cannot express'),
        ],
    )
    def test_an_item_that_is_no_record_is_refused_with_its_number(self, item, reason):
        """Items count from 0, as a list does."""
        with pytest.raises(BadInput) as caught:
            list(read_items(["x", "y", item]))
        assert str(caught.value) == f"item 2: {reason}"

    @pytest.mark.parametrize("item", ["x", ("a", "x")])
    def test_kept_fields_need_mappings(self, item):
        """A bare text has no fields."""
        with pytest.raises(BadInput, match=r"^item 0: .* has no fields; leave out keep_fields, or pass dicts$"):
            list(read_items([item], keep_fields=["n"]))

    def test_an_empty_iterable_is_refused_at_its_end(self):
        """A generator shows only then that it is empty."""
        rows = read_items(iter([]))
        with pytest.raises(BadInput, match=r"^the iterable holds no records$"):
            next(rows)

    @pytest.mark.parametrize("items", ["text", b"text"])
    def test_one_string_in_place_of_several_is_refused_at_once(self, items):
        """Its characters are not the corpus."""
        with pytest.raises(BadInput, match=r"^one string is not a corpus; pass a list of strings$"):
            read_items(items)
