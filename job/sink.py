"""Rows out: good ones to data/, failed ones to errors/, as Parquet parts that appear whole or not at all."""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import Datasink
from ray.data.block import BlockAccessor

from rayferry.job import attempts, checkpoint, storage
from rayferry.job.errors import TooManyErrorsError, TornError
from rayferry.job.layout import Layout
from rayferry.job.openai_batch import result_line
from rayferry.job.rows import ERROR_SCHEMA, RESCUED, RESPONSE, with_copy
from rayferry.job.spans import spans_of

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_PREVIEW_CHARS = 200
_CUSTOM_ID = re.compile(r'"custom_id"\s*:\s*("(?:[^"\\]|\\.)*")')
_PREVIEW_ROWS = 10  # the most that the job file may ask for


@dataclass(frozen=True)
class Part:
    """One Parquet file as the manifest lists it.

    Attributes:
        uri: where it is.
        kind: `data`, `errors` or `openai`.
        num_rows: rows in it.
        num_bytes: its size.
        sha256: of its bytes, in hex.
        num_input_tokens: prompt tokens of its rows.
        num_generated_tokens: generated tokens of its rows.
        stages: of an errors part, its rows by the stage at which they failed.
        num_rescued: rows of a data part that have something in `rescued_data`.
    """

    uri: str
    kind: str
    num_rows: int
    num_bytes: int
    sha256: str
    num_input_tokens: int = 0
    num_generated_tokens: int = 0
    stages: dict[str, int] = field(default_factory=dict)
    num_rescued: int = 0

    def to_json(self) -> dict[str, Any]:
        """The part as JSON values, without what does not apply to its kind."""
        return {name: value for name, value in asdict(self).items() if value or name not in {"stages", "num_rescued"}}


class PartsDatasink(Datasink["tuple[str, checkpoint.Record] | None"]):  # type: ignore[misc]  # ray.data has no types for it
    """Writes what each task is given as at most one data part and one errors part.

    Source: https://docs.ray.io/en/latest/data/api/doc/ray.data.Datasink.html
    """

    def __init__(
        self,
        layout: Layout,
        attempt: str,
        rows_per_part: int,
        schema: pa.Schema,
        progress: "ActorHandle[Any] | None" = None,
        copied: str | None = None,
    ) -> None:
        """Keeps what every task needs.

        Args:
            layout: the run's places.
            attempt: the name of the attempt that writes.
            rows_per_part: rows gathered before a part is written.
            schema: exactly the columns of data/; with `rows.RESPONSE` among a task's own, openai/ is written too.
            progress: told of every part; may say that the run is hopeless.
            copied: the own column that may have travelled as the prompt alone.
        """
        self._layout = layout
        self._attempt = attempt
        self._rows_per_part = rows_per_part
        self._schema = schema
        self._copied = copied
        self._progress = progress
        self.records: dict[str, checkpoint.Record] = {}

    @property
    def parts(self) -> list[Part]:
        """Those of all records."""
        return [Part(**part) for record in self.records.values() for part in record.parts]

    @property
    def min_rows_per_write(self) -> int:
        """Rows that Ray Data gathers for one task."""
        return self._rows_per_part

    def write(self, blocks: Iterable[Any], ctx: Any) -> tuple[str, checkpoint.Record] | None:
        """Runs on a node: writes the parts, then the record by which their rows are done.

        Returns:
            The record and its URI, or None if there was no row.

        Raises:
            TooManyErrorsError: so many rows have failed that the run cannot end well any more.
            TornError: this task was tried before, with other rows.
        """
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if table.num_rows]
        if not tables:
            return None
        table = pa.concat_tables(tables)
        if self._copied is not None:
            table = with_copy(table, self._copied)
        record_uri = attempts.record_uri(self._layout, self._attempt, ctx.task_idx)
        rows = spans_of(table)
        record = checkpoint.Record.read(record_uri)
        stages = table.column("stage")
        good = table if stages.null_count == len(stages) else table.filter(pc.is_null(stages))
        data = good.select(self._schema.names).cast(self._schema)
        start = time.monotonic()
        if record is None:
            parts = self._write_parts(table, data, ctx.task_idx)
            record = checkpoint.Record([part.to_json() for part in parts], rows)
            record.write(record_uri)
        elif record.rows != rows:  # else it is by a try of this task whose end Ray did not learn of
            msg = f"{record_uri} is of other rows than a second try of its task was given; go on with --resume"
            raise TornError(msg)
        if self._progress is not None:
            told = self._progress.parts_written.remote(
                record_uri, record.parts, _preview(data), time.monotonic() - start
            )
            hopeless = ray.get(told)
            if hopeless:
                raise TooManyErrorsError(hopeless)
        return record_uri, record

    def _write_parts(self, table: pa.Table, data: pa.Table, task: int) -> list[Part]:
        name = attempts.part_name(self._attempt, task)
        parts = []
        if data.num_rows:
            parts.append(_write(f"{self._layout.data_uri}{name}.parquet", "data", data))
        failed = table.filter(pc.is_valid(table.column("stage")))
        if failed.num_rows:
            errors = failed.select(ERROR_SCHEMA.names).cast(ERROR_SCHEMA)
            parts.append(_write(f"{self._layout.errors_uri}{name}.parquet", "errors", errors))
        if RESPONSE in table.column_names:
            parts.append(_write_lines(f"{self._layout.openai_uri}{name}.jsonl", table))
        return parts

    def write_empty(self) -> None:
        """Writes a part without rows, so that there is always one to read."""
        name = attempts.part_name(self._attempt, 0)
        part = _write(f"{self._layout.data_uri}{name}.parquet", "data", self._schema.empty_table())
        self.records[""] = checkpoint.Record([part.to_json()], {})

    def on_write_complete(self, write_result: Any) -> None:
        """Runs on the driver: keeps what every task returned."""
        self.records.update(filter(None, write_result.write_returns))


