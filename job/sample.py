"""The first rows of the input, as the job itself would make them: its reader, its columns, its template."""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rayferry.job import storage
from rayferry.job.errors import JobError, RayferryError, UnseenError
from rayferry.job.log import counted
from rayferry.job.look import look_into
from rayferry.job.row_maker import RowMaker
from rayferry.job.spec import JobSpec
from rayferry.job.storage import File

_MAX_ROWS = 20
_MAX_FILES = 4  # where the first ones have few rows
_MAX_BYTES = 32 << 20
_SHOWN_CHARS = 300


@dataclass(frozen=True)
class Listing:
    """The input's files, as far as they were listed.

    Attributes:
        name: the input, for people.
        files: the files, at least one.
        is_cut: there may be more.
    """

    name: str
    files: list[File]
    is_cut: bool = False


def ask_rows(spec: JobSpec, listed: Callable[[], Listing]) -> str:
    """Whether the first rows of the input can be asked.

    Raises:
        JobError: all that were looked at are bad.
        UnseenError: they cannot be read from here.
    """
    pa.array([None])  # Arrow imports pandas at its first array: better now, while others wait for the network
    try:
        listing = listed()
    except RayferryError as error:
        msg = f"{spec.input.uris[0]}: its rows were not read, as its files could not be listed"
        raise UnseenError(msg) from error
    rows = _first_rows(spec, listing)
    if not rows:
        msg = f"{listing.name}: no row in {'it' if len(listing.files) == 1 else 'its first files'}"
        raise UnseenError(msg, elsewhere=False)
    bad = [row for row in rows if row["stage"] is not None]
    if not bad:
        return f"{listing.name}: {_of(rows)} good"
    first = bad[0]
    where = f"{first['source_uri']}, row {first['position']}"
    told = f"{where}: {first['error_type']}: {first['error'][:_SHOWN_CHARS]}"
    if len(bad) < len(rows) or spec.on_error.max_error_rate == 1:
        return f"{listing.name}: {len(rows) - len(bad)} of {_of(rows)} good; the first that is not: {told}"
    hint = "check input.format, input.column and input.template, or go on without this check: --skip rows"
    msg = f"{listing.name}: none of {_of(rows)} good; {told}; {hint}"
    raise JobError(msg)


def _of(rows: list[dict[str, Any]]) -> str:
    return f"the first {counted(len(rows), 'row')} {'are' if len(rows) > 1 else 'is'}"


def _first_rows(spec: JobSpec, listing: Listing) -> list[dict[str, Any]]:
    """A few rows, from as few files as have them.

    Raises:
        UnseenError: the store does not give them, or it would take too much of it.
    """
    uri = spec.input.uris[0]
    rows: list[dict[str, Any]] = []
    files = sorted(listing.files, key=lambda file: file.path)[:_MAX_FILES]
    try:
        filesystem, _ = storage.filesystem(uri, anonymous=spec.input.anonymous, hasty=True)
        store = _Metered(filesystem, _MAX_BYTES)
        for file in files:
            for row in _rows_of(spec, store, file):
                rows.append(row)
                if len(rows) == _MAX_ROWS:
                    return rows
    except (JobError, OSError) as error:
        cause = error.__cause__ if isinstance(error, JobError) else error
        if not isinstance(cause, OSError):
            raise
        if rows:
            return rows
        if isinstance(cause, _TooMuchError):
            msg = f"{listing.name}: its rows, as the first take more than {_MAX_BYTES >> 20} MiB to read"
        else:
            msg = f"{listing.name}: its rows cannot be read from here ({cause})"
        raise UnseenError(msg, elsewhere=not isinstance(cause, _TooMuchError)) from error
    return rows


def _rows_of(spec: JobSpec, store: "_Metered", file: File) -> Iterator[dict[str, Any]]:
    maker = RowMaker(spec, look_into(spec, store, [file], _MAX_ROWS))
    columns = ["source_uri", "position", "stage", "error_type", "error"]
    with store.open_input_file(file.path) as f:
        for _, table in maker.tables(f, file.path):
            if table is not None:
                yield from table.select(columns).slice(0, _MAX_ROWS).to_pylist()


class _TooMuchError(OSError):
    """More would be read than a check should; readers take it for the store's failure, not the file's."""

    def __init__(self) -> None:
        super().__init__(errno.EFBIG, "too much to read")


class _Metered:
    """Files of a filesystem, of which no part is read twice, and no more than so many bytes in all."""

    def __init__(self, filesystem: Any, max_bytes: int) -> None:
        self._filesystem = filesystem
        self._left = max_bytes
        self._files: dict[str, Any] = {}
        self._read: dict[tuple[str, int, int], bytes] = {}

    def open_input_file(self, path: str) -> pa.PythonFile:
        if path not in self._files:
            self._files[path] = self._filesystem.open_input_file(path)
        return pa.PythonFile(_File(self, path, self._files[path].size()), mode="r")

    def read(self, path: str, start: int, num_bytes: int) -> bytes:
        """A part of a file that it has.

        Raises:
            _TooMuchError: it would be too much.
        """
        part = (path, start, num_bytes)
        if part not in self._read:
            if num_bytes > self._left:
                raise _TooMuchError
            self._left -= num_bytes
            self._read[part] = self._files[path].read_at(num_bytes, start)
        return self._read[part]


class _File:
    """One open file of them, as Arrow wants files of Python's."""

    def __init__(self, store: _Metered, path: str, num_bytes: int) -> None:
        self._store, self._path, self._num_bytes = store, path, num_bytes
        self._at = 0
        self.closed = False

    def read(self, num_bytes: int = -1) -> bytes:
        rest = max(0, self._num_bytes - self._at)
        num_bytes = rest if num_bytes < 0 else min(num_bytes, rest)
        content = self._store.read(self._path, self._at, num_bytes) if num_bytes else b""
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._num_bytes)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self.closed = True
