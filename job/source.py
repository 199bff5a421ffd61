"""Prompts in: the input's files as a Ray Dataset of rows with ids."""

import codecs
import csv
import io
import json
import posixpath
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data.datasource import DefaultFileMetadataProvider, FileBasedDatasource

from rayferry.job import storage
from rayferry.job.rows import failure, own_name, pack, raw_text, to_table
from rayferry.job.spec import COMPRESSION, InputSpec

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_ROWS_PER_BLOCK = 512
_MIB = 1 << 20

Row = dict[str, Any]


def read(spec: InputSpec, files: list[tuple[str, int]], progress: "ActorHandle[Any] | None" = None) -> ray.data.Dataset:
    """Reads the input lazily.

    **Shape**: one row per line (text, blank lines aside), object (JSONL), record (CSV), row (Parquet) or
    file (binary); columns as `rows.SOURCE_SCHEMA`, then the input's own. A row that cannot be used has
    `stage`, `error_type` and `error` set and no prompt. Same input, same ids, whatever the parallelism.

    Args:
        spec: where and what.
        files: what `storage.list_files` found.
        progress: told the number of rows of every file once it is read.
    """
    source = PromptDatasource(spec, files, progress)
    # one task a file, so that a few large files are read at once; small ones share a task
    tasks = min(len(files), 1000)
    return ray.data.read_datasource(source, override_num_blocks=tasks)


class _Listed(DefaultFileMetadataProvider):  # type: ignore[misc]  # ray.data has no types for it
    """Hands back the listing that is there already, instead of asking the store for every size again."""

    def __init__(self, files: list[tuple[str, int]]) -> None:
        self._files = files

    def expand_paths(self, *_args: object, **_kwargs: object) -> Iterator[tuple[str, int]]:
        yield from self._files


class PromptDatasource(FileBasedDatasource):  # type: ignore[misc]  # ray.data has no types for it
    """Ray Data's reading of files (listing, retries of a cut stream, compression), with our rows.

    Source: https://docs.ray.io/en/latest/data/api/doc/ray.data.datasource.FileBasedDatasource.html
    """

    def __init__(
        self, spec: InputSpec, files: list[tuple[str, int]], progress: "ActorHandle[Any] | None" = None
    ) -> None:
        filesystem, root = storage.filesystem(spec.uri, anonymous=spec.anonymous)
        super().__init__([path for path, _ in files], filesystem=filesystem, meta_provider=_Listed(files))
        self._spec = spec
        self._root = root.rstrip("/")
        self._scheme = "s3://" if spec.uri.startswith("s3://") else ""
        self._progress = progress

    def _open_input_source(self, filesystem: Any, path: str, **open_args: Any) -> Any:
        if self._spec.format_of(path) == "parquet":
            return filesystem.open_input_file(path)  # its footer is read first: random access
        if posixpath.splitext(path)[1].lower() in COMPRESSION:  # Ray's own look is for small letters
            open_args["compression"] = pa.Codec.detect(path.lower()).name
        return super()._open_input_source(filesystem, path, **open_args)

    def _read_stream(self, f: Any, path: str) -> Iterator[pa.Table]:
        count = 0
        rows = self._rows(f, path)
        while block := list(islice(rows, _ROWS_PER_BLOCK)):
            count += len(block)
            yield to_table(block)
        if self._progress is not None:
            ray.get(self._progress.file_read.remote(path, count))

    def _rows(self, f: Any, path: str) -> Iterator[Row]:
        kind = self._spec.format_of(path)
        label = path[len(self._root) :].lstrip("/") or posixpath.basename(path)
        for position, record in _READERS[kind](f):
            row: Row = {
                "id": f"{label}:{position}",
                "source_uri": self._scheme + path,
                "position": position,
            }
            if isinstance(record, _Bad):
                yield row | failure("parse", record.error_type, record.error) | {"raw": record.raw}
            else:
                yield row | self._fields(record)

    def _fields(self, record: Row) -> Row:
        """Prompt and own columns of a record; or, if it has no usable prompt, what is wrong with it."""
        column = self._spec.column or next((name for name in ("text", "prompt") if name in record), "text")
        value = record.get(column)
        fields: Row = {}
        problem = None
        if self._spec.id_column is not None:
            if record.get(self._spec.id_column) is None:
                problem = failure("parse", "MissingId", f"no value in id column {self._spec.id_column!r}")
            else:
                fields["id"] = str(record[self._spec.id_column])
        if column not in record:
            known = ", ".join(record) or "none"
            problem = failure("parse", "MissingColumn", f"no column {column!r}; the row has: {known}")
        elif not isinstance(value, str | list) or not value:
            what = "empty" if value in (None, "", []) else f"a {type(value).__name__}, not text"
            problem = failure("parse", "BadPrompt", f"column {column!r} is {what}")
        if problem:
            return fields | problem | {"raw": raw_text(record)}
        fields["prompt"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)  # chat messages
        own = {own_name(name): item for name, item in record.items()}
        if column == "prompt":
            del own["input_prompt"]  # the same text as ours
        try:
            return fields | {"own": pack(own)}
        except RecursionError:
            return fields | failure("parse", "RecursionError", "a value is nested too deeply") | {"prompt": None}


