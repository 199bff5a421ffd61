"""Prompts in: the input's files as a Ray Dataset of rows with ids."""

import time
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data.datasource import DefaultFileMetadataProvider, FileBasedDatasource

from rayferry.job import columns, storage
from rayferry.job.columns import Columns
from rayferry.job.errors import JobError
from rayferry.job.formats import HEAD_BYTES, Kind, by_name, compression_of, decide
from rayferry.job.ids import Repeated, hash_of
from rayferry.job.input_spec import InputSpec
from rayferry.job.openai_batch import BatchLines
from rayferry.job.prompts import Prompter
from rayferry.job.readers import (
    BadRecordError,
    Chunk,
    Inflated,
    Record,
    distinct,
    is_store_failure,
    read_chunks,
    whole,
)
from rayferry.job.rows import SOURCE_SCHEMA, RowError, answer_schema, json_text, raw_text, reserved_names
from rayferry.job.spec import JobSpec
from rayferry.job.storage import File

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_MAX_SAMPLED_FILES = 32
_SAMPLED_ROWS = 1000
_PIECE_BYTES = 512
_TELL_EVERY_S = 1.0
# All that makes a row's prompt more than one column's text.
_BEYOND_COLUMN = ("template", "messages_column", "token_ids_column", "document_column", "image_column",
                  "sampling_column", "adapter_column")  # fmt: skip


@dataclass(frozen=True)
class Input:
    """What a look at the input showed, before anything is read in full.

    Attributes:
        filesystem: where they are.
        files: the files, in order.
        formats: each format that the sampled files have, with one such file and what decided.
        openai: rows are OpenAI batch lines; what is not, in whatever file, is a failed row.
        columns: the input's own columns.
        dropped: the input's column that is not kept, as it is `prompt` already.
    """

    filesystem: Any
    files: list[File]
    formats: dict[str, tuple[str, str]]
    openai: bool
    columns: Columns
    dropped: str | None = None

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.num_bytes for file in self.files)

    @property
    def identity(self) -> list[tuple[str, int]]:
        """Path and size of every file, for the fingerprint."""
        return [(file.path, file.num_bytes) for file in self.files]


