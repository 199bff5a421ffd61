import datetime as dt
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayferry.job.columns import Column, Columns, from_schema, infer, merge, parse_json_lines

ALL = {
    "a": Column("a", pa.list_(pa.int64())),
    "id": Column("id_", pa.string(), as_json=True),
    "t": Column("t", pa.timestamp("us", "UTC")),
}
STRUCT = pa.struct([("a", pa.int64())])


@pytest.mark.parametrize("columns", [Columns(), Columns(ALL, rescue=True)], ids=["none", "some"])
def test_columns_come_back_from_a_run_s_state_as_they_were(columns):
    back = Columns.from_json(json.loads(json.dumps(columns.to_json())))
    assert back == columns
    assert list(back.columns) == list(columns.columns)


def found(*values):
    """Type, and whether as JSON, of a column of these values."""
    column = infer([{"v": value} for value in values], set())["v"]
    return column.type, column.as_json


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], pa.int64()),
        ([1.5, None], pa.float64()),
        ([1, 1.5], pa.float64()),
        (["a"], pa.string()),
        ([True, False], pa.bool_()),
        ([b"\xff"], pa.binary()),
        ([["a", "b"], ["c"]], pa.list_(pa.string())),
        ([[1]], pa.list_(pa.int64())),
    ],
    ids=str,
)
def test_values_of_one_type_make_a_column_of_it(values, kind):
    assert found(*values) == (kind, False)


@pytest.mark.parametrize(
    "values",
    [[1, "a"], [True, 1], [{"a": 1}], [{}], [[]], [[], [1]], [[1, "a"]], [[[1]]], [None], [[None]], [1, [1]]],
    ids=str,
)
def test_all_else_is_kept_as_json_text(values):
    assert found(*values) == (pa.string(), True)


def test_columns_are_in_the_order_of_their_appearance():
    assert [*infer([{"z": 1}, {"a": 1, "z": 2}, {"m": 1}], set())] == ["z", "a", "m"]


def test_no_more_than_500_columns_are_made():
    assert len(merge([infer([{f"{half}{index}": 1 for index in range(400)}], set()) for half in "ab"])) == 500


def test_a_name_that_is_ours_is_changed():
    columns = Columns(infer([{"id": 1, "n": 1}], {"id"}))
    assert (columns.schema.names, columns.renamed) == (["input_id", "n"], {"id": "input_id"})


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (1, 2, (pa.int64(), False)),
        (1, 1.5, (pa.float64(), False)),
        (1, "a", (pa.string(), True)),
        ({"a": 1}, 1, (pa.string(), True)),
        ([1], ["a"], (pa.string(), True)),
        ("a", None, (pa.string(), True)),
    ],
    ids=str,
)
def test_files_that_disagree_make_json_text_unless_both_are_numbers(one, other, both):
    column = merge([infer([{"v": one}], set()), infer([{"v": other}], set())])["v"]
    assert (column.type, column.as_json) == both


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        (pa.int8(), (pa.int8(), False)),
        (pa.timestamp("ns", "UTC"), (pa.timestamp("ns", "UTC"), False)),
        (pa.dictionary(pa.int32(), pa.string()), (pa.string(), False)),
        (STRUCT, (STRUCT, False)),
        (pa.map_(pa.string(), pa.int64()), (pa.map_(pa.string(), pa.int64()), False)),
        (pa.null(), (pa.string(), True)),
        (pa.struct([]), (pa.string(), True)),
        (pa.list_(pa.struct([])), (pa.string(), True)),
    ],
    ids=str,
)
def test_a_parquet_column_keeps_its_type_if_it_can_be_written(kind, stored):
    column = from_schema(pa.schema([("v", kind)]), set())["v"]
    assert (column.type, column.as_json) == stored


