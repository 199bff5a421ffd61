"""The columns that travel between source, predictor and sink, and how a failed row is written in them."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayferry.job.spec import GENERATING, JobSpec

# What the source makes of one input row, before the input's own columns. `stage` is null for a good row.
SOURCE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("prompt", pa.string()),
        # what the engine is asked beyond the plain prompt, as JSON (see `calls`)
        pa.field("request", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("error_type", pa.string()),
        pa.field("error", pa.string()),
        pa.field("raw", pa.string()),
        # an own column is the prompt once more: it travels as nulls (see `without_copy`)
        pa.field("_copied", pa.bool_()),
    ]
)
# errors/: exactly these.
ERROR_SCHEMA = pa.schema(
    [
        *(SOURCE_SCHEMA.field(name) for name in ("id", "source_uri", "position", "stage", "error_type", "error")),
        pa.field("raw", pa.string()),
    ]
)
# Where a row can fail, in the order in which it meets them.
STAGES = ("read", "decode", "parse", "template", "tokenize", "length", "engine", "write")
# The input's own columns that do not fit the columns found at the start of the run, as JSON.
RESCUED = "rescued_data"
# A response in OpenAI's form; the sink writes it to openai/ and not to data/.
RESPONSE = "_response"
RAW_CHARS = 4096

_VECTOR = pa.list_(pa.float32())
_LOGPROB = [("token", pa.string()), ("token_id", pa.int64()), ("logprob", pa.float64())]
_LOGPROBS = pa.list_(pa.struct([*_LOGPROB, ("top", pa.list_(pa.struct(_LOGPROB)))]))
_OUTPUT = pa.struct(
    [
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("num_generated_tokens", pa.int64()),
        ("logprobs", _LOGPROBS),
    ]
)


def without_copy(table: pa.Table, name: str) -> pa.Table:
    """A block whose own column `name` is left out where it is the prompt, which is most of many rows' bytes."""
    if not table.column(name).equals(table.column("prompt")):
        return table
    at = table.schema.get_field_index(name)
    table = table.set_column(at, table.schema.field(at), pa.nulls(table.num_rows, pa.string()))
    at = table.schema.get_field_index("_copied")
    return table.set_column(at, table.schema.field(at), pa.repeat(pa.scalar(value=True), table.num_rows))


def with_copy(table: pa.Table, name: str) -> pa.Table:
    """What `without_copy` left out, put back."""
    copied = pc.fill_null(table.column("_copied"), fill_value=False)
    at = table.schema.get_field_index(name)
    whole = pc.if_else(copied, table.column("prompt"), table.column(name))
    return table.set_column(at, table.schema.field(at), whole)


class RowError(Exception):
    """A row that cannot be answered.

    Attributes:
        stage: where it failed, one of STAGES.
        error_type: the kind of failure.
    """

    def __init__(self, stage: str, error_type: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.error_type = error_type

    def columns(self) -> dict[str, str]:
        """The three columns that say why the row failed."""
        return {"stage": self.stage, "error_type": self.error_type, "error": clean(str(self))}


def answer_schema(spec: JobSpec, *, openai: bool) -> pa.Schema:
    """What the predictor adds for this job; the same for every part of it.

    Args:
        spec: the job.
        openai: the input is OpenAI batch lines.
    """
    fields: list[tuple[str, pa.DataType]]
    if spec.task in GENERATING:
        fields = [
            ("generated_text", pa.string()),
            ("finish_reason", pa.string()),
            ("num_input_tokens", pa.int64()),
            ("num_generated_tokens", pa.int64()),
        ]
        sampling = spec.sampling
        # anything that one text cannot hold; a row's own sampling may ask for it too
        if (sampling.n or 1) > 1 or sampling.logprobs is not None or spec.input.sampling_column or openai:
            fields.append(("outputs", pa.list_(_OUTPUT)))
    elif spec.task == "embed":
        fields = [("embedding", _VECTOR), ("num_input_tokens", pa.int64())]
        if openai:
            fields.append(("embeddings", pa.list_(_VECTOR)))
    elif spec.task == "classify":
        fields = [("label", pa.string()), ("probs", _VECTOR), ("num_input_tokens", pa.int64())]
    else:
        fields = [("score", pa.float64()), ("num_input_tokens", pa.int64())]
    return pa.schema([*fields, ("model", pa.string())])


def data_schema(spec: JobSpec, own: pa.Schema, *, openai: bool) -> pa.Schema:
    """The columns of data/: the same in every part of a run."""
    ours = [SOURCE_SCHEMA.field("id"), SOURCE_SCHEMA.field("prompt")]
    return pa.schema([*ours, *answer_schema(spec, openai=openai), *own])


def own_name(column: str, reserved: set[str]) -> str:
    """The name that an input column has in the output: its own, or `input_<name>` where ours has it.

    Two columns never get one name: what looks like such a name gets a further `input_`.
    """
    bare = column
    while bare.startswith("input_"):
        bare = bare.removeprefix("input_")
    return f"input_{column}" if bare in reserved else column


def reserved_names(answers: pa.Schema) -> set[str]:
    """The names of data/ that are ours: an input column of such a name gets another."""
    return {"id", "prompt", RESCUED, *SOURCE_SCHEMA.names, RESPONSE, *answers.names}


def json_text(value: object) -> str:
    """A value as JSON text; what JSON has no form for as its text, and broken characters replaced."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=_plain)
    except (RecursionError, ValueError, TypeError):
        text = '"a value nested too deeply, or not to be written as JSON"'
    return clean(text)


def clean(text: str) -> str:
    """Text as UTF-8 can hold it: lone surrogates are replaced."""
    return text.encode(errors="replace").decode()


def raw_text(row: Mapping[str, Any]) -> str:
    """An input row for the `raw` column: JSON, cut to 4,096 characters."""
    return json_text({name: _short(value) for name, value in row.items()})[:RAW_CHARS]


def _short(value: object) -> object:
    """A long text or binary value cut before it is made into JSON only to be cut there."""
    return value[:RAW_CHARS] if isinstance(value, str | bytes) else value


def _plain(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
