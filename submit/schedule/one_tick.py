"""One tick, followed to its end by a system that starts Rayferry by a clock of its own."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from rayferry.job.errors import RayferryError
from rayferry.submit import collect
from rayferry.submit.schedule import times
from rayferry.submit.schedule.definition import Schedule, moment, stamp
from rayferry.submit.schedule.loop import EVERY_S, now
from rayferry.submit.schedule.records import BAD, Firing, tick_of
from rayferry.submit.schedule.scheduler import Scheduler
from rayferry.submit.transport import NotKnownError

_SILENT_S = 600.0  # after which nobody waits any more for word of a run


@dataclass(frozen=True)
class Followed:
    """What became of a tick.

    Attributes:
        firing: what was written of it at its end; None if the tick has no run.
        reason: then, why.
    """

    firing: Firing | None
    reason: str = ""

    @property
    def exit_code(self) -> int:
        """As a command that follows a run ends; 0 if the tick needs none."""
        if self.firing is None or self.firing.state == "skipped":
            return 0
        if self.firing.result is not None:
            return int(self.firing.result["exit_code"])
        if self.firing.state in BAD:
            return collect.EXIT_FAILED
        return collect.EXIT_STOPPED if self.firing.state == "stopped" else 0


def newest_tick(schedule: Schedule, until: datetime) -> datetime | None:
    """The schedule's last tick not later than `until`; None if there is none in eight years."""
    ticks = next(times.last_ticks(schedule.cron, schedule.zone, until), None)
    return ticks[-1] if ticks else None


def follow(
    scheduler: Scheduler,
    name: str,
    tick: datetime,
    clock: Callable[[], datetime] = now,
    pause: Callable[[float], None] = time.sleep,
) -> Followed:
    """Fires a tick, if it is due and nobody did, and sees to its run until that is over, whoever started it.

    Raises:
        StorageError: the store cannot be used.
        NotKnownError: for ten minutes nobody told how the run stands; it may go on.
        RayferryError: an object in it is not valid.
    """
    while True:
        scheduler.tend(name, clock())
        entry = scheduler.book.firing(name, tick)
        if entry is not None and (entry.value.is_settled or scheduler.leaves_call(entry.value)):
            return Followed(entry.value)
        if entry is None and (reason := _has_no_run(scheduler, name, tick)):
            return Followed(None, reason)
        since = scheduler.unseen.get((name, tick))
        if entry is not None and since is not None and (clock() - since).total_seconds() > _SILENT_S:
            told = f"{entry.value.latest_submission_id}: not known how it stands: {entry.value.reason}"
            msg = f"{told}; to wait for it no more: rayferry schedule give-up {name} {entry.value.latest_submission_id}"
            raise NotKnownError(msg)
        pause(EVERY_S)


def _has_no_run(scheduler: Scheduler, name: str, tick: datetime) -> str:
    """Why no run will come of a tick that was not fired; "" if one may."""
    found = scheduler.book.schedule(name)
    if found is None:
        return f"{name} was removed"
    if found.value.paused:
        return f"{name} is paused; to go on: rayferry schedule unpause {name}"
    if tick <= moment(found.value.since):
        return f"{stamp(tick)} was before {name} was added, changed or unpaused ({found.value.since})"
    progress = scheduler.book.progress(name).value
    if progress.cursor and tick_of(progress.cursor) >= tick:
        return f"{stamp(tick)} was passed over, as catch_up ({found.value.catch_up}) says"
    if progress.broken is not None and progress.broken.kind == "store":
        raise RayferryError(progress.broken.error)
    return ""