def kept(kind, *values, as_json=False, rescue=True):
    """The column, and what is rescued."""
    columns = Columns({"v": Column("v", kind, as_json)}, rescue=rescue)
    return [array.to_pylist() for array in columns.from_records([{"v": value} for value in values])]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.int64(), 1.5),
        (pa.int64(), 1.0),
        (pa.int64(), True),
        (pa.int64(), "1"),
        (pa.int64(), 2**63),
        (pa.int32(), 2**31),
        (pa.float64(), True),
        (pa.float64(), 2**53 + 1),
        (pa.float64(), "1"),
        (pa.bool_(), 1),
        (pa.string(), 5),
        (pa.string(), ["a"]),
        (pa.binary(), "a"),
        (pa.list_(pa.string()), "ab"),
        (pa.list_(pa.int64()), [1.5]),
        (pa.list_(pa.int64()), {"a": 1}),
        (STRUCT, {"a": 1, "b": 2}),
        (STRUCT, {"a": 1.5}),
        (pa.list_(STRUCT), [{"b": 1}]),
        (pa.timestamp("us"), "2024-01-01"),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_rescued_and_not_bent(kind, value):
    assert kept(kind, value, None) == [[None, None], [json.dumps({"v": value}), None]]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.int64(), -5),
        (pa.int8(), 5),
        (pa.float64(), 5),
        (pa.float64(), float("inf")),
        (pa.string(), "é"),
        (pa.list_(pa.string()), ["a", None]),
        (pa.list_(pa.int64()), []),
        (STRUCT, {"a": None}),
        (pa.map_(pa.string(), pa.int64()), [("a", 1)]),
        (pa.timestamp("us"), dt.datetime(2024, 5, 1)),  # noqa: DTZ001  # Parquet has such
        (pa.date32(), dt.date(2024, 5, 1)),
    ],
    ids=str,
)
def test_a_value_that_fits_is_kept_as_it_is(kind, value):
    assert kept(kind, value) == [[value], [None]]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "text"),
        ({"a": [1, "é"]}, '{"a": [1, "é"]}'),
        (1, "1"),
        (True, "true"),
        (None, None),
        ({}, "{}"),
        (2**70, str(2**70)),
        (dt.date(2024, 5, 1), '"2024-05-01"'),
        (b"a\xff", '"a\ufffd"'),
    ],
    ids=str,
)
def test_json_columns_hold_text_as_it_is_and_all_else_as_json(value, text):
    assert kept(pa.string(), value, as_json=True) == [[text], [None]]


def test_a_value_without_a_column_is_rescued():
    (rescued,) = Columns({}, rescue=True).from_records([{"new": {"a": 1}, "none": None}, {}, None])
    assert rescued.to_pylist() == ['{"new": {"a": 1}}', None, None]


def test_one_misfit_leaves_the_other_rows_alone():
    assert kept(pa.int64(), 1, "x", 3) == [[1, None, 3], [None, '{"v": "x"}', None]]


def test_a_row_that_failed_has_no_own_columns():
    columns = Columns({"v": Column("v", pa.int64())}, rescue=True)
    assert [array.to_pylist() for array in columns.from_records([None, {"v": 1}])] == [[None, 1], [None, None]]


def test_deeply_nested_values_can_be_written_as_parquet():
    columns = Columns(infer([{"v": json.loads("[" * 300 + "]" * 300)}], set()), rescue=True)
    table = pa.Table.from_arrays(
        columns.from_records([{"v": json.loads("[" * 500 + "]" * 500)}]), schema=columns.schema
    )
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    assert pq.read_table(pa.BufferReader(stream.getvalue())).equals(table)


def test_a_table_that_fits_is_taken_as_it_is():
    columns = Columns({"v": Column("v", pa.int64()), "w": Column("w", pa.string())}, rescue=True)
    arrays = columns.from_table(pa.table({"v": [1, 2]}))
    assert [array.to_pylist() for array in arrays] == [[1, 2], [None, None], [None, None]]


@pytest.mark.parametrize("table", [pa.table({"v": ["a"]}), pa.table({"v": [1], "more": [1]})], ids=["type", "column"])
def test_a_table_that_does_not_fit_is_not_taken(table):
    assert Columns({"v": Column("v", pa.int64())}).from_table(table) is None


@pytest.mark.parametrize(
    ("records", "names"),
    [
        ([{"a": 1, "b": "x", "c": [1.5]}], ["a", "b", "c"]),
        ([{"a": 1, "b": {}}], None),
        ([{"a": b"x"}], None),
        ([], None),
    ],
    ids=str,
)
def test_arrows_reader_is_only_given_types_that_it_reads_as_we_do(records, names):
    schema = Columns(infer(records, set())).json_schema()
    assert (schema.names if schema else None) == names


@pytest.mark.parametrize(
    ("lines", "good"), [(b'{"v": 1}\n{}\n', True), (b'{"v": "x"}\n{}\n', False), (b'{"v": 1}\n', False)]
)
def test_json_lines_that_fit_are_a_table(lines, good):
    assert (parse_json_lines(lines, 2, pa.schema([("v", pa.int64())])) is not None) is good
