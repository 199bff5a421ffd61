"""The columns that travel between source, predictor and sink, and how a failed row is written in them."""

import json
from collections.abc import Mapping
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
RESERVED = {*SOURCE_SCHEMA.names, *ANSWER_SCHEMA.names}
_RAW_CHARS = 4096


def failure(stage: str, error_type: str, error: str) -> dict[str, str]:
    """The three columns that say why a row failed."""
    return {"stage": stage, "error_type": error_type, "error": error}


def raw_text(row: Mapping[str, Any]) -> str:
    """An input row for the `raw` column: JSON, cut to 4,096 characters."""
    return json.dumps(row, ensure_ascii=False, default=str)[:_RAW_CHARS]


def own_name(column: str) -> str:
    """The name that an input column has in the output: its own, or `input_<name>` where ours has it."""
    return f"input_{column}" if column in RESERVED else column


def to_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of the source as a table: SOURCE_SCHEMA's columns, then the input's own in order of appearance.

    A column whose values have no common Arrow type is kept as JSON text.
    """
    names = dict.fromkeys(SOURCE_SCHEMA.names)
    for row in rows:
        names |= dict.fromkeys(row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if name in SOURCE_SCHEMA.names:
            columns[name] = pa.array(values, SOURCE_SCHEMA.field(name).type)
            continue
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            columns[name] = pa.array([None if v is None else json.dumps(v, ensure_ascii=False) for v in values])
    return pa.table(columns)
