"""The columns that travel between source, predictor and sink, and how a failed row is written in them."""

import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

# What the source makes of one input row. `stage`, `error_type` and `error` are null for a good row.
SOURCE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("prompt", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("error_type", pa.string()),
        pa.field("error", pa.string()),
        pa.field("raw", pa.string()),
        # The input's own columns, as `pack` packs them: Ray merges blocks, and types that differ would end the run.
        pa.field("own", pa.binary()),
    ]
)
# What the predictor adds.
ANSWER_SCHEMA = pa.schema(
    [
        pa.field("generated_text", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("num_input_tokens", pa.int64()),
        pa.field("num_generated_tokens", pa.int64()),
        pa.field("model", pa.string()),
    ]
)
# data/: these first, then the input's own columns.
DATA_COLUMNS = ("id", "prompt", *ANSWER_SCHEMA.names)
# errors/: exactly these.
ERROR_SCHEMA = pa.schema(
    [
        *(SOURCE_SCHEMA.field(name) for name in ("id", "source_uri", "position", "stage", "error_type", "error")),
        pa.field("raw", pa.string()),
    ]
)
RESERVED = {*DATA_COLUMNS}
_RAW_CHARS = 4096
_MAX_DEPTH = 16


def failure(stage: str, error_type: str, error: str) -> dict[str, str]:
    """The three columns that say why a row failed."""
    return {"stage": stage, "error_type": error_type, "error": error}


def raw_text(row: Mapping[str, Any]) -> str:
    """An input row for the `raw` column: JSON, cut to 4,096 characters."""
    return json.dumps(row, ensure_ascii=False, default=str)[:_RAW_CHARS]


def own_name(column: str) -> str:
    """The name that an input column has in the output: its own, or `input_<name>` where ours has it.

    Two columns never get one name: what looks like such a name gets a further `input_`.
    """
    bare = column
    while bare.startswith("input_"):
        bare = bare.removeprefix("input_")
    return f"input_{column}" if bare in RESERVED else column


def pack(own: Mapping[str, Any]) -> bytes:
    """The own columns of a row as one value."""
    return pickle.dumps(own)


def unpack(packed: pa.ChunkedArray) -> dict[str, pa.Array]:
    """The own columns of rows, in order of appearance."""
    return own_columns([pickle.loads(own) if own else {} for own in packed.to_pylist()])  # noqa: S301  # our own


def own_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    """Rows as columns, in order of appearance; one that Parquet cannot hold is kept as JSON text."""
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row)
    return {name: _column([row.get(name) for row in rows]) for name in names}


def to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of the source as a table: SOURCE_SCHEMA's columns, then any further ones."""
    further = own_columns([{name: row[name] for name in row if name not in SOURCE_SCHEMA.names} for row in rows])
    ours = {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in SOURCE_SCHEMA}
    return pa.table(ours | further)


def _column(values: list[Any]) -> pa.Array:
    try:
        column = pa.array(values)
        if pa.types.is_null(column.type):
            return column.cast(pa.string())  # readers can make any type of it, should other parts have one
        if _is_writable(column.type):
            return column
    except (pa.ArrowException, OverflowError):
        pass  # no common type
    return pa.array([None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in values])


def _is_writable(kind: pa.DataType, depth: int = 0) -> bool:
    """False for what Parquet has no form for: a struct without fields, or nesting past all sense."""
    if depth > _MAX_DEPTH or (pa.types.is_struct(kind) and not kind.num_fields):
        return False
    return all(_is_writable(kind.field(index).type, depth + 1) for index in range(kind.num_fields))
