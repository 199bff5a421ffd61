"""A first look at the input: which files there are, how each is to be read, and which columns rows bring along."""

from collections.abc import Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayferry.job import columns, identity, storage
from rayferry.job.columns import NO_COLUMNS, Columns
from rayferry.job.errors import JobError
from rayferry.job.formats import HEAD_BYTES, Kind, by_name, compression_of, decide
from rayferry.job.inflate import Inflated
from rayferry.job.input_spec import InputSpec
from rayferry.job.readers import read_chunks
from rayferry.job.records import BadRecordError, Chunk, Record, distinct, is_store_failure, whole
from rayferry.job.rows import answer_schema, json_text, reserved_names
from rayferry.job.spec import JobSpec
from rayferry.job.storage import File

_MAX_SAMPLED_FILES = 32
_SAMPLED_ROWS = 1000
_MEASURED_ROWS = 100
_USUAL_COMPRESSION = 4
_ROW_OVERHEAD_BYTES = 200
_PIECE_BYTES = 512
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
        copied: the own column (of text, by its name in the output) that is the prompt once more, in most rows.
        num_rows: about how many rows there are.
        row_bytes: about how much memory one takes.
    """

    filesystem: Any
    files: list[File]
    formats: dict[str, tuple[str, str]]
    openai: bool
    columns: Columns
    dropped: str | None = None
    copied: str | None = None
    num_rows: int = 0
    row_bytes: int = 1000

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.num_bytes for file in self.files)


def look(spec: JobSpec, before: Mapping[str, Any] | None = None) -> Input:
    """Lists the input and samples it: what its files are, and which columns rows bring along.

    Reads the beginning of at most 32 files, evenly spread.

    Args:
        spec: the job.
        before: what the run was asked that is gone on with: its files come first, and its columns keep their types.

    Raises:
        JobError: nothing is there, or the store does not answer; or what came since is of a kind of its own.
    """
    files = storage.list_files(spec.input.uris, anonymous=spec.input.anonymous)
    filesystem, _ = storage.filesystem(spec.input.uris[0], anonymous=spec.input.anonymous)
    if before is None:
        return look_into(spec, filesystem, files)
    files = identity.in_order(files, before["files"])
    found = look_into(spec, filesystem, files, known=Columns.from_json(before["columns"]), openai=before["openai"])
    if found.openai and not before["openai"]:
        path = found.formats["openai"][0]
        msg = f"{path} has OpenAI batch lines, and the run was begun without any; give them a run of their own"
        raise JobError(msg)
    return found


def look_into(
    spec: JobSpec,
    filesystem: Any,
    files: list[File],
    max_rows: int = _SAMPLED_ROWS,
    *,
    known: Columns = NO_COLUMNS,
    openai: bool = False,
) -> Input:
    """What `look` tells, of these files.

    Args:
        spec: the job.
        filesystem: opens them, by `open_input_file`.
        files: the files, at least one.
        max_rows: of each file to look at.
        known: columns of parts that are written already.
        openai: rows are OpenAI batch lines, whatever this look shows.

    Raises:
        JobError: the store does not answer.
    """
    step = max(1, -(-len(files) // _MAX_SAMPLED_FILES))
    sampled = files[::step]
    with ThreadPoolExecutor(min(16, len(sampled))) as pool:
        looks = list(pool.map(lambda file: _look_at(filesystem, file, spec.input, max_rows), sampled))
    kinds = [one.kind for one in looks]
    formats = {kind.format: (file.path, kind.reason) for file, kind in zip(sampled, kinds, strict=True)}
    openai = openai or "openai" in formats
    reserved = reserved_names(answer_schema(spec, openai=openai))
    found = [
        columns.from_schema(one.rows, reserved)
        if isinstance(one.rows, pa.Schema)
        else columns.infer(one.rows, reserved)
        for one in looks
    ]
    merged = {**known.columns, **columns.merge(found), **known.columns}  # in their order
    prompt = None if openai else prompt_column(spec.input, merged)
    dropped = "prompt" if prompt == "prompt" else None
    merged.pop(dropped or "", None)
    copied = merged[prompt].name if prompt in merged and merged[prompt].type == pa.string() else None
    plain = {"text", "binary"}
    rescue = not (set(formats) <= plain and all(by_name(file.path) in plain for file in set(files) - set(sampled)))
    share = sum(file.num_bytes for file in sampled) / sum(file.num_bytes for file in files)
    seen = sum(one.num_rows for one in looks)
    row_bytes = sum(one.row_bytes * one.num_rows for one in looks) / max(1, seen)
    # a row carries its prompt, which may be all of its columns again, and where it came from
    size = (int(seen / share), int(row_bytes * (1 if prompt else 2)) + _ROW_OVERHEAD_BYTES)
    return Input(filesystem, files, formats, openai, Columns(merged, rescue or known.rescue), dropped, copied, *size)


def prompt_column(spec: InputSpec, names: Container[str]) -> str | None:
    """The column whose text is the whole prompt of a row that has these columns, or None."""
    if any(getattr(spec, name) is not None for name in _BEYOND_COLUMN):
        return None
    return spec.column or next((name for name in ("text", "prompt") if name in names), None)


@dataclass(frozen=True)
class _Sample:
    """What the beginning of a file shows: its columns or first records, and about how many rows of what size it has."""

    kind: Kind
    rows: pa.Schema | list[Record]
    num_rows: float = 0.0
    row_bytes: float = 0.0


def _look_at(filesystem: Any, file: File, spec: InputSpec, max_rows: int) -> _Sample:
    try:
        with filesystem.open_input_file(file.path) as f:
            kind, stream = open_as(f, file.path, spec)
            if kind.format == "parquet":
                return _parquet_sample(kind, stream)
            chunks = read_chunks(stream, kind.format, as_bytes=spec.image_column is not None)
            records = _first_records(chunks, max_rows)
            if kind.format == "binary":
                return _Sample(kind, records, 1, file.num_bytes)
            some = records[:_MEASURED_ROWS]
            row_bytes = sum(len(json_text(record)) for record in some) / max(1, len(some))
            num_bytes = file.num_bytes * (_USUAL_COMPRESSION if kind.compression else 1)
            return _Sample(kind, records, num_bytes / row_bytes if some else 0, row_bytes)
    except OSError as error:
        msg = f"{file.path}: cannot be read: {error}; check that the cluster may read all of the input"
        raise JobError(msg) from error


def _parquet_sample(kind: Kind, stream: Any) -> _Sample:
    try:
        file = pq.ParquetFile(stream)
        metadata, schema = file.metadata, file.schema_arrow
        num_bytes = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
        names = distinct(schema.names)
    except Exception as error:
        if is_store_failure(error):
            raise
        return _Sample(kind, [])
    columns_ = pa.schema([column.with_name(name) for column, name in zip(schema, names, strict=True)])
    return _Sample(kind, columns_, max(0, metadata.num_rows), max(0, num_bytes) / max(1, metadata.num_rows))


def _first_records(chunks: Iterator[Chunk], max_rows: int) -> list[Record]:
    records: list[Record] = []
    for chunk in chunks:
        records += [own(record) for record in chunk.to_list() if not isinstance(record, BadRecordError)]
        if len(records) >= max_rows:
            break
    return records[:max_rows]


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
    if found == "openai" and spec.format == "auto" and spec.says_prompt:
        found, reason = "jsonl", ""
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