def _write(uri: str, kind: str, table: pa.Table) -> Part:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    further: dict[str, Any] = {
        name: int(pc.sum(table.column(name)).as_py() or 0)
        for name in ("num_input_tokens", "num_generated_tokens")
        if name in table.column_names
    }
    if kind == "errors":
        further["stages"] = dict(Counter(table.column("stage").to_pylist()))
    elif RESCUED in table.column_names:
        further["num_rescued"] = table.num_rows - table.column(RESCUED).null_count
    return put_part(uri, kind, table.num_rows, buffer.getvalue().to_pybytes(), further)


def _write_lines(uri: str, table: pa.Table) -> Part:
    rows = table.select(["id", "position", "stage", "error_type", "error", "raw", RESPONSE]).to_pylist()
    lines = [
        result_line(row["id"], _custom_id(row), row[RESPONSE], row if row["stage"] is not None else None) + "\n"
        for row in rows
    ]
    return put_part(uri, "openai", len(lines), "".join(lines).encode(), {})


def _custom_id(row: dict[str, Any]) -> str | None:
    """The line's own `custom_id`: a row that failed early has an id by its place, and may not have one at all."""
    if row["stage"] not in {"read", "decode", "parse"} or not row["id"].endswith(f":{row['position']}"):
        return str(row["id"])
    found = _CUSTOM_ID.search(row["raw"] or "")
    try:
        return str(json.loads(found[1])) if found else None
    except ValueError:
        return None


def put_part(uri: str, kind: str, num_rows: int, content: bytes, further: Mapping[str, Any]) -> Part:
    """Writes one part, and gives it as the manifest lists it; `further` are attributes of its kind."""
    storage.write_bytes(uri, content)
    sha256 = hashlib.sha256(content).hexdigest()
    return Part(uri=uri, kind=kind, num_rows=num_rows, num_bytes=len(content), sha256=sha256, **further)


def _preview(data: pa.Table) -> list[dict[str, str]]:
    names = ["prompt", *(name for name in ("generated_text", "label", "score") if name in data.column_names)]
    first = data.select(names).slice(0, _PREVIEW_ROWS).to_pylist()
    return [{name: str(value)[:_PREVIEW_CHARS] for name, value in row.items()} for row in first]
