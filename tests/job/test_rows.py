import datetime as dt
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayferry.job.rows import ERROR_SCHEMA, RESERVED, SOURCE_SCHEMA, failure, own_name, raw_text, to_table

ROW = {"id": "a:0", "source_uri": "s3://bucket/a", "position": 0, "prompt": "p"}


def own(*values):
    """The column that these values of one block make."""
    return to_table([ROW | {"v": value} for value in values]).column("v")


def test_a_table_begins_with_the_sources_columns_in_their_order():
    assert to_table([ROW | {"z": 1, "a": 2}]).column_names == [*SOURCE_SCHEMA.names, "z", "a"]


def test_the_sources_columns_have_their_types_when_every_value_is_null():
    table = to_table([ROW])
    assert [table.schema.field(name).type for name in SOURCE_SCHEMA.names] == SOURCE_SCHEMA.types


def test_a_column_that_a_row_lacks_is_null_there():
    table = to_table([ROW | {"x": 1}, ROW | {"y": "b"}])
    assert (table.column("x").to_pylist(), table.column("y").to_pylist()) == ([1, None], [None, "b"])


def test_a_column_of_nulls_alone_is_text():
    assert own(None, None).type == pa.string()


def read_back(column):
    """The column after a Parquet file held it."""
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table({"v": column}), stream)
    return pq.read_table(pa.BufferReader(stream.getvalue()))


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([1, "a"], ["1", '"a"']),
        ([[1, "a"]], ['[1, "a"]']),
        ([{"a": 1}, {"a": "b"}], ['{"a": 1}', '{"a": "b"}']),
        ([True, 1], ["true", "1"]),
        ([1, None, "é"], ["1", None, '"é"']),
        ([2**64], ["18446744073709551616"]),
        ([{"a": [1, {"b": 2}]}], ['{"a": [1, {"b": 2}]}']),
    ],
)
def test_values_without_a_common_type_are_kept_as_json_text(values, kept):
    assert own(*values).to_pylist() == kept


def test_values_without_a_common_type_that_json_does_not_know_are_kept_as_text():
    kept = own([("since", dt.date(2024, 5, 1))], "x").to_pylist()
    assert "2024-05-01" in kept[0]


@pytest.mark.parametrize(
    "values", [[1, 2], [1.5, None], ["a"], [True], [[1, 2], []], [{"a": 1, "b": [None, "x"]}], [None], [b"\xff"], [[]]]
)
def test_values_of_one_type_come_back_as_they_are(values):
    assert own(*values).to_pylist() == values


@pytest.mark.parametrize("value", [{}, [{}], {"a": {}}, {"a": [{"b": {}}]}], ids=json.dumps)
def test_an_empty_object_can_be_written_as_parquet(value):
    assert read_back(own(value)).num_rows == 1


@pytest.mark.parametrize("depth", [20, 70, 300])
def test_a_deeply_nested_value_can_be_written_as_parquet(depth):
    assert read_back(own(json.loads("[" * depth + "]" * depth))).num_rows == 1


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_an_input_column_never_takes_the_name_of_one_of_ours(name):
    assert own_name(name) == f"input_{name}"


@pytest.mark.parametrize("name", ["text", "ID", "", "input", "ids"])
def test_an_input_column_of_another_name_keeps_it(name):
    assert own_name(name) == name


def test_the_errors_columns_are_those_of_the_contract():
    assert ERROR_SCHEMA.names == ["id", "source_uri", "position", "stage", "error_type", "error", "raw"]


def test_a_failure_is_three_columns():
    assert failure("parse", "BadPrompt", "empty") == {"stage": "parse", "error_type": "BadPrompt", "error": "empty"}


def test_raw_text_keeps_letters_readable():
    assert raw_text({"text": "naïve 漢字"}) == '{"text": "naïve 漢字"}'


def test_raw_text_is_cut():
    assert len(raw_text({"text": "x" * 10_000})) == 4096


def test_raw_text_takes_values_that_json_does_not_know():
    assert raw_text({"v": b"\xff", "d": dt.date(2024, 5, 1)}) == '{"v": "b\'\\\\xff\'", "d": "2024-05-01"}'
