"""What is to be done about a schedule, from what is known of it. Nothing here touches a store, a cluster or a clock."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from rayferry.submit.schedule.definition import Schedule, moment
from rayferry.submit.schedule.records import Firing, Progress, tick_of
from rayferry.submit.schedule.times import fire_times

GRACE_S = 600.0  # so late a tick may still be fired under `catch_up: none`
_MAX_AT_ONCE = 20
_MAX_COUNTED = 1000
_LOOK_BACK_DAYS = (1 / 24, 1.0, 32.0, 367.0, 9 * 366.0)  # 29 February may be eight years ago
_SECOND = timedelta(seconds=1)

# How a run that was submitted stands: `over`; `running` or waiting for its turn; `unknown`, as the cluster does not
# answer; `forgotten` by a cluster that answers, and no record of its end lies with its output.
Standing = Literal["running", "over", "unknown", "forgotten"]


@dataclass(frozen=True)
class Submit:
    """Claim the tick, and submit its run or the run's next attempt."""

    tick: datetime


@dataclass(frozen=True)
class Skip:
    """Write down that this tick has no run."""

    tick: datetime
    reason: str


@dataclass(frozen=True)
class Record:
    """Write down how a run ended, or when its next attempt is due."""

    tick: datetime


@dataclass(frozen=True)
class Stop:
    """Stop a run, as a later tick replaces it."""

    tick: datetime
    by: datetime


@dataclass(frozen=True)
class Notify:
    """Call `on_failure`."""

    tick: datetime


@dataclass(frozen=True)
class Advance:
    """Write down that all ticks up to this one are settled, and how many of them were passed over."""

    cursor: datetime
    missed: int


Action = Submit | Skip | Record | Stop | Notify | Advance


@dataclass(frozen=True)
class Known:
    """What is known of a schedule.

    Attributes:
        schedule: it.
        progress: how far it has come.
        firings: of all ticks later than the cursor that have one.
        standing: how each run stands that is `submitted`.
    """

    schedule: Schedule
    progress: Progress
    firings: Mapping[datetime, Firing] = field(default_factory=dict)
    standing: Mapping[datetime, Standing] = field(default_factory=dict)

    @property
    def start(self) -> datetime:
        """Ticks later than this one are looked at."""
        since = moment(self.schedule.since)
        return max(since, tick_of(self.progress.cursor)) if self.progress.cursor else since


def jitter(schedule: Schedule, tick: datetime) -> timedelta:
    """How much later than its time a tick is due: the same for all schedulers, and another one for each tick."""
    if not schedule.jitter_s:
        return timedelta()
    digest = hashlib.sha256(f"{schedule.name} {int(tick.timestamp())}".encode()).digest()
    return timedelta(seconds=int(schedule.jitter_s * int.from_bytes(digest[:8]) / 2**64))


def decide(known: Known, now: datetime) -> list[Action]:
    """What is to be done now, in this order: first what keeps the next look short."""
    actions: list[Action] = [*_advance(known, now)]
    busy: dict[datetime, Firing] = {}
    for tick, firing in sorted(known.firings.items()):
        standing = known.standing.get(tick, "unknown")
        if firing.state == "submitted" and standing in {"over", "forgotten"}:
            actions.append(Record(tick))
            if standing == "over":
                continue
        elif firing.may_be_taken(now) or _is_next(firing, now):
            actions.append(Submit(tick))
        elif firing.hook_is_due(now):
            actions.append(Notify(tick))
        if not firing.is_over:
            busy[tick] = firing
    if not known.schedule.paused:
        actions += _of_ticks(known, busy, now)
    return actions


def _is_next(firing: Firing, now: datetime) -> bool:
    """True if its next attempt is due."""
    return firing.state == "waiting" and (firing.next_at is None or moment(firing.next_at) <= now)


def _of_ticks(known: Known, busy: Mapping[datetime, Firing], now: datetime) -> Iterator[Action]:
    """What becomes of ticks that are due and were not decided."""
    schedule = known.schedule
    waiting = [tick for tick in _wanted(known, now) if tick not in known.firings]
    if not waiting:
        return
    if schedule.overlap == "allow":
        yield from map(Submit, waiting[:_MAX_AT_ONCE])
        return
    if not busy:
        yield Submit(waiting[0])
        return
    sure = {tick: firing for tick, firing in busy.items() if _is_surely_busy(firing, known.standing.get(tick))}
    if schedule.overlap == "replace":
        yield from (Stop(tick, waiting[0]) for tick, firing in sure.items() if firing.replaced_by is None)
    elif schedule.catch_up == "none" and sure:
        earlier = next(iter(sure.values()))
        yield from (Skip(tick, f"{earlier.submission_id} of an earlier tick is not over") for tick in waiting)


def _is_surely_busy(firing: Firing, standing: Standing | None) -> bool:
    """False while it is not known, or will be in a moment: then a tick waits."""
    return firing.state == "waiting" or (firing.state == "submitted" and standing == "running")


def _wanted(known: Known, now: datetime) -> list[datetime]:
    """The ticks that are due and that `catch_up` does not pass over, in order."""
    schedule = known.schedule
    due = [tick for tick in _ticks(known, now) if tick + jitter(schedule, tick) <= now]
    if schedule.catch_up == "all":
        return due
    newest = due[-1:]
    if schedule.catch_up == "latest":
        return newest
    return [tick for tick in newest if (now - tick - jitter(schedule, tick)).total_seconds() <= GRACE_S]


def _ticks(known: Known, now: datetime) -> list[datetime]:
    """All ticks since the cursor up to now; of a long past that no run will come of, only the end."""
    schedule, end = known.schedule, now
    if schedule.catch_up == "all":
        found: list[datetime] = []
        for tick in fire_times(schedule.cron, schedule.zone, known.start):
            if tick > end or len(found) == _MAX_COUNTED:
                break
            found.append(tick)
        return found
    for days in _LOOK_BACK_DAYS:
        start = max(known.start, now - timedelta(days=days, seconds=schedule.jitter_s))
        found = []
        for tick in fire_times(schedule.cron, schedule.zone, start):
            if tick > end:
                break
            found.append(tick)
        if any(tick + jitter(schedule, tick) <= now for tick in found) or start == known.start:
            return found
    return []


def _advance(known: Known, now: datetime) -> Iterator[Advance]:
    """How far everything is settled."""
    schedule = known.schedule
    ticks = [] if schedule.paused else _ticks(known, now)
    wanted = [] if schedule.paused else _wanted(known, now)
    open_ones = [tick for tick, firing in known.firings.items() if not firing.is_settled]
    open_ones += [tick for tick in wanted if tick not in known.firings]
    newest = max((tick for tick in ticks if tick + jitter(schedule, tick) <= now), default=None)
    open_ones += [tick for tick in ticks if tick + jitter(schedule, tick) > now and (newest is None or tick > newest)]
    if schedule.catch_up == "all":
        open_ones += [tick for tick in ticks if tick not in known.firings]
    settled = [tick for tick in (*ticks, *known.firings) if not open_ones or tick < min(open_ones)]
    if not settled or max(settled) <= known.start:
        return
    cursor = max(settled)
    passed = 0
    if not schedule.paused:
        for tick in fire_times(schedule.cron, schedule.zone, known.start):
            if tick > cursor or passed == _MAX_COUNTED:
                break
            passed += tick not in known.firings
    yield Advance(cursor, passed)
