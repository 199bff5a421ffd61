"""What came of a run: read from its manifest and its outcome, never from its logs."""

import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayferry.job import attempts, identity
from rayferry.job.earlier import attempt_number
from rayferry.job.errors import RayferryError
from rayferry.job.layout import Layout
from rayferry.job.spec import JobSpec, parse
from rayferry.job.telling import MASKED
from rayferry.submit import report, s3
from rayferry.submit.config import command

if TYPE_CHECKING:
    from rayferry.submit.client import JobInfo

_MAX_PREVIEW_FILES = 20
_MAX_ATTEMPTS = 1000

EXIT_FAILED = 1
EXIT_TOO_MANY_ERRORS = 3
EXIT_STOPPED = 4
EXIT_TIMED_OUT = 6


def read_manifest(output_uri: str) -> dict[str, Any]:
    """The manifest under an output URI.

    Raises:
        NotThereError: the run is not done.
        StorageError: it cannot be read from here.
        RayferryError: it is not a manifest of a version known here.
    """
    return _record(Layout(output_uri).manifest_uri, "manifest")


def read_outcome(output_uri: str) -> dict[str, Any]:
    """How the run under an output URI ended, or that it began.

    Raises:
        NotThereError: no run found this output empty.
        StorageError: it cannot be read from here.
        RayferryError: it is not an outcome of a version known here.
    """
    return _record(Layout(output_uri).outcome_uri, "outcome")


def read_spec(output_uri: str, command: Callable[[str], str] = command) -> JobSpec:
    """The job file of the run under an output URI, to go on with it; `command` makes one about the same cluster.

    Raises:
        NotThereError: no run began there.
        StorageError: it cannot be read from here.
        RayferryError: it says not all that is needed.
    """
    uri = Layout(output_uri).spec_uri
    try:
        spec = parse(_record(uri, "job file"), uri)
    except s3.NotThereError as error:
        msg = f"{output_uri}: no run began there ({uri} is not there); check the URI, or {command('submit JOB.yaml')}"
        if not s3.is_s3(uri):
            msg = f"{uri}: not on this machine; go on with the job file itself: {command('submit JOB.yaml --resume')}"
        raise s3.NotThereError(msg) from error
    env = spec.runtime_env
    if MASKED in env.env_vars.values() or env.py_modules or env.files:
        msg = (
            f"{uri} has no values of env_vars, and no files of yours (py_modules, files); "
            f"go on with the job file itself: {command('submit JOB.yaml --resume')}"
        )
        raise RayferryError(msg)
    return spec


def run_there(output_uri: str) -> str | None:
    """The name of the run that an output holds, "" if it holds none; None if that cannot be seen from here."""
    uri = Layout(output_uri).run_uri
    try:
        return identity.name_of(s3.read_bytes(uri))
    except s3.NotThereError:
        return "" if s3.is_s3(uri) else None  # a path may be one of another machine
    except s3.StorageError:
        return None


def has_begun(info: "JobInfo") -> bool | None:
    """True if an attempt of a job's run began to write; None if that cannot be seen from here."""
    if info.output_uri is None:
        return None
    uri = Layout(info.output_uri).attempts_uri
    try:
        listed = s3.list_keys(uri, _MAX_ATTEMPTS)
    except s3.StorageError:
        return None
    names = attempts.jobs_of([key.rpartition("/")[2].removesuffix(".json") for key, _ in listed])
    if any(name == info.submission_id or attempt_number(name, info.run) for name in names):
        return True
    return False if s3.is_s3(uri) else None  # a path may be one of another machine


