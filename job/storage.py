"""Filesystems by URI: the one place where the job learns about endpoints, regions and credentials."""

import functools
import json
import os
import random
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs
from fsspec.utils import glob_translate  # type: ignore[import-untyped]

from rayferry.job.errors import STORE_TROUBLE, JobError

_REQUEST_TIMEOUT_S = 60
_CONNECT_TIMEOUT_S = 10
_MAX_ATTEMPTS = 8
_WRITE_TRIES = 4
# What passes, or is a request's that was answered already, but the answer lost: the SDK asks again and is told so.
_PASSING = re.compile(rf"AWS Error ({STORE_TROUBLE}|NO_SUCH_UPLOAD|UNKNOWN \(HTTP status (404|5\d\d)\))")
_HASTY = {"connect_timeout": 3, "request_timeout": 6, "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=2)}


def filesystem(uri: str, *, anonymous: bool = False, hasty: bool = False) -> tuple[pafs.FileSystem, str]:
    """Opens the store that `uri` lies in.

    Credentials come from the environment, the profile or the instance, as the AWS SDK finds them; they are
    never part of the returned object's pickle. The endpoint comes from AWS_ENDPOINT_URL_S3 or
    AWS_ENDPOINT_URL, which pyarrow does not read by itself.
    Source: https://arrow.apache.org/docs/python/generated/pyarrow.fs.S3FileSystem.html

    Args:
        uri: `s3://bucket/key`, `s3://anonymous@bucket/key`, `file:///path` or `/path`.
        anonymous: sign no request, as the `anonymous@` form does.
        hasty: give up within seconds, as a person waits.

    Returns:
        The filesystem and the path in it.

    Raises:
        JobError: the bucket's region cannot be found.
    """
    if not uri.startswith("s3://"):
        return pafs.LocalFileSystem(), unquote(re.sub("^file:(//)?", "", uri)) if uri.startswith("file:") else uri
    place = uri.removeprefix("s3://")
    path = place.removeprefix("anonymous@")
    bucket = path.partition("/")[0]
    return _s3(bucket, _aws_environ(), anonymous=anonymous or path != place, hasty=hasty), path


def _aws_environ() -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@functools.lru_cache(maxsize=32)
def _s3(bucket: str, environ: tuple[tuple[str, str], ...], *, anonymous: bool, hasty: bool) -> pafs.S3FileSystem:
    """A bucket's store: one for as long as the environment is the same, as a new one has to connect anew."""
    variables = dict(environ)
    options: dict[str, Any] = {
        "anonymous": anonymous,
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "request_timeout": _REQUEST_TIMEOUT_S,
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=_MAX_ATTEMPTS),
        **(_HASTY if hasty else {}),
    }
    endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL")
    if endpoint:
        options |= {"scheme": urlsplit(endpoint).scheme or "https", "endpoint_override": urlsplit(endpoint).netloc}
    region = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION")
    if not region and not endpoint:
        try:
            region = pafs.resolve_s3_region(bucket)
        except OSError as error:
            msg = (
                f"s3://{bucket}: the region of bucket {bucket!r} cannot be found ({error}); does it exist? "
                "or set AWS_REGION"
            )
            raise JobError(msg) from error
    return pafs.S3FileSystem(region=region or "us-east-1", **options)


@dataclass(frozen=True)
class File:
    """One input file.

    Attributes:
        path: its path in the filesystem.
        num_bytes: its size.
        label: what ids of its rows begin with: its path below the one prefix, or its whole path where there are
            several URIs.
        version: changes when its content does: the ETag on S3, else when it was last written, in nanoseconds since
            1970; "" where that is not asked.
    """

    path: str
    num_bytes: int
    label: str
    version: str = ""


