"""Rows of a file's records. No Ray Data here: the laptop makes a few rows before a job starts."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayferry.job.ids import Repeated, hash_of
from rayferry.job.look import Input, open_as, own, prompt_column
from rayferry.job.openai_batch import BatchLines
from rayferry.job.prompts import Prompter
from rayferry.job.readers import read_chunks
from rayferry.job.records import BadRecordError, Chunk, Record, Unwanted, none_unwanted
from rayferry.job.rows import SOURCE_SCHEMA, RowError, json_text, raw_text
from rayferry.job.spans import Spans
from rayferry.job.spec import JobSpec


class RowMaker:
    """Makes rows of a file's records: ids, prompts, own columns; and of what is wrong with a record, an error."""

    def __init__(self, spec: JobSpec, found: Input, repeated: Repeated | None = None) -> None:
        self._spec = spec
        self._found = found
        self._labels = {file.path: (index, file.label) for index, file in enumerate(found.files)}
        self._repeated = repeated or {}
        self._scheme = "s3://" if spec.input.uris[0].startswith("s3://") else ""
        # one column is the prompt and nothing else is asked: whole tables can pass
        named = found.openai or spec.input.id_column is not None
        self._is_plain = not named and prompt_column(spec.input, ("text",)) is not None
        self._json_schema = found.columns.json_schema(found.dropped) if self._is_plain else None

    def tables(self, f: Any, path: str, done: Spans | None = None) -> Iterator[tuple[int, pa.Table | None]]:
        """All rows of an open file, in the columns of SOURCE_SCHEMA and the own columns.

        Args:
            f: the file.
            path: its name in the filesystem.
            done: rows to be left out.

        Yields:
            How many rows follow in the file, and those of them that are not done, or None.
        """
        prompter = self._prompter()
        index, label = self._labels[path]
        start = (self._scheme + path, label, index)
        for chunk in self._chunks(f, path, none_unwanted if done is None else done.cover):
            num_rows = len(chunk.positions)
            left = _left(chunk, done)
            if left is None:
                yield num_rows, None
                continue
            table = self._fast(left, start)
            yield num_rows, self._slow(left, start, prompter) if table is None else table

    def names(self, f: Any, path: str) -> Iterator[tuple[int, str]]:
        """Position and id of every record of an open file that names itself."""
        prompter = self._prompter()
        for chunk in self._chunks(f, path):
            for position, record in zip(chunk.positions, chunk.to_list(), strict=True):
                if not isinstance(record, BadRecordError):
                    try:
                        name = prompter.id_of(record)
                    except RowError:
                        continue
                    if name is not None:
                        yield position, name

    def _prompter(self) -> Prompter | BatchLines:
        return BatchLines(self._spec) if self._found.openai else Prompter(self._spec)

    def _chunks(self, f: Any, path: str, unwanted: Unwanted = none_unwanted) -> Iterator[Chunk]:
        """The records of an open file."""
        f.seek(0)
        kind, stream = open_as(f, path, self._spec.input)
        as_bytes = self._spec.input.image_column is not None
        return read_chunks(stream, kind.format, self._json_schema, as_bytes=as_bytes, unwanted=unwanted)

    def _fast(self, chunk: Chunk, start: tuple[str, str, int]) -> pa.Table | None:
        """The rows of a table whose prompts are all usable and whose columns all fit; None otherwise."""
        table = chunk.records
        if not isinstance(table, pa.Table) or not self._is_plain:
            return None
        column = prompt_column(self._spec.input, table.column_names)
        dropped = self._found.dropped
        if column not in table.column_names or (dropped in table.column_names and column != dropped):
            return None
        prompts = table.column(column).combine_chunks()
        if prompts.type != pa.string() or prompts.null_count or pc.any(pc.equal(prompts, "")).as_py():
            return None
        arrays = self._found.columns.from_table(table.drop_columns([dropped]) if column == dropped else table)
        if arrays is None:
            return None
        source_uri, label, _ = start
        positions = pa.array(chunk.positions, pa.int64())
        nothing = pa.nulls(table.num_rows, pa.string())
        ids = pc.binary_join_element_wise(label, pc.cast(positions, pa.string()), ":")
        ours = [
            ids,
            pa.repeat(source_uri, table.num_rows),
            positions,
            prompts,
            *[nothing] * 5,
            pa.nulls(table.num_rows, pa.bool_()),
        ]
        return pa.Table.from_arrays([*ours, *arrays], schema=self.schema)

    @property
    def schema(self) -> pa.Schema:
        """What `tables` yields."""
        return pa.schema([*SOURCE_SCHEMA, *self._found.columns.schema])

    def _slow(self, chunk: Chunk, start: tuple[str, str, int], prompter: Prompter | BatchLines) -> pa.Table:
        rows = []
        kept: list[Record | None] = []
        for position, record in zip(chunk.positions, chunk.to_list(), strict=True):
            row = self._row(record, position, start, prompter)
            rows.append(row)
            kept.append(
                None if "stage" in row or isinstance(record, BadRecordError) else self._kept(record, row["prompt"])
            )
        ours = [pa.array([row.get(field.name) for row in rows], field.type) for field in SOURCE_SCHEMA]
        return pa.Table.from_arrays([*ours, *self._found.columns.from_records(kept)], schema=self.schema)

    def _kept(self, record: Record, prompt: str | None) -> Record:
        dropped = self._found.dropped
        if dropped is None or record.get(dropped) != prompt:
            return own(record)
        return {name: value for name, value in record.items() if name != dropped}

    def _row(
        self,
        record: Record | BadRecordError,
        position: int,
        start: tuple[str, str, int],
        prompter: Prompter | BatchLines,
    ) -> dict[str, Any]:
        source_uri, label, index = start
        row: dict[str, Any] = {"id": f"{label}:{position}", "source_uri": source_uri, "position": position}
        if isinstance(record, BadRecordError):
            return row | record.columns() | {"raw": record.raw}
        try:
            if (name := prompter.id_of(record)) is not None:
                self._check_first(name, index, position)
                row["id"] = name
            prompt, request = prompter(record)
        except RowError as error:
            return row | error.columns() | {"raw": raw_text(record)}
        except Exception as error:  # noqa: BLE001  # whatever a record does, the others are read
            return row | RowError("parse", type(error).__name__, str(error)).columns() | {"raw": raw_text(record)}
        return row | {"prompt": prompt, "request": json_text(request) if request else None}

    def _check_first(self, name: str, index: int, position: int) -> None:
        first = self._repeated.get(hash_of(name))
        if first is not None and first != (index, position):
            where = f"{self._found.files[first[0]].label}:{first[1]}"
            raise RowError("parse", "DuplicateId", f"the id {name[:200]!r} is that of {where} too")


def _left(chunk: Chunk, done: Spans | None) -> Chunk | None:
    """What of a chunk is not done; None if nothing is left."""
    if chunk.records is None:
        return None
    if done is None:
        return chunk
    left = np.flatnonzero(~done.contain(chunk.positions))
    if len(left) == len(chunk.positions):
        return chunk
    if not len(left):
        return None
    records = chunk.to_list()
    return Chunk([chunk.positions[at] for at in left], [records[at] for at in left])
