"""From a tick to a claimed firing: the job is made, and the tick belongs to one scheduler."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rayferry.job.earlier import new_run
from rayferry.job.errors import SpecError
from rayferry.job.spec import JobSpec
from rayferry.submit.options import read_job
from rayferry.submit.schedule.book import Book, Entry
from rayferry.submit.schedule.definition import Schedule, render, render_job, stamp, submission_id
from rayferry.submit.schedule.records import Firing, Hook, changed, ended


def job_of(schedule: Schedule, tick: datetime) -> JobSpec:
    """The job of a tick: of the copy, or of the file if the schedule tracks it.

    Raises:
        SpecError: it is not valid.
    """
    if not schedule.track:
        return render(schedule, tick)
    return render_job(read_job(Path(schedule.job_path or "")), schedule.name, tick.astimezone(schedule.zone))


def claim(  # noqa: PLR0913  # what a firing is made of
    book: Book,
    schedule: Schedule,
    tick: datetime,
    owner: str,
    now: datetime,
    *,
    trigger: Literal["schedule", "manual"] = "schedule",
    place: Callable[[Firing], Firing] = lambda firing: firing,
) -> Entry[Firing] | None:
    """Takes a tick that nobody has, and says by `place` to which cluster its run is to go.

    None: somebody has it. A firing that is over: no job can be made for it.
    """
    name = submission_id(schedule, tick)
    firing = Firing(
        schedule=schedule.name,
        scheduled_time=stamp(tick),
        trigger=trigger,
        submission_id=name,
        run=new_run(name),
        owner=owner,
        claimed_at=stamp(now),
    )
    try:
        spec = job_of(schedule, tick)
    except SpecError as error:
        refused = ended(firing, "refused", now, str(error), on_failure=hook_of(schedule))
        return book.put_firing(refused, None)
    return book.put_firing(place(changed(firing, job=spec.to_json(), output_uri=spec.output.uri)), None)


def take_over(
    book: Book,
    entry: Entry[Firing],
    owner: str,
    now: datetime,
    place: Callable[[Firing], Firing] = lambda firing: firing,
) -> Entry[Firing] | None:
    """Takes a firing whose claim has expired, or whose next attempt is due. None: somebody else has it.

    A cluster that it names already, it keeps: it may run there.
    """
    ours = changed(entry.value, state="claimed", owner=owner, claimed_at=stamp(now))
    return book.put_firing(place(ours) if ours.address is None else ours, entry.tag)


def hook_of(schedule: Schedule) -> dict[str, Any] | None:
    """What a firing that failed keeps of `on_failure`: that it is to be called."""
    return Hook().model_dump() if schedule.on_failure is not None else None