def list_files(uris: list[str], *, anonymous: bool = False) -> list[File]:
    """Files that hold input: those named, those below prefixes, those that globs match, in order of their names.

    Names that begin with `_` or `.` hold no data, by the convention of Spark and Ray Data; a file that is named
    itself is taken whatever its name.

    Returns:
        Each file that is not empty, once.

    Raises:
        JobError: the store does not answer, or a URI has nothing behind it.
    """
    found: dict[str, File] = {}
    for uri in uris:
        listed = _list_one(uri, anonymous=anonymous)
        tags = {}
        if uri.startswith("s3://"):
            first, root = listed[0]
            tags = _etags(uri, root, is_file=first.path == root, anonymous=anonymous)
        for info, root in listed:
            path = info.path
            label = path if len(uris) > 1 else path[len(root) :].lstrip("/") or path.rpartition("/")[2]
            found.setdefault(path, _file(info, label, tags))
    return [found[path] for path in sorted(found)]


def s3_client(*, anonymous: bool = False) -> Any:
    """What boto3 offers of S3 beyond Arrow's filesystem: ETags, conditional puts. As patient as `filesystem`.

    Raises:
        ImportError: there is no boto3.
    """
    return _by_boto3(_aws_environ(), anonymous=anonymous)


@functools.lru_cache(maxsize=8)
def _by_boto3(environ: tuple[tuple[str, str], ...], *, anonymous: bool) -> Any:
    """One for as long as the environment is the same, as `_s3`."""
    import boto3  # noqa: PLC0415  # a job without S3 does not need it
    from botocore import UNSIGNED  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    config = Config(retries={"mode": "standard", "total_max_attempts": _MAX_ATTEMPTS})
    if anonymous:
        config = config.merge(Config(signature_version=UNSIGNED))
    return boto3.client("s3", region_name=dict(environ).get("AWS_REGION") or None, config=config)


def _etags(uri: str, root: str, *, is_file: bool = False, anonymous: bool = False) -> dict[str, str]:
    """ETags by path, of the one file that a root is, or of all below it; without boto3 there are none.

    The one is asked for as such: to look at it may be all that is allowed.
    """
    bucket, _, key = root.partition("/")
    try:
        client = s3_client(anonymous=anonymous or uri.startswith("s3://anonymous@"))
    except ImportError:
        return {}
    try:
        if is_file:
            return {root: client.head_object(Bucket=bucket, Key=key)["ETag"].strip('"')}
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key and f"{key}/")
        return {f"{bucket}/{one['Key']}": one["ETag"].strip('"') for page in pages for one in page.get("Contents", ())}
    except Exception as error:
        raise _not_listed(uri, error) from error


def _not_listed(uri: str, error: Exception) -> JobError:
    return JobError(f"{uri}: cannot be listed: {error}; check the bucket's name, the credentials and the endpoint")


def files_below(uri: str) -> list[File]:
    """All files below a prefix under s3://, in order of their names, whatever these are; labelled by their path below.

    Raises:
        JobError: the store does not answer, or refuses.
    """
    files, path = filesystem(uri)
    root = path.rstrip("/")
    try:
        found = files.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    except OSError as error:
        raise _not_listed(uri, error) from error
    found = sorted((info for info in found if info.type == pafs.FileType.File), key=lambda info: info.path)
    tags = _etags(uri, root) if found else {}
    return [_file(info, info.path[len(root) + 1 :], tags) for info in found]


def _file(info: pafs.FileInfo, label: str, tags: Mapping[str, str]) -> File:
    return File(info.path, info.size, label, tags.get(info.path) or str(info.mtime_ns or 0))


def is_glob(uri: str) -> bool:
    """True if a URI may be a pattern."""
    return any(sign in uri for sign in "*?[")


def glob_pattern(path: str) -> re.Pattern[str]:
    """A pattern's meaning: `*` and `?` stay within a name, `**` does not."""
    return re.compile(glob_translate(path))


def glob_root(path: str) -> str:
    """The folder above a pattern's first sign."""
    return re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]


