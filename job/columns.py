"""The input's own columns: their names and types, found once at the start, so that every part has the same."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from rayferry.job.rows import RESCUED, json_text, own_name

_MAX_COLUMNS = 500
_MAX_DEPTH = 16
_MAX_EXACT = float(2**53)
_PYTHON = {
    pa.bool_(): (bool,),
    pa.int64(): (int,),
    pa.float64(): (int, float),
    pa.string(): (str,),
    pa.binary(): (bytes,),
}
_SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}


@dataclass(frozen=True)
class Column:
    """One own column.

    Attributes:
        name: its name in the output.
        type: its Arrow type.
        as_json: its values are kept as text: text as it is, anything else as JSON.
    """

    name: str
    type: pa.DataType
    as_json: bool = False


@dataclass(frozen=True)
class Columns:
    """All own columns of a run, by their names in the input.

    A value that does not fit its column, or has none, is not lost: it goes to the column `rescued_data`, as JSON
    `{name: value}`; the row's own column is null then.

    Attributes:
        columns: what a sample of the input showed, in order of appearance.
        rescue: the output has a column `rescued_data`.
    """

    columns: Mapping[str, Column] = field(default_factory=dict)
    rescue: bool = False

    @property
    def schema(self) -> pa.Schema:
        """The own columns as they follow ours in the output."""
        fields = [pa.field(column.name, column.type) for column in self.columns.values()]
        return pa.schema([*fields, pa.field(RESCUED, pa.string())] if self.rescue else fields)

    @property
    def renamed(self) -> dict[str, str]:
        """The columns that could not keep their names."""
        return {name: column.name for name, column in self.columns.items() if name != column.name}

    def to_json(self) -> dict[str, Any]:
        """Its form in `_meta/run.json`; `from_json` is the way back."""
        schema = pa.schema([pa.field(name, column.type) for name, column in self.columns.items()])
        return {
            "types": base64.b64encode(schema.serialize()).decode(),
            "names": [column.name for column in self.columns.values()],
            "as_json": [name for name, column in self.columns.items() if column.as_json],
            "rescue": self.rescue,
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Columns":
        """What `to_json` gave."""
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(told["types"])))
        columns = {
            field.name: Column(name, field.type, as_json=field.name in told["as_json"])
            for field, name in zip(schema, told["names"], strict=True)
        }
        return cls(columns, told["rescue"])

    def json_schema(self, further: str | None = None) -> pa.Schema | None:
        """What Arrow's own JSON reader is to find, and a further text column; None if it could not give these types."""
        plain = {pa.bool_(), pa.int64(), pa.float64(), pa.string()}
        types = {name: column.type for name, column in self.columns.items()}
        if further is not None:
            types[further] = pa.string()
        if not types or not all(kind in plain or _is_list(kind, plain) for kind in types.values()):
            return None
        if any(column.as_json for column in self.columns.values()):
            return None
        return pa.schema(list(types.items()))

    def from_table(self, table: pa.Table) -> list[pa.Array] | None:
        """The own columns of records that came as a table; None unless each fits as it is."""
        if any(name not in self.columns for name in table.column_names):
            return None
        arrays = []
        for name, column in self.columns.items():
            if name not in table.column_names:
                arrays.append(pa.nulls(table.num_rows, column.type))
            elif table.schema.field(name).type == column.type:
                arrays.append(table.column(name).combine_chunks())
            else:
                return None
        return [*arrays, pa.nulls(table.num_rows, pa.string())] if self.rescue else arrays

    def from_records(self, records: Sequence[Mapping[str, Any] | None]) -> list[pa.Array]:
        """The own columns of records; None stands for a row that failed and has none."""
        rest: list[dict[str, Any]] = [
            {name: value for name, value in record.items() if name not in self.columns and value is not None}
            if record
            else {}
            for record in records
        ]
        arrays = []
        for name, column in self.columns.items():
            array, misfits = _fit([record.get(name) if record else None for record in records], column)
            for index, value in misfits.items():
                rest[index][name] = value
            arrays.append(array)
        if self.rescue:
            arrays.append(pa.array([json_text(values) if values else None for values in rest], pa.string()))
        return arrays


NO_COLUMNS = Columns()


def from_schema(found: pa.Schema, reserved: set[str]) -> dict[str, Column]:
    """Own columns by a file's schema; what Parquet cannot hold becomes JSON text."""
    return {column.name: Column(own_name(column.name, reserved), *_stored(column.type)) for column in found}