def _record(uri: str, what: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(s3.read_bytes(uri))
        version = record["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{uri}: not {'an' if what == 'outcome' else 'a'} {what} of Rayferry"
        raise RayferryError(msg) from error
    if version != 1:
        msg = f"{uri}: of schema version {version}; this Rayferry reads 1: upgrade it"
        raise RayferryError(msg)
    return record


def ended(output_uri: str, command: Callable[[str], str] = command) -> dict[str, Any]:
    """How the run under an output URI ended, as S3 alone tells it; `command` makes one about its cluster.

    A manifest outweighs an outcome, but for a run that ended with too many errors: it leaves both.

    Returns:
        `submission_id`, `status`, `exit_code`, `error`, `started_at`, `ended_at`, `output_uri`.

    Raises:
        RayferryError: that is not known from here.
    """
    uri = Layout(output_uri).output_uri
    try:
        outcome = read_outcome(uri)
    except s3.NotThereError:
        outcome = None
    try:
        manifest = read_manifest(uri)
    except s3.NotThereError as error:
        if outcome is None or outcome["status"] == "RUNNING":
            raise RayferryError(_unknown(uri, outcome, command)) from error
        record = outcome
    else:
        record = {**manifest, "status": "SUCCEEDED", "exit_code": 0, "error": None}
        ours = outcome and outcome["submission_id"] == manifest["submission_id"]
        if outcome and ours and outcome["exit_code"] == EXIT_TOO_MANY_ERRORS:
            record = outcome
    names = ("submission_id", "status", "exit_code", "error", "started_at", "ended_at")
    return {name: record.get(name) for name in names} | {"output_uri": uri}


def _unknown(uri: str, outcome: dict[str, Any] | None, command: Callable[[str], str]) -> str:
    layout = Layout(uri)
    told = []
    for told_uri in (layout.driver_log_uri, layout.progress_uri):
        with suppress(s3.NotThereError):
            told.append(f"{told_uri.rpartition('/')[2]} was last written {report.clock(s3.modified_ms(told_uri))}")
    name = outcome["submission_id"] if outcome else "ID"
    what = f"{name} was running when last heard of" if outcome else "no outcome is there"
    see = command(f"status {name}")
    return f"{uri}: unknown from here: {'; '.join([what, *told])}; while the cluster is up: {see}"


def read_log(output_uri: str, command: Callable[[str], str] = command) -> str:
    """The copy of the driver's log under an output URI; `command` makes one about the cluster.

    Raises:
        RayferryError: there is none, or it cannot be read from here.
    """
    uri = Layout(output_uri).driver_log_uri
    try:
        return s3.read_bytes(uri).decode(errors="replace")
    except s3.NotThereError as error:
        msg = f"{error}; the job has not come so far, or never did; while the cluster is up: {command('logs ID')}"
        raise s3.NotThereError(msg) from error


def exit_code(info: "JobInfo") -> int:
    """The exit code that a job's end means."""
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return EXIT_STOPPED
    return info.exit_code if info.exit_code in {EXIT_TOO_MANY_ERRORS, EXIT_TIMED_OUT} else EXIT_FAILED


def shown_columns(names: Sequence[str]) -> list[str]:
    """The columns that a table for people has room for; all of them, where the rows are not Rayferry's."""
    for few in (
        ["id", "prompt", "generated_text", "finish_reason"],
        ["id", "prompt", "label", "probs"],
        ["id", "prompt", "score"],
        ["id", "prompt", "embedding"],
        ["id", "stage", "error_type", "error"],
    ):
        if set(few) <= set(names):
            return few
    return list(names)


def preview(uri: str, num_rows: int) -> pa.Table:
    """The first rows of the Parquet files under `uri`, or of the answers if it is an output URI.

    **Shape**: at most `num_rows` rows; the files' own columns.

    Raises:
        StorageError: nothing can be read there.
    """
    found: list[tuple[str, int]] = []
    for prefix in (Layout(uri).data_uri, uri):
        below = prefix.rstrip("/") + "/" if s3.is_s3(prefix) else ""  # not a neighbour whose name begins so
        found = [
            entry
            for entry in s3.list_keys(prefix, 1000)
            if entry[0].endswith(".parquet") and entry[1] and (entry[0] == prefix or entry[0].startswith(below))
        ]
        if found:
            break
    if not found:
        hint = "give an output URI, a prefix or a file"
        if not uri.startswith(("s3://", "/", "file:")):
            hint = f"{hint}, as an s3:// URI or an absolute path (a relative one is looked for in {Path.cwd()})"
        msg = f"{uri}: no Parquet files there; {hint}"
        raise s3.NotThereError(msg)
    tables: list[pa.Table] = []
    for path, _ in found[:_MAX_PREVIEW_FILES]:
        left = num_rows - sum(table.num_rows for table in tables)
        if left <= 0:
            break
        try:
            tables.append(_first_rows(s3.read_bytes(path), left))
        except pa.ArrowException as error:
            msg = f"{path}: not a Parquet file that can be read: {error}"
            raise s3.StorageError(msg) from error
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        msg = f"{uri}: its files do not fit together: {error}; give one of them"
        raise s3.StorageError(msg) from error


def _first_rows(content: bytes, num_rows: int) -> pa.Table:
    """The beginning of a Parquet file, read in this thread: Arrow's own may abort a process that ends soon."""
    batches: list[pa.RecordBatch] = []
    with pq.ParquetFile(io.BytesIO(content), pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=num_rows, use_threads=False):
            batches.append(batch)
            if sum(one.num_rows for one in batches) >= num_rows:
                break
        empty = file.schema_arrow.empty_table()
    return pa.Table.from_batches(batches).slice(0, num_rows) if batches else empty