def _list_one(uri: str, *, anonymous: bool) -> list[tuple[pafs.FileInfo, str]]:
    files, path = filesystem(uri, anonymous=anonymous)
    matches = re.compile("")
    try:
        # A slash at the end says that it is a prefix: no look at a key above it, which might not be allowed.
        info = None if path.endswith("/") else files.get_file_info(path)
        if info is not None and info.type == pafs.FileType.File:
            return [(info, path)] if info.size else _none(uri)
        root = path.rstrip("/")
        if is_glob(path) and (info is None or info.type == pafs.FileType.NotFound):
            root, matches = glob_root(path), glob_pattern(path)
        found = files.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    except OSError as error:
        raise _not_listed(uri, error) from error
    try:
        names = [entry.path for entry in found]
    except UnicodeDecodeError as error:
        msg = f"{uri}: a file below it has a name that is not UTF-8 ({error.object!r}); rename it"
        raise JobError(msg) from error
    kept = [
        (entry, root)
        for entry, path in zip(found, names, strict=True)
        if entry.type == pafs.FileType.File and entry.size and is_data(path[len(root) :]) and matches.match(path)
    ]
    return kept or _none(uri)


def _none(uri: str) -> list[tuple[pafs.FileInfo, str]]:
    msg = f"{uri}: no input there (no file that holds a byte); check input.uri"
    raise JobError(msg)


def is_data(path: str) -> bool:
    """False for a file that a listing should pass over: part of its path, below the prefix, begins with `_` or `.`."""
    return not any(part.startswith(("_", ".")) for part in path.split("/"))


def write_bytes(uri: str, content: bytes) -> None:
    """Writes an object whole: readers see all of it or nothing."""
    files, path = filesystem(uri)
    if isinstance(files, pafs.LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        draft.write_bytes(content)
        draft.replace(target)
        return
    for tries_left in reversed(range(_WRITE_TRIES)):
        try:
            # in a thread: what a signal raises here, between opening and writing, would leave an empty object
            with ThreadPoolExecutor(1) as thread:
                thread.submit(_put, files, path, content).result()
            return
        except OSError as error:
            if not tries_left or not _PASSING.search(str(error)):
                raise
        time.sleep(random.uniform(0, _WRITE_TRIES - tries_left))  # noqa: S311  # so that not all ask at once


def _put(files: pafs.FileSystem, path: str, content: bytes) -> None:
    with files.open_output_stream(path, compression=None) as stream:
        stream.write(content)


def children(uri: str) -> list[str]:
    """Names right below a prefix, files and prefixes alike, in order; empty if nothing is there.

    Hidden ones (`.name`) are left out: drafts of files that a killed process was writing are among them.

    Raises:
        JobError: the store does not answer, or refuses.
    """
    files, path = filesystem(uri)
    try:
        found = files.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(name for entry in found if (name := entry.base_name) and not name.startswith("."))
    except OSError as error:
        msg = f"{uri}: cannot be looked up: {error}; check the bucket's name, the credentials and the endpoint"
        raise JobError(msg) from error


def read_bytes(uri: str) -> bytes | None:
    """An object's content, or None if it is not there.

    Raises:
        JobError: the store does not answer, or refuses.
    """
    files, path = filesystem(uri)
    try:
        with files.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"{uri}: cannot be read: {error}; check the bucket's name, the credentials and the endpoint"
        raise JobError(msg) from error


def read_json(uri: str) -> Any:
    """What a JSON object of ours holds, or None if it is not there, or is without content: a write that was cut off.

    Raises:
        JobError: it is not JSON, or the store does not answer, or refuses.
    """
    content = read_bytes(uri)
    try:
        return json.loads(content) if content else None
    except ValueError as error:
        msg = f"{uri}: not JSON ({error}); start anew with --overwrite"
        raise JobError(msg) from error


def remove(uri: str) -> None:
    """Removes an object, or all below a prefix (with a slash at its end); nothing may be there.

    Raises:
        JobError: the store does not answer, or refuses.
    """
    files, path = filesystem(uri)
    try:
        if uri.endswith("/"):
            files.delete_dir(path)
        else:
            files.delete_file(path)
    except FileNotFoundError:
        return
    except OSError as error:
        msg = f"{uri}: cannot be removed: {error}; check the permissions"
        raise JobError(msg) from error