class _Bad:
    """A record that could not be parsed."""

    def __init__(self, error: Exception, raw: str) -> None:
        self.error_type = type(error).__name__
        self.error = str(error)
        self.raw = raw[:4096]


def _lines(f: Any) -> Iterator[tuple[int, bytes]]:
    """Lines with their number, from 0, blank ones left out."""
    buffered = io.BufferedReader(f, _MIB) if isinstance(f, io.RawIOBase) else f
    rest = b""
    number = 0
    while chunk := buffered.read(_MIB):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield number, line.rstrip(b"\r")
            number += 1
    if rest.strip():
        yield number, rest.rstrip(b"\r")


def _text(f: Any) -> Iterator[tuple[int, Row | _Bad]]:
    for number, line in _lines(f):
        try:
            yield number, {"text": (line if number else line.removeprefix(codecs.BOM_UTF8)).decode()}
        except UnicodeDecodeError as error:
            yield number, _Bad(error, line.decode(errors="replace"))


def _jsonl(f: Any) -> Iterator[tuple[int, Row | _Bad]]:
    for number, line in _lines(f):
        try:
            value = json.loads(line.decode("utf-8-sig"))
            if b"\\ud" in line or b"\\uD" in line:
                json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is no text
            if not isinstance(value, dict):
                msg = f"a line must be a JSON object, this one is {type(value).__name__}"
                raise ValueError(msg)  # noqa: TRY004, TRY301  # one way out for every bad line
        except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors, and nesting past all sense
            yield number, _Bad(error, line.decode(errors="replace"))
        else:
            yield number, value


def _csv(f: Any) -> Iterator[tuple[int, Row | _Bad]]:
    """Records by the header line; every value stays text, as no type holds for a whole file unread."""
    csv.field_size_limit(sys.maxsize)  # a prompt may be long
    text = io.TextIOWrapper(f, encoding="utf-8-sig", errors="surrogateescape", newline="")
    records = csv.reader(text)
    header = [_readable(name) for name in next(records, [])]
    position = 0
    while True:
        try:
            record = next(records)
            "".join(record).encode()  # fails on a byte that was not UTF-8
        except StopIteration:
            return
        except (csv.Error, UnicodeEncodeError) as error:
            raw = [_readable(value) for value in record] if isinstance(error, UnicodeEncodeError) else ""
            yield position, _Bad(error, json.dumps(raw, ensure_ascii=False))
        else:
            if not record:
                continue
            if len(record) == len(header):
                yield position, dict(zip(header, record, strict=True))
            else:
                mismatch = ValueError(f"{len(record)} values for {len(header)} columns")
                yield position, _Bad(mismatch, json.dumps(record, ensure_ascii=False))
        position += 1


def _readable(text: str) -> str:
    """Bytes that were not UTF-8 replaced."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _parquet(f: Any) -> Iterator[tuple[int, Row | _Bad]]:
    position = 0
    for batch in pq.ParquetFile(f).iter_batches(batch_size=_ROWS_PER_BLOCK):
        for row in batch.to_pylist():
            yield position, row
            position += 1


def _binary(f: Any) -> Iterator[tuple[int, Row | _Bad]]:
    content = f.read()
    try:
        yield 0, {"text": content.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        yield 0, _Bad(error, content[:1024].decode(errors="replace"))


_READERS = {"text": _text, "jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "binary": _binary}
