import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayferry.job.parquet_reader import read_parquet


def parquet(columns, **options):
    """A Parquet file of these columns."""
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


TIMES = {
    "time": (pa.array([2**62], pa.timestamp("us")), 2**62),
    "zone": (pa.array([1], pa.timestamp("us", tz="Mars/Phobos")), 1),
    "date": (pa.array([2**30], pa.int32()).view(pa.date32()), 2**30),
    "duration": (pa.array([2**62], pa.duration("s")), 2**62),
}


@pytest.mark.parametrize(("column", "number"), TIMES.values(), ids=TIMES)
def test_a_time_that_python_does_not_have_is_its_number(column, number):
    (chunk,) = read_parquet(pa.BufferReader(parquet({"text": ["a"], "t": column})))
    assert chunk.to_list() == [{"text": "a", "t": number}]


def test_of_a_damaged_row_group_each_row_is_a_failure_and_the_next_is_read(read_as):
    columns = {"text": [f"row {index}" for index in range(6)]}
    content = bytearray(parquet(columns, row_group_size=2, compression="none", use_dictionary=False))
    at = pq.read_metadata(io.BytesIO(content)).row_group(1).column(0).data_page_offset
    content[at : at + 9] = b"\xff" * 9
    rows = read_as(bytes(content), "parquet")
    assert [record[0] if isinstance(record, tuple) else record["text"] for _, record in rows] == [
        "row 0", "row 1", "read", "read", "row 4", "row 5",
    ]  # fmt: skip


def not_utf8(*values):
    """A column of text that holds any bytes, which Arrow's own conversion would refuse."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())


@pytest.mark.parametrize("row_group_size", [1, 2, 100])
def test_text_that_is_not_utf8_costs_only_its_own_row(read_as, row_group_size):
    columns = {"text": not_utf8(b"ab", b"\xff", b"cd", b"ef"), "n": [1, 2, 3, 4]}
    content = parquet(columns, row_group_size=row_group_size, use_dictionary=False, write_statistics=False)
    assert read_as(content, "parquet") == [
        (0, {"text": "ab", "n": 1}),
        (1, ("decode", "ArrowInvalid")),
        (2, {"text": "cd", "n": 3}),
        (3, {"text": "ef", "n": 4}),
    ]
