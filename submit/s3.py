"""S3 from the laptop, by boto3: profiles, SSO and proxies as the user has them, and errors in plain words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import boto3
from botocore import UNSIGNED
from botocore import exceptions as boto
from botocore.config import Config

from rayferry.job.errors import RayferryError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 20
_MAX_ATTEMPTS = 3


class StorageError(RayferryError):
    """The store could not be used from here."""


class NoAccessError(StorageError):
    """There are no credentials here, so nothing can be said from here about what the job will find."""


class NotThereError(StorageError):
    """The object does not exist."""


def client(*, anonymous: bool = False) -> "S3Client":
    """An S3 client with short time-outs: it serves commands that a person waits for."""
    options: dict[str, Any] = {"signature_version": UNSIGNED} if anonymous else {}
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        retries={"max_attempts": _MAX_ATTEMPTS, "mode": "standard"},
        **options,
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return boto3.client("s3", config=config, region_name=region)


def split(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` as bucket and key.

    Raises:
        StorageError: it names no bucket.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    bucket = bucket.removeprefix("anonymous@")
    if not bucket:
        msg = f"{uri}: names no bucket; write it so: s3://bucket/prefix/"
        raise StorageError(msg)
    return bucket, key.lstrip("/")


def is_s3(uri: str) -> bool:
    """True for an S3 URI, false for a path."""
    return uri.startswith("s3://")


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns what boto3 raises inside the block into one line that says what to do.

    Raises:
        NotThereError: no such key.
        NoAccessError: no credentials here.
        StorageError: anything else.
    """
    try:
        yield
    except (boto.NoCredentialsError, boto.ProfileNotFound, boto.TokenRetrievalError, boto.SSOError) as error:
        msg = f"{uri}: no AWS credentials here ({error}); set AWS_PROFILE or AWS_ACCESS_KEY_ID and try again"
        raise NoAccessError(msg) from error
    except (boto.EndpointConnectionError, boto.ConnectionError, boto.HTTPClientError) as error:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        msg = f"{uri}: the S3 endpoint does not answer ({endpoint}); check AWS_ENDPOINT_URL and the network"
        raise StorageError(msg) from error
    except boto.ClientError as error:
        raise _translate(uri, error) from error
    except (boto.BotoCoreError, ValueError) as error:
        msg = f"{uri}: {error}; check AWS_ENDPOINT_URL, AWS_REGION and AWS_PROFILE"
        raise StorageError(msg) from error


def _translate(uri: str, error: boto.ClientError) -> StorageError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    bucket = split(uri)[0]
    if code == "NoSuchBucket":
        return StorageError(f"{uri}: there is no bucket {bucket!r} at this endpoint; check the name and the account")
    if code in {"NoSuchKey", "404", "NotFound"}:
        return NotThereError(f"{uri}: not there")
    if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}:
        return StorageError(f"{uri}: the AWS credentials here are not valid ({code}); renew them, or fix them")
    if status == 403:  # noqa: PLR2004
        return StorageError(f"{uri}: access denied ({code}); the credentials here lack a permission on {bucket!r}")
    if code in {"PermanentRedirect", "301", "AuthorizationHeaderMalformed"}:
        return StorageError(f"{uri}: the bucket is in another region; set AWS_REGION to it")
    message = error.response.get("Error", {}).get("Message", "")
    return StorageError(f"{uri}: S3 answered {code} {message}")


def read_bytes(uri: str) -> bytes:
    """An object's content.

    Raises:
        StorageError: see `explained`.
    """
    if not is_s3(uri):
        try:
            return _path(uri).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            msg = f"{uri}: not there"
            raise NotThereError(msg) from error
        except OSError as error:
            msg = f"{uri}: cannot be read: {error.strerror}"
            raise StorageError(msg) from error
    bucket, key = split(uri)
    with explained(uri):
        return client().get_object(Bucket=bucket, Key=key)["Body"].read()


def modified_ms(uri: str) -> int:
    """When an object was written, as Unix time in milliseconds.

    Raises:
        StorageError: see `explained`.
    """
    if not is_s3(uri):
        try:
            return int(_path(uri).stat().st_mtime * 1000)
        except OSError as error:
            msg = f"{uri}: not there"
            raise NotThereError(msg) from error
    bucket, key = split(uri)
    with explained(uri):
        return int(client().head_object(Bucket=bucket, Key=key)["LastModified"].timestamp() * 1000)


def write_bytes(uri: str, content: bytes) -> None:
    """Writes an object.

    Raises:
        StorageError: see `explained`.
    """
    bucket, key = split(uri)
    with explained(uri):
        client().put_object(Bucket=bucket, Key=key, Body=content)


def delete(uri: str) -> None:
    """Deletes an object; it may be gone already.

    Raises:
        StorageError: see `explained`.
    """
    bucket, key = split(uri)
    with explained(uri):
        client().delete_object(Bucket=bucket, Key=key)


def list_keys(uri: str, limit: int, *, anonymous: bool = False) -> list[tuple[str, int]]:
    """URI and size of at most `limit` objects whose names begin with `uri`.

    Raises:
        StorageError: see `explained`.
    """
    if not is_s3(uri):
        root = _path(uri)
        paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        return [(str(path), path.stat().st_size) for path in paths[:limit]]
    bucket, prefix = split(uri)
    with explained(uri):
        listing = client(anonymous=anonymous).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=limit)
        return [(f"s3://{bucket}/{entry['Key']}", entry["Size"]) for entry in listing.get("Contents", [])]


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path) if uri.startswith("file:") else uri)
