"""Schedules as people change them: added, paused, triggered."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayferry.job import templates
from rayferry.job.errors import RayferryError, SpecError
from rayferry.submit import report
from rayferry.submit.config import resolve_address
from rayferry.submit.options import read_job
from rayferry.submit.schedule import times
from rayferry.submit.schedule.book import Book, Entry
from rayferry.submit.schedule.definition import OnFailure, Schedule, make, moment, render_job, sha256_of, stamp
from rayferry.submit.schedule.firing import claim, job_of
from rayferry.submit.schedule.records import Firing, ended, tick_of

if TYPE_CHECKING:
    from rayferry.submit.schedule.scheduler import Scheduler  # by whom Ray would be imported

_NUM_COMPARED = 50  # ticks whose outputs must differ
_SECOND = timedelta(seconds=1)
_OPTIONS = ("cron", "timezone", "overlap", "catch_up", "jitter", "track", "address", "on_failure")


def add_schedule(book: Book, values: Mapping[str, Any], job: Path, now: datetime | None = None) -> Schedule:
    """Validates a schedule and its job, and writes it; one of the same name is changed.

    Raises:
        SpecError: something in it is not valid.
        RayferryError: the store cannot be used, or somebody else changed it just now.
    """
    time = stamp(now or datetime.now(UTC))
    if values.get("address") is not None:
        resolve_address(values["address"], None, {})
    data = read_job(job)
    # what is asked for is looked at before the store is
    draft = {**values, "job": {}, "job_sha256": "", "job_path": str(job.absolute())}
    draft |= {"created_at": time, "updated_at": time, "since": time}
    made = make(draft, f"schedule {values['name']}")
    _refuse_jitter(made, moment(time))
    try:
        kept = _checked(made, data, moment(time))
    except SpecError as error:
        msg = f"{job}: {error}"
        raise SpecError(msg) from error
    before = book.schedule(made.name)
    changes: dict[str, Any] = {"job": kept, "job_sha256": sha256_of(kept)}
    if before is not None:
        old = before.value
        changes |= {"created_at": old.created_at, "paused": old.paused}
        if (old.cron, old.timezone) == (made.cron, made.timezone):
            changes["since"] = old.since
    made = make(made.to_json() | changes, f"schedule {made.name}")
    if before is not None:
        _tell_changes(before.value, made)
    if book.put_schedule(made, before.tag if before else None) is None:
        msg = f"{made.name} was changed by somebody else just now; see: rayferry schedule show {made.name}"
        raise RayferryError(msg)
    return made


def _tell_changes(old: Schedule, new: Schedule) -> None:
    """An option that is not given is its default again: what that changes is said."""
    for key in _OPTIONS:
        was, now = (getattr(one, key) for one in (old, new))
        if was != now:
            report.note(f"{key} was {_plain(was)}, and is {_plain(now)} now")


def _plain(value: object) -> str:
    if isinstance(value, OnFailure):
        return "a webhook" if value.webhook is not None else "a command"  # either may hold a secret
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_jitter(schedule: Schedule, now: datetime) -> None:
    """It is less than the time between two ticks."""
    ticks = times.next_times(schedule.cron, schedule.zone, now, _NUM_COMPARED)
    shortest = min(((later - tick).total_seconds() for tick, later in pairwise(ticks)), default=None)
    if shortest is not None and schedule.jitter_s >= shortest:
        msg = (
            f"schedule {schedule.name}: jitter: {schedule.jitter!r}: two ticks are {shortest:g} s apart, and jitter "
            "has to be less than that"
        )
        raise SpecError(msg)


def _checked(schedule: Schedule, data: object, now: datetime) -> dict[str, Any]:
    """The values of a job file, if each tick makes a job of them, with an output of its own."""
    ticks = times.next_times(schedule.cron, schedule.zone, now, _NUM_COMPARED)
    spec = render_job(data, schedule.name, ticks[0].astimezone(schedule.zone))
    kept = templates.put_back(spec.to_json(), data) if isinstance(data, Mapping) else {}
    outputs: dict[str, datetime] = {}
    repeated = times.repeated_times(schedule.cron, schedule.zone, now)
    for tick in sorted({*ticks, *repeated}):
        filled = templates.fill({"output": kept["output"]}, schedule.name, tick.astimezone(schedule.zone))
        uri = str(filled["output"]["uri"]).rstrip("/")
        if uri in outputs:
            first, second = (local_time(schedule, one) for one in (outputs[uri], tick))
            msg = (
                f"output.uri: {kept['output']['uri']!r} is {uri!r} at {first} and at {second}, and a run needs an "
                "empty output; put the time and its zone into it: {{ scheduled_time | date('%Y-%m-%dT%H%M%z') }}"
            )
            raise SpecError(msg)
        outputs[uri] = tick
    return kept


def set_paused(book: Book, entry: Entry[Schedule], *, paused: bool, now: datetime | None = None) -> Schedule:
    """Pauses a schedule, or lets it go on; ticks of the pause do not count.

    Raises:
        RayferryError: somebody else changed it just now.
    """
    if entry.value.paused == paused:
        return entry.value
    time = stamp(now or datetime.now(UTC))
    changes = {"paused": paused, "updated_at": time} | ({} if paused else {"since": time})
    made = make(entry.value.to_json() | changes, entry.value.name)
    if book.put_schedule(made, entry.tag) is None:
        msg = f"{made.name} was changed by somebody else just now; try again"
        raise RayferryError(msg)
    return made


def trigger_now(scheduler: "Scheduler", schedule: Schedule, now: datetime | None = None) -> Firing:
    """Fires a schedule at this second, which is none of its ticks'. Gives what was written of it.

    Raises:
        SpecError: its output would be that of a tick.
    """
    now = now or datetime.now(UTC)
    cursor = scheduler.book.progress(schedule.name).value.cursor
    second = max(now.replace(microsecond=0), tick_of(cursor) + _SECOND if cursor else now.replace(microsecond=0))
    while True:
        second += _SECOND if second.second == 0 else timedelta()  # ticks are whole minutes
        _refuse_output_of_tick(schedule, second)
        entry = claim(
            scheduler.book,
            schedule,
            second,
            scheduler.owner,
            now,
            trigger="manual",
            place=scheduler.submitter.place_of(schedule),
        )
        if entry is not None:
            break
        second += _SECOND
    return entry.value if entry.value.is_over else scheduler.submit(schedule, entry, now, is_patient=False)


def _refuse_output_of_tick(schedule: Schedule, second: datetime) -> None:
    """Refuses a moment at which templates give the output of a tick, which would find it taken."""
    try:
        ours = job_of(schedule, second).output.uri
        before = next(times.last_ticks(schedule.cron, schedule.zone, second), [])[-1:]
        near = [tick for tick in before if tick > moment(schedule.since)]
        for tick in [*near, *times.next_times(schedule.cron, schedule.zone, second, 1)]:
            if job_of(schedule, tick).output.uri == ours:
                msg = (
                    f"{schedule.name}: a run now would write {ours}, which is the output of the tick of "
                    f"{local_time(schedule, tick)}; put the seconds into output.uri: "
                    "{{ scheduled_time | date('%Y-%m-%dT%H%M%S') }}"
                )
                break
        else:
            return
    except SpecError:  # the firing tells
        return
    raise SpecError(msg)


def give_up(book: Book, name: str, submission_id: str, now: datetime | None = None) -> Firing:
    """Takes a firing for lost, so that its schedule goes on: its cluster tells no more how it stands.

    Raises:
        RayferryError: there is no such firing, or it is over, or somebody else changed it just now.
    """
    for tick in reversed(book.ticks(name)):
        entry = book.firing(name, tick)
        if entry is None or submission_id not in {entry.value.submission_id, entry.value.latest_submission_id}:
            continue
        if entry.value.is_over:
            msg = f"{submission_id} is over already: {entry.value.state}"
            raise RayferryError(msg)
        after = ended(entry.value, "lost", now or datetime.now(UTC), "given up by hand")
        if book.put_firing(after, entry.tag) is None:
            msg = f"{submission_id} was changed by somebody else just now; see: rayferry schedule history {name}"
            raise RayferryError(msg)
        return after
    msg = f"{name} has no firing {submission_id!r}; see: rayferry schedule history {name}"
    raise RayferryError(msg)


def next_of(schedule: Schedule, num: int, now: datetime | None = None) -> list[datetime]:
    """Its next ticks; none while it is paused."""
    if schedule.paused:
        return []
    return times.next_times(schedule.cron, schedule.zone, now or datetime.now(UTC), num)


def local_time(schedule: Schedule, tick: datetime) -> str:
    """A tick in the schedule's zone."""
    return tick.astimezone(schedule.zone).isoformat()
