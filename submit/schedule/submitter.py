"""A claimed firing on its way to a cluster, and what becomes of it if it does not come there."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from rayferry.job.errors import RayferryError, SpecError
from rayferry.job.spec import parse
from rayferry.submit import s3
from rayferry.submit.config import NoClusterError
from rayferry.submit.schedule.decide import GRACE_S, in_the_way, is_of_before, jitter
from rayferry.submit.schedule.definition import Schedule, stamp
from rayferry.submit.schedule.firing import hook_of
from rayferry.submit.schedule.records import BAD, Firing, changed, ended
from rayferry.submit.schedule.runs import Look, Runs
from rayferry.submit.schedule.times import fire_times
from rayferry.submit.transport import ClusterError, NotKnownError, UnreachableError

MAX_TRIES = 5  # refusals of one attempt after which the firing is given up
_AWAY = (UnreachableError, NoClusterError, s3.StorageError)  # nobody refused anything
_AWAY_PAUSE_S = 30
_FIRST_PAUSE_S = 10
_MAX_PAUSE_S = 300
_NOWHERE: dict[str, Any] = {"address": None, "session": None, "seen_from": None}


class Submitter:
    """Sends runs to their clusters.

    Args:
        runs: the clusters.
        say: takes a line for people.
    """

    def __init__(self, runs: Runs, say: Callable[[str], None]) -> None:
        self._runs = runs
        self._say = say

    def place_of(self, schedule: Schedule) -> Callable[[Firing], Firing]:
        """Says in a firing to which cluster its run is to go, if one answers."""

        def place(firing: Firing) -> Firing:
            try:
                return changed(firing, **self._runs.place(firing, schedule.address))
            except RayferryError:  # the submission will tell
                return firing

        return place

    def start(self, schedule: Schedule, firing: Firing, now: datetime, *, may_run: bool, is_patient: bool) -> Firing:
        """The firing after its run was started, or could not be; see `not_submitted`."""
        began = time.monotonic()
        which = f"{firing.schedule} {firing.scheduled_time}"
        try:
            address = self._runs.start(firing)
        except RayferryError as error:
            then = now + timedelta(seconds=time.monotonic() - began)
            after = not_submitted(firing, error, schedule, then, may_run=may_run, is_patient=is_patient)
            doubt = "not known whether it was submitted" if after.state == "submitted" else "not submitted"
            self._say(f"{which}: {doubt}: {error}")
            return after
        then = now + timedelta(seconds=time.monotonic() - began)
        self._say(f"{which}: submitted {firing.latest_submission_id}")
        return changed(firing, state="submitted", submitted_at=stamp(then), address=address, reason=None)


def not_submitted(  # noqa: PLR0911  # one line a case
    firing: Firing, error: RayferryError, schedule: Schedule, now: datetime, *, may_run: bool, is_patient: bool
) -> Firing:
    """The firing after an error.

    Args:
        firing: which is claimed.
        error: what its submission ended with.
        schedule: its schedule.
        now: the time.
        may_run: an earlier owner of the claim may have submitted it.
        is_patient: it may be tried again.
    """
    reason = str(error)
    if firing.address and (isinstance(error, NotKnownError) or (may_run and isinstance(error, ClusterError))):
        return changed(firing, state="submitted", submitted_at=None, next_at=None, reason=reason)  # a look will tell
    if isinstance(error, SpecError) and not isinstance(error, NoClusterError):
        return ended(firing, "refused", now, reason, on_failure=hook_of(schedule))
    if not is_patient:
        return ended(firing, "refused", now, reason)
    again = {"state": "waiting", "reason": reason} | (_NOWHERE if firing.attempt == 1 else {})
    if isinstance(error, _AWAY):
        due = now + timedelta(seconds=_AWAY_PAUSE_S)
        late = _late(firing, schedule, now)
        if late and schedule.catch_up == "latest":
            return ended(firing, "skipped", now, f"{late}: {reason}")
        if late:
            return ended(firing, "refused", now, f"{late}: {reason}", on_failure=hook_of(schedule))
        return changed(firing, **again, next_at=stamp(due))
    tries = firing.tries + 1
    if tries >= MAX_TRIES:
        return ended(firing, "refused", now, reason, tries=tries, on_failure=hook_of(schedule))
    return changed(firing, **again, tries=tries, next_at=stamp(now + timedelta(seconds=pause_s(tries))))


def held_back(
    schedule: Schedule, there: Schedule | None, firing: Firing, others: Mapping[datetime, Firing], now: datetime
) -> Firing | None:
    """What becomes of a claimed firing if things are no longer as they were when it was decided; None: they are.

    Args:
        schedule: as it was.
        there: as it is.
        firing: the one.
        others: those of other ticks.
        now: the time.
    """
    if there is None or there.created_at != schedule.created_at:
        return ended(firing, "skipped", now, "its schedule was removed")
    if firing.trigger == "manual":
        return None
    if there.paused:
        return ended(firing, "skipped", now, "its schedule was paused before it was submitted")
    other = in_the_way(others, firing.tick)
    if schedule.overlap == "allow" or other is None:
        return None
    due = now + timedelta(seconds=_FIRST_PAUSE_S)
    reason = f"{other.submission_id} of {other.scheduled_time} is not over"
    return changed(firing, state="waiting", next_at=stamp(due), reason=reason, **_NOWHERE)


def let_go(firing: Firing, reason: str, now: datetime) -> Firing:
    """What becomes of one that is not to be submitted; what may run already is looked for first."""
    if firing.state == "claimed" and firing.address is not None:
        return changed(firing, state="submitted", submitted_at=None, reason=f"{firing.owner} did not go on")
    return ended(firing, "skipped" if firing.attempt == 1 else "stopped", now, reason)


def looked_at(schedule: Schedule, firing: Firing, look: Look, now: datetime) -> Firing:
    """What becomes of one that was submitted, and is over or forgotten."""
    is_forgotten = look.standing == "forgotten"
    may_again = (look.again or is_forgotten) and firing.replaced_by is None
    if may_again and is_forgotten and firing.submitted_at is None:  # it never came there
        return changed(firing, state="waiting", next_at=stamp(now), reason=look.reason)
    if may_again and firing.attempt < max_attempts(firing) and not is_of_before(schedule, firing):
        due = now + timedelta(seconds=pause_s(firing.attempt))
        values = {"tries": 0, "next_at": stamp(due), "reason": look.reason, "submitted_at": None}
        return changed(firing, state="waiting", attempt=firing.attempt + 1, **values)
    if firing.replaced_by is not None:
        return ended(firing, "stopped", now, f"replaced by {firing.replaced_by}", result=look.result)
    state = "lost" if is_forgotten else look.state
    hook = hook_of(schedule) if state in BAD else None
    return ended(firing, state, now, look.reason, result=look.result, on_failure=hook)


def max_attempts(firing: Firing) -> int:
    """How often its run may be sent; a job that is not valid cannot be sent again."""
    try:
        return parse(firing.job, firing.schedule).retry.max_attempts
    except SpecError:
        return 1


def pause_s(number: int) -> int:
    """Seconds before the next try after so many."""
    return int(min(_FIRST_PAUSE_S * 2 ** (number - 1), _MAX_PAUSE_S))


def _late(firing: Firing, schedule: Schedule, now: datetime) -> str:
    """Why `catch_up` lets a run not begin any more; "" if it may."""
    if firing.attempt > 1 or schedule.catch_up == "all":
        return ""
    if schedule.catch_up == "none":
        is_late = (now - firing.tick - jitter(schedule, firing.tick)).total_seconds() > GRACE_S
        return f"no cluster took it within {GRACE_S / 60:g} minutes" if is_late else ""
    later = next(fire_times(schedule.cron, schedule.zone, firing.tick), None)
    is_late = later is not None and later + jitter(schedule, later) <= now
    return "a later tick is due" if is_late else ""