def look(spec: JobSpec) -> Input:
    """Lists the input and samples it: what its files are, and which columns rows bring along.

    Reads the beginning of at most 32 files, evenly spread.

    Raises:
        JobError: nothing is there, or the store does not answer.
    """
    files = storage.list_files(spec.input.uris, anonymous=spec.input.anonymous)
    step = max(1, -(-len(files) // _MAX_SAMPLED_FILES))
    sampled = files[::step]
    filesystem, _ = storage.filesystem(spec.input.uris[0], anonymous=spec.input.anonymous)
    with ThreadPoolExecutor(min(16, len(sampled))) as pool:
        looks = list(pool.map(lambda file: _look_at(filesystem, file, spec.input), sampled))
    formats = {kind.format: (file.path, kind.reason) for file, (kind, _) in zip(sampled, looks, strict=True)}
    openai = "openai" in formats
    reserved = reserved_names(answer_schema(spec, openai=openai))
    found = [
        columns.from_schema(rows, reserved) if isinstance(rows, pa.Schema) else columns.infer(rows, reserved)
        for _, rows in looks
    ]
    merged = columns.merge(found)
    dropped = "prompt" if not openai and _prompt_column(spec.input, merged) == "prompt" else None
    merged.pop(dropped or "", None)
    plain = {"text", "binary"}
    rescue = not (set(formats) <= plain and all(by_name(file.path) in plain for file in set(files) - set(sampled)))
    return Input(filesystem, files, formats, openai, Columns(merged, rescue), dropped)


def _prompt_column(spec: InputSpec, names: Container[str]) -> str | None:
    """The column whose text is the whole prompt of a row that has these columns, or None."""
    if any(getattr(spec, name) is not None for name in _BEYOND_COLUMN):
        return None
    return spec.column or next((name for name in ("text", "prompt") if name in names), None)


def _look_at(filesystem: Any, file: File, spec: InputSpec) -> tuple[Kind, "pa.Schema | list[Record]"]:
    try:
        with filesystem.open_input_file(file.path) as f:
            kind, stream = open_as(f, file.path, spec)
            if kind.format == "parquet":
                try:
                    schema = pq.read_schema(stream)
                    names = distinct(schema.names)
                    return kind, pa.schema([column.with_name(name) for column, name in zip(schema, names, strict=True)])
                except Exception as error:
                    if is_store_failure(error):
                        raise
                    return kind, []
            chunks = read_chunks(stream, kind.format, as_bytes=spec.image_column is not None)
            return kind, _first_records(chunks)
    except OSError as error:
        msg = f"{file.path}: cannot be read: {error}; check that the cluster may read all of the input"
        raise JobError(msg) from error


def _first_records(chunks: Iterator[Chunk]) -> list[Record]:
    records: list[Record] = []
    for chunk in chunks:
        records += [own(record) for record in chunk.records if not isinstance(record, BadRecordError)]
        if len(records) >= _SAMPLED_ROWS:
            break
    return records[:_SAMPLED_ROWS]


def own(record: Record) -> Record:
    """The columns of a record that are to be kept: not the content of a binary file."""
    return {} if record.keys() == {"bytes"} else record


def open_as(f: Any, path: str, spec: InputSpec) -> tuple[Kind, Any]:
    """Decides how to read an open file, and opens it so.

    Args:
        f: the file, with random access, at its beginning.
        path: its path.
        spec: may say its format.

    Returns:
        The kind, and the file decompressed.

    Raises:
        OSError: the store failed.
    """
    head = f.read_at(HEAD_BYTES, 0)
    f.seek(0)  # a local file does not say where that left it
    codec = compression_of(path, head)
    if codec is not None:
        head = _decompressed(head, codec)
    found, reason = (spec.format, "") if spec.format != "auto" else decide(path, head)
    stream = Inflated(f, codec) if codec is not None else f
    if codec is not None and found == "parquet":
        content = whole(stream)
        stream = pa.BufferReader(b"" if isinstance(content, BadRecordError) else content)
    return Kind(found, codec, reason), stream


def _decompressed(head: bytes, codec: str) -> bytes:
    """What the beginning of a compressed file holds, as far as it goes."""
    stream = pa.CompressedInputStream(pa.BufferReader(head), codec)
    pieces: list[bytes] = []
    try:
        while len(pieces) * _PIECE_BYTES < HEAD_BYTES and (piece := stream.read(_PIECE_BYTES)):
            pieces.append(piece)
    except OSError:
        pass  # the beginning ends amid a block
    return b"".join(pieces)


def read(
    spec: JobSpec, found: Input, progress: "ActorHandle[Any] | None" = None, repeated: Repeated | None = None
) -> ray.data.Dataset:
    """Reads the input lazily.

    **Shape**: one row per line (text, blank lines aside), object (JSON), record (CSV), row (Parquet) or file
    (binary); columns as `rows.SOURCE_SCHEMA`, then the input's own. A row that cannot be used has `stage`,
    `error_type` and `error` set and no prompt. Same input, same ids, whatever the parallelism.

    Args:
        spec: the job.
        found: what `look` saw.
        progress: told the number of rows of every file once it is read.
        repeated: what `ids.find_repeated` saw, if rows name themselves.
    """
    source = PromptDatasource(spec, found, progress, repeated)
    # one task a file, so that a few large files are read at once; small ones share a task
    tasks = min(len(found.files), 1000)
    return ray.data.read_datasource(source, override_num_blocks=tasks)


class _Listed(DefaultFileMetadataProvider):  # type: ignore[misc]  # ray.data has no types for it
    """Hands back the listing that is there already, instead of asking the store for every size again."""

    def __init__(self, files: list[File]) -> None:
        self._files = files

    def expand_paths(self, *_args: object, **_kwargs: object) -> Iterator[tuple[str, int]]:
        yield from ((file.path, file.num_bytes) for file in self._files)


class PromptDatasource(FileBasedDatasource):  # type: ignore[misc]  # ray.data has no types for it
    """Ray Data's reading of files (tasks, retries of a cut stream), with our rows.

    Source: https://docs.ray.io/en/latest/data/api/doc/ray.data.datasource.FileBasedDatasource.html
    """

    def __init__(
        self,
        spec: JobSpec,
        found: Input,
        progress: "ActorHandle[Any] | None" = None,
        repeated: Repeated | None = None,
    ) -> None:
        paths = [file.path for file in found.files]
        super().__init__(paths, filesystem=found.filesystem, meta_provider=_Listed(found.files))
        self._rows = RowMaker(spec, found, repeated)
        self._num_bytes = {file.path: file.num_bytes for file in found.files}
        self._progress = progress

    def _open_input_source(self, filesystem: Any, path: str, **_open_args: Any) -> Any:
        return filesystem.open_input_file(path)  # with random access: it is looked into before it is read

    def _read_stream(self, f: Any, path: str) -> Iterator[pa.Table]:
        if f.closed:  # by a reading of it that failed and is tried again
            f = self._filesystem.open_input_file(path)
        count = 0
        told = time.monotonic()
        for table in self._rows.tables(f, path):
            count += table.num_rows
            if self._progress is not None and time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                self._progress.file_partly_read.remote(path, count, f.tell())
            yield table
        if self._progress is not None:
            ray.get(self._progress.file_read.remote(path, count, self._num_bytes[path]))


class RowMaker:
    """Makes rows of a file's records: ids, prompts, own columns; and of what is wrong with a record, an error."""

    def __init__(self, spec: JobSpec, found: Input, repeated: Repeated | None = None) -> None:
        self._spec = spec
        self._found = found
        self._labels = {file.path: (index, file.label) for index, file in enumerate(found.files)}
        self._repeated = repeated or {}
        self._scheme = "s3://" if spec.input.uris[0].startswith("s3://") else ""
        self._json_schema = found.columns.json_schema(found.dropped) if spec.input.id_column is None else None

    def tables(self, f: Any, path: str) -> Iterator[pa.Table]:
        """All rows of an open file, in the columns of SOURCE_SCHEMA and the own columns."""
        prompter = self._prompter()
        index, label = self._labels[path]
        start = (self._scheme + path, label, index)
        for chunk in self._chunks(f, path):
            table = self._fast(chunk, start)
            yield self._slow(chunk, start, prompter) if table is None else table

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

    def _chunks(self, f: Any, path: str) -> Iterator[Chunk]:
        """The records of an open file."""
        f.seek(0)
        kind, stream = open_as(f, path, self._spec.input)
        format_ = kind.format
        if self._found.openai and format_ == "jsonl":
            format_ = "openai"
        return read_chunks(stream, format_, self._json_schema, as_bytes=self._spec.input.image_column is not None)

    def _fast(self, chunk: Chunk, start: tuple[str, str, int]) -> pa.Table | None:
        """The rows of a table whose prompts are all usable and whose columns all fit; None otherwise."""
        table = chunk.records
        if not isinstance(table, pa.Table) or self._found.openai or self._spec.input.id_column is not None:
            return None
        column = _prompt_column(self._spec.input, table.column_names)
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
        ours = [ids, pa.repeat(source_uri, table.num_rows), positions, prompts, *[nothing] * 5]
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
