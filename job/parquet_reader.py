"""Parquet files, row group by row group."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayferry.job.records import (
    ROWS_PER_CHUNK,
    BadRecordError,
    Chunk,
    Record,
    Unwanted,
    distinct,
    is_store_failure,
    none_unwanted,
)

_MAX_LOST_ROWS = 1_000_000


def read_parquet(f: Any, unwanted: Unwanted = none_unwanted) -> Iterator[Chunk]:
    """Row groups one by one: of a damaged one every row is a failure, and the next is read all the same."""
    try:
        file = pq.ParquetFile(f)
        num_rows = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        _check_counts(file.metadata.num_rows, num_rows)
    except Exception as error:
        if is_store_failure(error):
            raise
        yield Chunk(
            [0],
            [BadRecordError("read", f"not a Parquet file, or a damaged one: {error}", error_type=type(error).__name__)],
        )
        return
    start = 0
    for index, rows in enumerate(num_rows):
        done = 0
        if rows and unwanted(start, start + rows):
            yield Chunk(range(start, start + rows), None)
            start += rows
            continue
        try:
            for table in _tables(file, index, rows):
                positions = range(start + done, start + done + table.num_rows)
                done += table.num_rows
                yield _checked(table, positions)
        except Exception as error:
            if is_store_failure(error):
                raise
            lost = BadRecordError(
                "read",
                f"row group {index} is damaged, from row {start + done} on: {error}",
                error_type=type(error).__name__,
            )
            if rows - done > _MAX_LOST_ROWS:  # a footer that is damaged too may claim any number
                yield Chunk([start + done], [lost])
                return
            yield from _lost(lost, range(start + done, start + rows))
        start += rows


def _tables(file: pq.ParquetFile, index: int, num_rows: int) -> Iterator[pa.Table]:
    """A row group, several thousand rows at a time; fails if it has not as many as the footer says."""
    done = 0
    for batch in file.iter_batches(batch_size=8 * ROWS_PER_CHUNK, row_groups=[index]):
        table = pa.Table.from_batches([batch])
        if done + table.num_rows > num_rows:
            _check_counts(num_rows, [done, table.num_rows])
        done += table.num_rows
        yield table.rename_columns(distinct(table.column_names))
    _check_counts(num_rows, [done])


def _lost(failure: BadRecordError, positions: range) -> Iterator[Chunk]:
    """The same failure for every row."""
    for at in range(0, len(positions), ROWS_PER_CHUNK):
        several = positions[at : at + ROWS_PER_CHUNK]
        yield Chunk(several, [failure] * len(several))


def _checked(table: pa.Table, positions: range) -> Chunk:
    """The table as it is, if all of its values are what they must be; else the rows one by one."""
    try:
        table.validate(full=True)
    except pa.ArrowException:
        return _valid_rows(table, positions)
    return Chunk(positions, table)


def _valid_rows(table: pa.Table, positions: range) -> Chunk:
    """The rows one by one, where one of them holds what it must not: text that is not UTF-8, mostly."""
    records: list[Record | BadRecordError] = []
    for at in range(table.num_rows):
        row = table.slice(at, 1)
        try:
            row.combine_chunks().validate(full=True)
            records += Chunk(positions[at : at + 1], row).to_list()
        except (pa.ArrowException, ValueError) as error:
            records.append(BadRecordError("decode", error))
    return Chunk(positions, records)


def _check_counts(whole_count: int, counts: list[int]) -> None:
    if whole_count != sum(counts) or any(count < 0 for count in counts):
        msg = f"it should hold {whole_count} rows, and holds {sum(counts)}"
        raise ValueError(msg)