def infer(records: Iterable[Mapping[str, Any]], reserved: set[str]) -> dict[str, Column]:
    """Own columns by sample records: numbers, truth values, text and lists of these; all else as JSON text."""
    seen: dict[str, set[pa.DataType | None]] = {}
    for record in records:
        for name, value in record.items():
            if name in seen or len(seen) < _MAX_COLUMNS:
                kinds = seen.setdefault(name, set())
                if value is not None:
                    kinds.add(_kind(value))
    found = {}
    for name, kinds in seen.items():
        if kinds == {pa.int64(), pa.float64()}:
            kinds = {pa.float64()}  # noqa: PLW2901
        kind = next(iter(kinds)) if len(kinds) == 1 else None
        found[name] = Column(own_name(name, reserved), kind or pa.string(), as_json=kind is None)
    return found


def merge(several: Sequence[Mapping[str, Column]]) -> dict[str, Column]:
    """Own columns of all sampled files: one type for each name, or JSON text where files disagree."""
    merged: dict[str, Column] = {}
    for columns in several:
        for name, column in columns.items():
            if name not in merged:
                if len(merged) < _MAX_COLUMNS:
                    merged[name] = column
            elif merged[name] != column:
                merged[name] = _common(merged[name], column)
    return merged


def parse_json_lines(lines: bytes, num_lines: int, schema: pa.Schema) -> pa.Table | None:
    """JSON lines by Arrow's own reader; None unless each line is one object that fits `schema` exactly."""
    options = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    try:
        lines.decode()
        table = pajson.read_json(
            pa.BufferReader(lines), pajson.ReadOptions(use_threads=False, block_size=1 << 30), options
        )
    except (pa.ArrowException, ValueError):
        return None
    if table.num_rows != num_lines or any(_rounded(table.column(name)) for name in table.column_names):
        return None
    return table


def _rounded(column: pa.ChunkedArray) -> bool:
    """True if a whole number may have lost digits on its way into a column of floats."""
    values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    if not pa.types.is_floating(values.type):
        return False
    return bool(pc.any(pc.greater_equal(pc.abs(values), _MAX_EXACT)).as_py())


def _common(one: Column, other: Column) -> Column:
    numbers = {pa.int64(), pa.float64()}
    if {one.type, other.type} == numbers and not (one.as_json or other.as_json):
        return Column(one.name, pa.float64())
    return Column(one.name, pa.string(), as_json=True)


def _stored(kind: pa.DataType) -> tuple[pa.DataType, bool]:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return pa.string(), True
    return (kind, False) if _is_writable(kind) else (pa.string(), True)


def _is_writable(kind: pa.DataType, depth: int = 0) -> bool:
    """False for what Parquet has no form for: a struct without fields, or nesting past all sense."""
    if depth > _MAX_DEPTH or (pa.types.is_struct(kind) and not kind.num_fields):
        return False
    if isinstance(kind, pa.ExtensionType) or pa.types.is_union(kind) or pa.types.is_dictionary(kind):
        return False
    return all(_is_writable(kind.field(index).type, depth + 1) for index in range(kind.num_fields))


def _kind(value: object) -> pa.DataType | None:
    """The type of one value of JSON; None if it is to be kept as JSON."""
    if type(value) in _SCALARS:
        return _SCALARS[type(value)]
    if isinstance(value, list) and value:
        kinds = {_SCALARS.get(type(item)) for item in value}
        if len(kinds) == 1 and None not in kinds:
            return pa.list_(kinds.pop())
    return None


def _is_list(kind: pa.DataType, of: set[pa.DataType]) -> bool:
    return pa.types.is_list(kind) and kind.value_type in of


def _fit(values: list[Any], column: Column) -> tuple[pa.Array, dict[int, Any]]:
    """Values as an array of the column's type, null where one does not fit; and those, by their index."""
    if column.as_json:
        texts = [value if value is None or isinstance(value, str) else json_text(value) for value in values]
        return _fit(texts, Column(column.name, column.type))
    misfits: dict[int, Any] = {index: value for index, value in enumerate(values) if not _fits(value, column.type)}
    if not misfits:
        try:
            return pa.array(values, column.type), {}
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            pass
    for index, value in enumerate(values):
        if index in misfits:
            continue
        try:
            pa.array([value], column.type)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            misfits[index] = value
    return pa.array([None if index in misfits else value for index, value in enumerate(values)], column.type), misfits


def _fits(value: Any, kind: pa.DataType) -> bool:
    """False for what Arrow would take only by changing it: 1.5 as 1, text as a list of letters, a struct cut."""
    if value is None:
        return True
    if kind in _PYTHON:
        return type(value) in _PYTHON[kind]
    if pa.types.is_integer(kind):
        return type(value) is int
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return isinstance(value, list) and all(_fits(item, kind.value_type) for item in value)
    if pa.types.is_struct(kind):
        types = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
        return isinstance(value, dict) and all(
            name in types and _fits(item, types[name]) for name, item in value.items()
        )
    return True
