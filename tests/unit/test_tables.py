"""Arrow tables of chunk inputs and results."""

import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from tasks import tables
from tasks.errors import DamagedObject
from tasks.ports import Computed


def encoded(n_rows, errors=None, dim=3):
    """Return an engine's answer with vectors of counted numbers."""
    errors = errors or [None] * n_rows
    vectors = np.arange(n_rows * dim, dtype=np.float32).reshape(n_rows, dim)
    vectors[[error is not None for error in errors]] = 0
    return Computed(
        values=vectors,
        n_tokens=np.arange(n_rows, dtype=np.int32),
        truncated=np.arange(n_rows) % 2 == 1,
        errors=errors,
    )


def inputs(n_rows, **columns):
    """Return a chunk input that begins at row 100."""
    return tables.input_table(
        100, [f"id-{i}" for i in range(n_rows)], [f"text {i} é" for i in range(n_rows)], **columns
    )


def test_a_chunk_input_numbers_its_rows_from_the_first():
    """Row numbers are those of the corpus."""
    table = inputs(3)
    assert table.to_pylist()[2] == {"row": 102, "id": "id-2", "text": "text 2 é"}
    assert table.schema.field("row").type == pa.int64()
    assert table.column_names == ["row", "id", "text"]


def test_kept_fields_travel_with_the_rows():
    """They are in the input only if asked for, and in the result as they came."""
    table = inputs(2, kept=['["a",1]', "[null,2]"])
    assert table["kept"].to_pylist() == ['["a",1]', "[null,2]"]
    result = tables.encode_result(table, encoded(2), "float32")
    assert result["kept"].to_pylist() == ['["a",1]', "[null,2]"]


def test_a_result_has_the_documented_columns():
    """The order and the types of columns are those of the table in the module's docstring."""
    result = tables.encode_result(inputs(2), encoded(2), "float32")
    assert result.schema == pa.schema(
        [
            ("row", pa.int64()),
            ("id", pa.string()),
            ("vector", pa.list_(pa.float32(), 3)),
            ("n_tokens", pa.int32()),
            ("truncated", pa.bool_()),
            ("error", pa.string()),
        ]
    )
    assert result.to_pylist()[1] == {
        "row": 101,
        "id": "id-1",
        "vector": [3.0, 4.0, 5.0],
        "n_tokens": 1,
        "truncated": True,
        "error": None,
    }


def test_a_row_with_an_error_has_no_vector():
    """Its vector is null, not zeros that look like a result; its neighbours keep theirs."""
    result = tables.encode_result(inputs(3), encoded(3, [None, "too odd", None]), "float32")
    assert result["vector"].to_pylist() == [[0.0, 1.0, 2.0], None, [6.0, 7.0, 8.0]]
    assert result["error"].to_pylist() == [None, "too odd", None]


def test_a_chunk_of_errors_only_keeps_its_rows():
    """A chunk that was given up is whole."""
    result = tables.encode_result(inputs(2), encoded(2, ["given up"] * 2), "float16")
    assert result["vector"].null_count == 2
    assert result["id"].to_pylist() == ["id-0", "id-1"]
    assert np.isnan(tables.vectors_of(result)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_come_back_as_they_were_put_in(dtype):
    """Through bytes and back they are equal in value, shape and type."""
    answer = encoded(5, [None, None, "odd", None, None])
    data = tables.to_bytes(tables.encode_result(inputs(5), answer, dtype))
    vectors = tables.vectors_of(tables.from_bytes(data, "name"))
    assert (vectors.shape, vectors.dtype) == ((5, 3), np.dtype(dtype))
    expected = answer.values.astype(dtype)
    expected[2] = np.nan
    np.testing.assert_array_equal(vectors, expected)


def test_half_precision_rounds_to_the_nearest():
    """float16 keeps eleven bits."""
    answer = encoded(1)
    answer.values[:] = [0.1, 1 / 3, 2049]
    result = tables.encode_result(inputs(1), answer, "float16")
    np.testing.assert_array_equal(tables.vectors_of(result), np.float16([[0.1, 1 / 3, 2048]]))


def test_vectors_in_another_memory_order_are_taken():
    """An engine may hand over a view of a larger array."""
    answer = encoded(4)
    answer.values = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(4, 6))[:, 1:4]
    result = tables.encode_result(inputs(4), answer, "float32")
    np.testing.assert_array_equal(tables.vectors_of(result), answer.values)


