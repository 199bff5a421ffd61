"""What people and scripts are told of a store."""

from collections.abc import Mapping
from typing import Any

from rayferry.job.errors import RayferryError
from rayferry.submit import s3
from rayferry.submit.schedule.adding import local_time, next_of
from rayferry.submit.schedule.book import Book, CorruptError
from rayferry.submit.schedule.decide import jitter
from rayferry.submit.schedule.definition import Schedule, submission_id
from rayferry.submit.schedule.firing import job_of
from rayferry.submit.schedule.records import Firing, tick_of

_LATEST = 100  # firings that are looked at when a schedule goes


def overview(book: Book, name: str) -> dict[str, Any]:
    """A schedule in a row: `name`, `cron`, `timezone`, `state`, `next`, `last`, `result`, `missed`, `error`."""
    row: dict[str, Any] = dict.fromkeys(("cron", "timezone", "next", "last", "result", "error"))
    row = {"name": name, "state": "broken", "missed": 0} | row
    try:
        entry = book.schedule(name)
        progress = book.progress(name).value
        last = _last(book, name, progress.cursor)
    except (CorruptError, s3.StorageError) as error:
        return row | {"error": str(error)}
    if entry is None:  # removed just now
        return row | {"state": "removed"}
    made = entry.value
    ticks = next_of(made, 1)
    row |= {"cron": made.cron, "timezone": made.timezone, "missed": progress.missed}
    row |= {"next": local_time(made, ticks[0]) if ticks else None}
    if last is not None:
        row |= {"last": local_time(made, last.tick), "result": last.state, "error": last.reason}
    state = "paused" if made.paused else "broken" if progress.broken else "active"
    return row | {"state": state, "error": progress.broken.error if progress.broken else row["error"]}


def _last(book: Book, name: str, cursor: str) -> Firing | None:
    """The last firing; what lies before the cursor is looked through only if nothing came after it."""
    after = tick_of(cursor) if cursor else None
    for ticks in (book.ticks(name, after), [after] if after else [], None):
        for tick in reversed(book.ticks(name) if ticks is None else ticks):
            entry = book.firing(name, tick)
            if entry is not None:
                return entry.value
    return None


def scheduler(book: Book) -> Mapping[str, str | None] | None:
    """The scheduler on a cluster, if the store has one; see `remote.state`. With `error`, its record is not valid."""
    try:
        if book.remote() is None:
            return None
        from rayferry.submit.schedule import remote  # noqa: PLC0415  # it imports Ray

        return remote.state(book)
    except RayferryError as error:
        return {"submission_id": None, "address": None, "status": "BROKEN", "error": str(error)}


def details(book: Book, schedule: Schedule, num: int) -> dict[str, Any]:
    """A schedule whole, how it stands, and what its next `num` ticks will run."""
    row = overview(book, schedule.name)
    value = schedule.to_json() | {key: row[key] for key in ("state", "missed", "last", "result", "error")}
    return value | {"next": [_preview(schedule, tick) for tick in next_of(schedule, num)]}


def _preview(schedule: Schedule, tick: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "tick": local_time(schedule, tick),
        "start": local_time(schedule, tick + jitter(schedule, tick)),
        "submission_id": submission_id(schedule, tick),
        "name": None,
        "input": None,
        "output": None,
    }
    try:
        spec = job_of(schedule, tick)
    except RayferryError as error:
        return value | {"name": f"error: {error}"}
    uri = spec.input.uri
    return value | {
        "name": spec.name,
        "input": uri if isinstance(uri, str) else ", ".join(uri),
        "output": spec.output.uri,
    }


def history_row(firing: Firing) -> tuple[object, ...]:
    """A firing in a row of a table."""
    tick = firing.scheduled_time + (" (trigger)" if firing.trigger == "manual" else "")
    name = firing.latest_submission_id if firing.submission_id else None
    return tick, firing.state, name, firing.attempt, firing.output_uri, firing.reason


def left_open(book: Book, name: str) -> list[str]:
    """Of a schedule that was removed, what becomes of its latest firings that are not over: a line for each."""
    firings = [firing for firing in book.last_firings(name, _LATEST)[0] if not firing.is_over]
    return [
        f"{firing.scheduled_time}: {firing.latest_submission_id} goes on, followed by no scheduler any more; "
        f"how it stands: rayferry status {firing.latest_submission_id}"
        if firing.submitted_at
        else f"{firing.scheduled_time}: was not submitted yet, and will not be"
        for firing in firings
    ]
