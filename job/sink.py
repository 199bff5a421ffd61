"""Rows out: good ones to data/, failed ones to errors/, as Parquet parts that appear whole or not at all."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import Datasink
from ray.data.block import BlockAccessor

from rayferry.job import storage
from rayferry.job.layout import Layout
from rayferry.job.rows import DATA_COLUMNS, ERROR_SCHEMA, unpack

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_PREVIEW_CHARS = 200
_PREVIEW_ROWS = 10  # the most that the job file may ask for


@dataclass(frozen=True)
class Part:
    """One Parquet file as the manifest lists it.

    Attributes:
        uri: where it is.
        kind: `data` or `errors`.
        num_rows: rows in it.
        num_bytes: its size.
        sha256: of its bytes, in hex.
        num_input_tokens: prompt tokens of its rows.
        num_generated_tokens: generated tokens of its rows.
    """

    uri: str
    kind: str
    num_rows: int
    num_bytes: int
    sha256: str
    num_input_tokens: int
    num_generated_tokens: int

    def to_json(self) -> dict[str, Any]:
        """The part as JSON values."""
        return asdict(self)


class PartsDatasink(Datasink[list[Part]]):  # type: ignore[misc]  # ray.data has no types for it
    """Writes what each task is given as at most one data part and one errors part.

    Source: https://docs.ray.io/en/latest/data/api/doc/ray.data.Datasink.html
    """

    def __init__(
        self, layout: Layout, submission_id: str, rows_per_part: int, progress: "ActorHandle[Any] | None" = None
    ) -> None:
        self._layout = layout
        self._submission_id = submission_id
        self._rows_per_part = rows_per_part
        self._progress = progress
        self.parts: list[Part] = []

    @property
    def min_rows_per_write(self) -> int:
        """Rows that Ray Data gathers for one task."""
        return self._rows_per_part

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[Part]:
        """Runs on a node; a task that is tried again writes the same names again."""
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if table.num_rows]
        if not tables:
            return []
        table = pa.concat_tables(tables, promote_options="permissive")
        good = pc.is_null(table.column("stage"))
        name = self._layout.part_name(self._submission_id, ctx.task_idx)
        parts = []
        data = data_columns(table.filter(good))
        if data.num_rows:
            parts.append(_write(self._layout.data_uri + name, "data", data))
        errors = table.filter(pc.invert(good)).select(ERROR_SCHEMA.names).cast(ERROR_SCHEMA)
        if errors.num_rows:
            parts.append(_write(self._layout.errors_uri + name, "errors", errors))
        if self._progress is not None:
            ray.get(self._progress.parts_written.remote(name, [part.to_json() for part in parts], _preview(data)))
        return parts

    def on_write_complete(self, write_result: Any) -> None:
        """Runs on the driver: keeps what every task returned."""
        self.parts = [part for parts in write_result.write_returns for part in parts or []]


def data_columns(table: pa.Table) -> pa.Table:
    """Good rows as readers see them: `rows.DATA_COLUMNS`, then the input's own columns."""
    data = table.select([*DATA_COLUMNS])
    for name, column in unpack(table.column("own")).items():
        data = data.append_column(name, column)
    return data


def _write(uri: str, kind: str, table: pa.Table) -> Part:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    content = buffer.getvalue().to_pybytes()
    storage.write_bytes(uri, content)
    tokens = {
        name: int(pc.sum(table.column(name)).as_py() or 0) if name in table.column_names else 0
        for name in ("num_input_tokens", "num_generated_tokens")
    }
    return Part(
        uri=uri,
        kind=kind,
        num_rows=table.num_rows,
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        **tokens,
    )


def _preview(data: pa.Table) -> list[dict[str, str]]:
    first = data.select(["prompt", "generated_text"]).slice(0, _PREVIEW_ROWS).to_pylist()
    return [{name: value[:_PREVIEW_CHARS] for name, value in row.items()} for row in first]