def test_part_of_a_result_has_the_vectors_of_that_part():
    """A slice points into the middle of the numbers."""
    result = tables.encode_result(inputs(6), encoded(6, [None, None, "odd", None, None, None]), "float32")
    whole = tables.vectors_of(result)
    np.testing.assert_array_equal(tables.vectors_of(result.slice(1, 3)), whole[1:4])
    np.testing.assert_array_equal(tables.vectors_of(pa.concat_tables([result, result])), np.vstack([whole, whole]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_empty_result_has_no_vectors_of_the_right_length(dtype):
    """No row is no reason to lose the shape, whether the table has an empty chunk or none at all."""
    result = tables.encode_result(inputs(2), encoded(2), dtype)
    for empty in (result.slice(0, 0), result.schema.empty_table(), pa.concat_tables([result.slice(2)] * 2)):
        vectors = tables.vectors_of(empty)
        assert (vectors.shape, vectors.dtype) == ((0, 3), np.dtype(dtype))


def test_metadata_travels_with_the_table():
    """It is text under text, in the schema."""
    data = tables.to_bytes(inputs(1), {"penstock.job": "encode-1", "é": "ö"})
    metadata = tables.metadata_of(tables.from_bytes(data, "name"))
    assert metadata.pop(tables.CONTENT)
    assert metadata == {"penstock.job": "encode-1", "é": "ö"}


def test_a_torn_object_is_noticed_wherever_it_was_torn():
    """Not one beginning of the bytes passes for a whole object."""
    data = tables.to_bytes(inputs(2), {"a": "b"})
    for size in range(len(data)):
        with pytest.raises(DamagedObject, match=f"^jobs/x is damaged: {size} bytes"):
            tables.from_bytes(data[:size], "jobs/x")


@pytest.mark.parametrize("data", [b"", b"x", b"ARROW1", b"ARROW1\0\0" * 2, b"ARROW1\0\0" + b"\xff" * 400 + b"ARROW1"])
def test_garbage_is_noticed(data):
    """What is no Arrow file is damaged, and the error names the object."""
    with pytest.raises(DamagedObject) as caught:
        tables.from_bytes(data, "jobs/x")
    assert caught.value.data == {"key": "jobs/x"}


def tables_of_both_kinds():
    """Return a chunk input and a chunk result, with all the columns that there are."""
    answer = encoded(3, [None, "too odd", None])
    table = inputs(3, kept=["[1]", '["é"]', "[null]"])
    return table, tables.encode_result(table, answer, "float16").replace_schema_metadata({"a": "b"})


@pytest.mark.parametrize("table", tables_of_both_kinds(), ids=["input", "result"])
def test_a_flipped_bit_is_noticed_unless_it_changes_nothing(table):
    """Whatever the damage does to the reader, only a damaged object comes out of it."""
    data = tables.to_bytes(table, {"a": "b"})
    rows = tables.read_whole(data, "jobs/x").to_pylist()
    chance = random.Random(7)  # noqa: S311 - any sequence will do, as long as it is the same one
    n_noticed = 0
    for _ in range(2000):
        altered = bytearray(data)
        altered[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            assert tables.read_whole(bytes(altered), "jobs/x").to_pylist() == rows
        except DamagedObject:
            n_noticed += 1
    assert n_noticed > 1000


@pytest.mark.parametrize("table", tables_of_both_kinds(), ids=["input", "result"])
def test_the_same_content_has_the_same_hash_however_it_lies_in_memory(table):
    """Slices, pieces, and a trip through bytes change nothing of it; the bytes are the same each time."""
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    twice = pa.concat_tables([table, table]).slice(3)
    back = tables.read_whole(tables.to_bytes(table, tables.metadata_of(table)), "jobs/x")
    for same in (pieces, twice, pieces.combine_chunks(), back):
        assert tables.content_hash(same) == tables.content_hash(table)
    assert tables.to_bytes(table) == tables.to_bytes(table)


def test_other_content_has_another_hash():
    """Each column counts, and so do the borders between texts, the order of rows, and what is null."""
    table = inputs(2, kept=["[1]", "[2]"])
    others = [
        table.slice(0, 1),
        table.take([1, 0]),
        table.drop_columns("kept"),
        table.replace_schema_metadata({"a": ""}),
    ]
    for name, values in (
        ("row", [100, 102]),
        ("id", ["id-0i", "d-1"]),
        ("text", ["text 0 é", None]),
        ("text", ["text 0 étext 1 é", ""]),
        ("kept", ["[1]", "[3]"]),
    ):
        column = table.column_names.index(name)
        others.append(
            table.set_column(column, table.schema.field(column), pa.array(values, table.schema.types[column]))
        )
    hashes = {tables.content_hash(other) for other in (*others, inputs(0), table)}
    assert len(hashes) == len(others) + 2


def test_an_altered_input_says_what_to_do():
    """Only the corpus has its rows."""
    data = tables.input_bytes(inputs(2), "jobs/x")
    assert tables.read_input(data, "jobs/x").equals(inputs(2))
    altered = data.replace(b"text 1", b"text 7")
    assert tables.from_bytes(altered, "jobs/x").num_rows == 2
    with pytest.raises(DamagedObject, match=r"^jobs/x is damaged: .*submit it again") as caught:
        tables.read_input(altered, "jobs/x")
    assert caught.value.data == {"key": "jobs/x"}


def test_an_input_without_a_hash_is_damaged():
    """Else one altered bit in the hash's name would switch the check off."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, inputs(2).schema) as writer:
        writer.write_table(inputs(2))
    with pytest.raises(DamagedObject, match="its content is not what was written"):
        tables.read_input(sink.getvalue().to_pybytes(), "jobs/x")


def test_an_input_in_the_place_of_another_is_noticed():
    """Both are whole."""
    with pytest.raises(DamagedObject, match=r"^jobs/x is another object of that kind"):
        tables.read_input(tables.input_bytes(inputs(2), "jobs/y"), "jobs/x")


@pytest.mark.parametrize("table", [pa.table({"row": [1], "id": ["a"], "tfxt": ["x"]}), pa.table({"row": [1]})])
def test_an_input_with_other_columns_is_damaged(table):
    """One altered bit may change a column's name and leave everything whole."""
    with pytest.raises(DamagedObject, match="k is damaged: it does not begin with the columns row, id, text"):
        tables.read_input(tables.to_bytes(table), "k")


#: Says when something looks for pandas, once the tables are imported.
LOOKED_FOR = """
import sys
from tasks import tables

class Finder:
    def find_spec(self, name, *_):
        if name == "pandas":
            print("looked for pandas")

sys.meta_path.insert(0, Finder())
tables.read_whole(tables.input_bytes(tables.input_table(0, ["a"], ["b"]), "key"), "key").to_pylist()
"""


def test_no_ctrl_c_is_lost_where_pyarrow_looks_for_pandas():
    """It drops what is raised there, so it looks before a command is at work."""
    done = subprocess.run([sys.executable, "-c", LOOKED_FOR], capture_output=True, text=True, check=True)
    assert done.stdout == ""
