"""What is to be done about a schedule, from what is known of it. Nothing here touches a store, a cluster or a clock."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice, takewhile
from typing import Literal

from rayferry.submit.schedule.definition import Schedule, moment
from rayferry.submit.schedule.records import Firing, Progress, tick_of
from rayferry.submit.schedule.times import fire_times, last_ticks

GRACE_S = 600.0  # so late a tick may still be fired under `catch_up: none`
_MAX_AT_ONCE = 20
_MAX_COUNTED = 1000  # ticks, a look

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
class Drop:
    """Let a firing go that was not submitted yet, and is not to be."""

    tick: datetime
    reason: str


@dataclass(frozen=True)
class Advance:
    """Write down that all ticks up to this one are settled, and how many of them were passed over."""

    cursor: datetime
    missed: int


Action = Submit | Skip | Record | Stop | Notify | Drop | Advance


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
    """What is to be done now, in this order: first what keeps the next look short, last what may take long."""
    actions: list[Action] = []
    calls: list[Action] = []
    busy: dict[datetime, Firing] = {}
    for tick, firing in sorted(known.firings.items()):
        standing = known.standing.get(tick, "unknown")
        if firing.state == "submitted" and standing in {"over", "forgotten"}:
            actions.append(Record(tick))
        elif firing.hook_is_due(now):
            calls.append(Notify(tick))
        if not firing.is_over and standing != "over":
            busy[tick] = firing
    for tick, firing in busy.items():
        if firing.may_be_taken(now) or _is_next(firing, now):
            actions += _going_on(known, busy, tick)
    found = [] if known.schedule.paused else _ticks(known, now)
    wanted = _wanted(known.schedule, found, now)
    if not known.schedule.paused:
        actions += _of_ticks(known, wanted, busy)
    return [*_advance(known, found, wanted, now), *actions, *calls]


def is_of_before(schedule: Schedule, firing: Firing) -> bool:
    """True if it is of a schedule of the same name that was removed."""
    return firing.tick < moment(schedule.created_at)


def in_the_way(firings: Mapping[datetime, Firing], tick: datetime) -> Firing | None:
    """The firing that has to be over before the run of `tick` may begin; of several that only wait, the first goes."""
    for other, firing in sorted(firings.items()):
        has_its_turn = firing.has_begun or other < tick
        if other != tick and not firing.is_over and has_its_turn:
            return firing
    return None


def _going_on(  # noqa: PLR0911  # one line a case
    known: Known, busy: Mapping[datetime, Firing], tick: datetime
) -> list[Action]:
    """What becomes of a firing that was not submitted yet, or whose next attempt is due."""
    schedule, firing = known.schedule, busy[tick]
    if is_of_before(schedule, firing):
        return [Drop(tick, "its schedule was removed")]
    if firing.attempt > 1 or firing.trigger == "manual":
        return [Submit(tick)]
    if schedule.paused:
        return [Drop(tick, "its schedule was paused before it was submitted")]
    other = in_the_way(busy, tick) if schedule.overlap != "allow" and firing.state == "waiting" else None
    if other is None:
        return [Submit(tick)]
    is_sure = _is_surely_busy(other, known.standing.get(other.tick))
    if other.tick > tick and schedule.catch_up != "all":
        return [Drop(tick, f"a later tick was fired: {other.submission_id}")] if is_sure else []
    if schedule.overlap == "replace":
        return [Stop(other.tick, tick)] if is_sure and other.replaced_by is None else []
    if schedule.catch_up == "none" and is_sure:
        return [Drop(tick, f"{other.submission_id} of an earlier tick is not over")]
    return []


def _is_next(firing: Firing, now: datetime) -> bool:
    """True if its next attempt is due."""
    return firing.state == "waiting" and (firing.next_at is None or moment(firing.next_at) <= now)


def _of_ticks(known: Known, wanted: list[datetime], busy: Mapping[datetime, Firing]) -> Iterator[Action]:
    """What becomes of ticks that are due and were not decided."""
    schedule = known.schedule
    waiting = [tick for tick in wanted if tick not in known.firings]
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


def _wanted(schedule: Schedule, ticks: list[datetime], now: datetime) -> list[datetime]:
    """The ticks that are due and that `catch_up` does not pass over, in order."""
    due = [tick for tick in ticks if tick + jitter(schedule, tick) <= now]
    if schedule.catch_up == "all":
        return due
    newest = due[-1:]
    if schedule.catch_up == "latest":
        return newest
    return [tick for tick in newest if (now - tick - jitter(schedule, tick)).total_seconds() <= GRACE_S]


def _ticks(known: Known, now: datetime) -> list[datetime]:
    """All ticks since the cursor up to now; of a long past that no run will come of, only the end."""
    schedule = known.schedule
    if schedule.catch_up == "all":
        up_to_now = takewhile(lambda tick: tick <= now, fire_times(schedule.cron, schedule.zone, known.start))
        return list(islice(up_to_now, _MAX_COUNTED))
    spans = last_ticks(schedule.cron, schedule.zone, now, known.start, schedule.jitter_s)
    return next((ticks for ticks in spans if any(tick + jitter(schedule, tick) <= now for tick in ticks)), [])


def _advance(known: Known, ticks: list[datetime], wanted: list[datetime], now: datetime) -> Iterator[Advance]:
    """How far everything is settled."""
    schedule = known.schedule
    open_ones = [tick for tick, firing in known.firings.items() if not firing.is_settled]
    open_ones += [tick for tick in wanted if tick not in known.firings]
    newest = max((tick for tick in ticks if tick + jitter(schedule, tick) <= now), default=None)
    open_ones += [tick for tick in ticks if tick + jitter(schedule, tick) > now and (newest is None or tick > newest)]
    if schedule.catch_up == "all":
        open_ones += [tick for tick in ticks if tick not in known.firings]
    settled = [tick for tick in (*ticks, *known.firings) if not open_ones or tick < min(open_ones)]
    if not settled or max(settled) <= known.start:
        return
    cursor = last = max(settled)
    passed = 0
    if not schedule.paused:
        for number, tick in enumerate(fire_times(schedule.cron, schedule.zone, known.start)):
            if tick > cursor:
                break
            if number == _MAX_COUNTED:  # the next look counts on from here
                cursor = last
                break
            passed += tick not in known.firings
            last = tick
    yield Advance(cursor, passed)
