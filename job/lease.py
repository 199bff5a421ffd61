"""One writer to an output: an object in it that says who, made and renewed by conditional puts.

Its age is told by the store's own clock. A holder that dies leaves it to expire; one that lost it ends its process, as
somebody else counts on what is there.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from rayferry.job import storage
from rayferry.job.errors import JobError
from rayferry.job.log import say

TTL_S = 60.0
_RENEW_S = 15.0
_POLL_S = 2.0
_CONFLICT = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_NO_CONDITIONS = {"NotImplemented", "501"}


T = TypeVar("T")


class _Store(Protocol):
    """Where the object is."""

    def put(self, content: bytes, tag: str | None) -> str | None:
        """Writes it if it is as `tag` says (None: not there). Gives its new tag, or None if it is not so."""

    def get(self) -> tuple[bytes, str, float] | None:
        """Its content, tag and age in seconds; None if it is not there."""

    def remove(self) -> None:
        """Removes it."""


class Lease:
    """The right to write to an output, held inside a `with` block."""

    def __init__(
        self,
        uri: str,
        submission_id: str,
        *,
        patient_with: Callable[[str], bool] = lambda _holder: False,
        over: Collection[str] = (),
    ) -> None:
        """Prepares.

        Args:
            uri: the object.
            submission_id: who asks.
            patient_with: for which holders to wait until their lease has expired, rather than refuse at once.
            over: jobs that are known to be over: a lease that they left is taken once it was not renewed in time.
        """
        self._uri = uri
        self._submission_id = submission_id
        self._patient_with = patient_with
        self._token = secrets.token_hex(8)  # this process: an id may be given twice, on two clusters
        self._over = frozenset(over)
        self._tag: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="rayferry-lease", daemon=True)

    def __enter__(self) -> Self:
        """Takes the lease; without boto3 there is none on S3.

        Raises:
            JobError: somebody else has it.
        """
        try:
            self._store: _Store = _S3(self._uri) if self._uri.startswith("s3://") else _Local(self._uri)
        except ImportError:
            say("the cluster has no boto3: nothing keeps two runs from writing to one output at once")
            return self
        self._tag = self._take()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Gives it back; again, or where it was never taken, does nothing."""
        if self._tag is not None and not self._ended.is_set():
            self._ended.set()
            try:
                found = self._store.get()
                if found is not None and self._is_mine(found[0]):
                    self._store.remove()
            except Exception as error:  # noqa: BLE001  # it expires by itself
                say(f"{self._uri} could not be removed ({error}); it expires in {TTL_S:g} s")

    def _content(self) -> bytes:
        told = {
            "schema_version": 1,
            "submission_id": self._submission_id,
            "token": self._token,
            "renewal": secrets.token_hex(4),  # S3's tag is of the content: who saw the last one may not put on it
            "ttl_s": TTL_S,
        }
        return json.dumps(told).encode()

    def _is_mine(self, content: bytes) -> bool:
        return self._token.encode() in content

    def _take(self) -> str:
        until = time.monotonic() + TTL_S + 2 * _RENEW_S
        told = False
        while True:
            tag = self._store.put(self._content(), None)
            if tag is not None:
                return tag
            found = self._store.get()
            if found is None:
                continue
            content, old, age_s = found
            if self._is_mine(content):  # by a put whose answer was lost
                return old
            holder = _holder(content)
            # a job of that name, on another cluster, may be alive: it renews what it holds
            if age_s > (min(TTL_S, 2 * _RENEW_S + 1) if holder in self._over else TTL_S):
                tag = self._store.put(self._content(), old)
                if tag is not None:
                    return tag
                continue
            if not (holder in self._over or self._patient_with(holder)) or time.monotonic() > until:
                msg = (
                    f"{holder} is writing to this output (it said so {age_s:.0f} s ago); follow it: "
                    f"rayferry logs -f {holder}, or stop it; if it is dead, try again in {TTL_S:g} s"
                )
                raise JobError(msg)
            if not told:
                told = True
                say(f"waiting for {holder} to be over, or for its lease to expire ({TTL_S:g} s)")
            time.sleep(_POLL_S)

    def _keep(self) -> None:
        while not self._ended.wait(_RENEW_S):
            try:
                tag = self._store.put(self._content(), self._tag)
                found = self._store.get() if tag is None else None
            except Exception as error:  # noqa: BLE001  # the store may come back; until somebody takes it, it is ours
                say(f"{self._uri} could not be renewed just now ({error})")
                continue
            if self._ended.is_set():
                return
            if tag is None:
                if found is not None and self._is_mine(found[0]):  # a put whose answer was lost
                    self._tag = found[1]
                    continue
                say(f"error: {_holder(found[0]) if found else 'somebody'} has taken this output over; this job ends")
                os._exit(1)
            self._tag = tag


def _holder(content: bytes) -> str:
    try:
        return str(json.loads(content)["submission_id"])
    except (ValueError, KeyError, TypeError):
        return "somebody"


class _S3:
    """By boto3: Arrow's filesystem has no conditional puts."""

    def __init__(self, uri: str) -> None:
        self._client: Any = storage.s3_client()
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        self._place: dict[str, Any] = {"Bucket": bucket, "Key": key}

    def put(self, content: bytes, tag: str | None) -> str | None:
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        return self._asked(lambda: str(self._client.put_object(Body=content, **condition, **self._place)["ETag"]))

    def get(self) -> tuple[bytes, str, float] | None:
        return self._asked(self._get)

    def _get(self) -> tuple[bytes, str, float]:
        answer = self._client.get_object(**self._place)
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return answer["Body"].read(), answer["ETag"], (now - answer["LastModified"]).total_seconds()

    def remove(self) -> None:
        self._client.delete_object(**self._place)

    def _asked(self, ask: Callable[[], T]) -> T | None:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            return ask()
        except BotoCoreError as error:
            msg = f"s3://{self._place['Bucket']}/{self._place['Key']}: cannot be written: {error}"
            raise JobError(msg) from error
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _CONFLICT | {"NoSuchKey", "404"}:
                return None
            hint = "; this store has no conditional puts" if code in _NO_CONDITIONS else ""
            msg = f"s3://{self._place['Bucket']}/{self._place['Key']}: cannot be written: {error}{hint}"
            raise JobError(msg) from error


class _Local:
    """On a disk."""

    def __init__(self, uri: str) -> None:
        self._path = Path(storage.filesystem(uri)[1])

    def put(self, content: bytes, tag: str | None) -> str | None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if tag is not None:
            found = self.get()
            if found is None or found[1] != tag:
                return None
            draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            draft.write_bytes(content)
            draft.replace(self._path)  # so that nobody reads half of it
            return self._tag(content)
        try:
            with self._path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            return None
        return self._tag(content)

    def _tag(self, content: bytes) -> str:
        return f"{content!r} {self._path.stat().st_mtime_ns}"

    def get(self) -> tuple[bytes, str, float] | None:
        try:
            content = self._path.read_bytes()
            return content, self._tag(content), time.time() - self._path.stat().st_mtime
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
