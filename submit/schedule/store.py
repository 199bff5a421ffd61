"""Small JSON objects under a folder or an S3 prefix, written only if they are as the writer believes."""

import errno
import fcntl
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from rayferry.job.errors import SpecError
from rayferry.job.typed import check_plain_uri
from rayferry.submit import s3

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

T = TypeVar("T")
# What S3 answers to a condition that does not hold, and to two writers at once.
_CONFLICT = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_NONE = {"NoSuchKey", "404", "NotFound"}
_NO_CONDITIONS = {"NotImplemented", "501"}


class Store(Protocol):
    """Where the objects are. A key is a path with slashes; a tag names one content of an object.

    Attributes:
        uri: the folder's path, or the S3 prefix, as people know it.
    """

    uri: str

    def get(self, key: str) -> tuple[bytes, str] | None:
        """An object's content and tag; None if it is not there."""

    def put(self, key: str, content: bytes, tag: str | None) -> str | None:
        """Writes an object if it is as `tag` says (None: not there). Its new tag, or None if it is not so."""

    def remove(self, key: str) -> None:
        """Removes an object; it may be gone already."""

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        """In order, those that begin with `prefix` and come after `after`."""


def open_store(uri: str) -> Store:
    """The store at an S3 prefix or a folder, which need not be there yet.

    Raises:
        SpecError: it names none.
    """
    if not s3.is_s3(uri):
        parts = urlsplit(uri)
        if parts.scheme not in {"", "file"} or not parts.path.strip("/"):
            msg = f"--store {uri!r}: give a folder, or an S3 prefix such as s3://bucket/schedules/"
            raise SpecError(msg)
        return _Folder(Path(unquote(parts.path) if parts.scheme else uri).absolute())
    try:
        check_plain_uri(uri)
    except ValueError as error:
        msg = f"--store {uri!r}: {error}"
        raise SpecError(msg) from error
    if uri.startswith("s3://anonymous@"):
        msg = f"--store {uri!r}: a store is written to, and nobody may do so anonymously"
        raise SpecError(msg)
    return _Bucket(uri)


class _Folder:
    """On a disk. A lock on a file in it makes a look and the write after it one step, for all processes that use it."""

    def __init__(self, root: Path) -> None:
        self.uri = str(root)
        self._root = root
        self._was_there = False

    def get(self, key: str) -> tuple[bytes, str] | None:
        with self._explained(key, "read"):
            if self._was_there:
                self._look()
            try:
                content = (self._root / key).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return content, _tag(content)

    def put(self, key: str, content: bytes, tag: str | None) -> str | None:
        path = self._root / key
        with self._explained(key, "written"):
            self._look()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._was_there = True
            with self._locked():
                found = self.get(key)
                if (found[1] if found else None) != tag:
                    return _tag(content) if found and found[0] == content else None
                number, name = tempfile.mkstemp(prefix=".", dir=path.parent)
                try:
                    with os.fdopen(number, "wb") as file:
                        file.write(content)
                        file.flush()
                        os.fsync(file.fileno())
                    if tag is None:
                        os.link(name, path)  # even where a file system's locks do not reach other machines
                    else:
                        Path(name).replace(path)
                except FileExistsError:
                    return None
                finally:
                    Path(name).unlink(missing_ok=True)
        return _tag(content)

    def remove(self, key: str) -> None:
        with self._explained(key, "removed"), suppress(NotADirectoryError):
            (self._root / key).unlink(missing_ok=True)

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        folder = self._root / prefix.rpartition("/")[0]
        with self._explained(prefix, "listed"):
            self._look()
            try:
                names = sorted(path.relative_to(self._root).as_posix() for path in folder.iterdir() if path.is_file())
            except (FileNotFoundError, NotADirectoryError):
                return
        yield from (name for name in names if name.startswith(prefix) and name > after and "/." not in name)

    def _look(self) -> None:
        """Sees that the folder is not gone, as one that is not mounted any more, and is none but a folder."""
        was_there = self._was_there  # before the look: others make it meanwhile
        if self._root.is_dir():
            self._was_there = True
        elif was_there or self._root.is_file():
            raise NotADirectoryError(errno.ENOTDIR, "the store is gone" if was_there else os.strerror(errno.ENOTDIR))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _explained(self, key: str, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            msg = f"{self.uri}/{key}: cannot be {done}: {error.strerror}; give another --store, or mend this one"
            raise s3.StorageError(msg) from error


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Bucket:
    """In a bucket that has conditional writes.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    """

    def __init__(self, uri: str) -> None:
        self._bucket, prefix = s3.split(uri)
        self._prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        self.uri = f"s3://{self._bucket}/{self._prefix}"
        self._lock = threading.Lock()
        self._made: S3Client | None = None

    def get(self, key: str) -> tuple[bytes, str] | None:
        return self._asked(key, lambda: self._get(key), _NONE)

    def _get(self, key: str) -> tuple[bytes, str]:
        answer = self._client().get_object(Bucket=self._bucket, Key=self._prefix + key)
        return answer["Body"].read(), answer["ETag"]

    def put(self, key: str, content: bytes, tag: str | None) -> str | None:
        options: dict[str, Any] = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        options |= {"Bucket": self._bucket, "Key": self._prefix + key, "Body": content}
        new = self._asked(key, lambda: str(self._client().put_object(**options)["ETag"]), _CONFLICT | _NONE)
        if new is not None:
            return new
        found = self.get(key)  # it may be this very write, whose answer was lost and which was sent again
        return found[1] if found is not None and found[0] == content else None

    def remove(self, key: str) -> None:
        with s3.explained(self.uri + key):
            self._client().delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        start = self._prefix + max(after, prefix)
        with s3.explained(self.uri + prefix):
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, StartAfter=start):
                yield from (entry["Key"].removeprefix(self._prefix) for entry in page.get("Contents", []))

    def _client(self) -> "S3Client":
        with self._lock:
            self._made = self._made or s3.client()
            return self._made

    def _asked(self, key: str, ask: Callable[[], T], answers_none: set[str]) -> T | None:
        from botocore.exceptions import ClientError  # noqa: PLC0415  # a store in a folder does not need it

        with s3.explained(self.uri + key):
            try:
                return ask()
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if code in answers_none:
                    return None
                if code in _NO_CONDITIONS:
                    msg = f"{self.uri}: this S3 has no conditional writes, which keep two schedulers apart; use another"
                    raise s3.StorageError(msg) from error
                raise
