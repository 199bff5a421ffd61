"""Rows that failed are to be tried again: they are taken out of the records, and so are not done any more."""

import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayferry.job import storage
from rayferry.job.checkpoint import Done, Record
from rayferry.job.errors import JobError
from rayferry.job.layout import Layout
from rayferry.job.log import counted, say
from rayferry.job.sink import put_part
from rayferry.job.spans import spans_of, without

_THREADS = 32


def forget(layout: Layout, done: Done, run: str | None = None) -> Done:
    """Makes a run's failed rows undone, for this attempt to try them again.

    The manifest has gone first, by `checkpoint.begin`; each record is replaced in one write. So wherever this is cut
    short, the run can be resumed, and every row is done or is not. Parts that no record names any more stay until
    the run's end, see `checkpoint.remove_orphans`.

    Args:
        layout: the run's places.
        done: what earlier attempts left, and the name of this one.
        run: the run's name, for `was_done`.

    Returns:
        What is done without them; `done` itself if no row failed.

    Raises:
        JobError: a part is not there, or the store does not answer.
    """
    failed = {uri: record for uri, record in done.records.items() if _parts(record, "errors")}
    if not failed:
        say("no row has failed: none is tried again")  # or an attempt has begun so, and was killed
        storage.write_bytes(layout.retried_uri, _mark(run))
        return done
    with ThreadPoolExecutor(_THREADS) as threads:
        changed = threads.map(lambda uri: _without_failed(layout, done.attempts[-1], uri, failed[uri]), failed)
        records = {**done.records, **dict(zip(failed, changed, strict=True))}
    num = sum(part["num_rows"] for record in failed.values() for part in _parts(record, "errors"))
    say(f"{counted(num, 'row')} had failed: tried again")
    storage.write_bytes(layout.retried_uri, _mark(run))
    return replace(done, records=records)


def was_done(layout: Layout, run: str | None) -> bool:
    """True if an attempt of this run has done so: what failed again then is not tried once more by the next one."""
    return run is not None and storage.read_bytes(layout.retried_uri) == _mark(run)


def _mark(run: str | None) -> bytes:
    return json.dumps({"schema_version": 1, "run": run}).encode()


def _parts(record: Record, kind: str) -> list[dict[str, Any]]:
    return [part for part in record.parts if part["kind"] == kind]


def _without_failed(layout: Layout, attempt: str, uri: str, record: Record) -> Record:
    tables = [
        pq.read_table(io.BytesIO(_content(part)), columns=["source_uri", "position"])
        for part in _parts(record, "errors")
    ]
    rows = without(record.rows, spans_of(pa.concat_tables(tables)))
    parts = [*_parts(record, "data"), *_answered_lines(layout, attempt, uri, record)]
    left = Record(parts, rows)
    left.write(uri)
    return left


def _answered_lines(layout: Layout, attempt: str, uri: str, record: Record) -> list[dict[str, Any]]:
    """The record's lines in OpenAI's form, in a new part without those of rows that failed."""
    lines = [line for part in _parts(record, "openai") for line in _content(part).splitlines(keepends=True)]
    answered = [line for line in lines if json.loads(line)["error"] is None]
    if not answered:
        return []
    name = f"{attempt}-{uri.rpartition('/')[2].removesuffix('.json')}.jsonl"
    part = put_part(f"{layout.openai_uri}{name}", "openai", len(answered), b"".join(answered), {})
    return [part.to_json()]


def _content(part: Mapping[str, Any]) -> bytes:
    content = storage.read_bytes(part["uri"])
    if content is None:
        msg = f"{part['uri']} is not there, though the run's records name it; start anew with --overwrite"
        raise JobError(msg)
    return content
