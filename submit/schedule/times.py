"""When a schedule fires: a cron expression, in a time zone, across its changes of the clock.

The expression is CronSim's, which takes what Debian's cron takes. What it is asked for depends on the hours (Debian's
goes by real time for `*/2`, too, and whenever the minute begins with `*`):

- Every hour (`*`, `*/1`, `0-23`): it goes by real time. An hour that is repeated has its ticks twice, one that is left
  out has none.
- Certain hours: it goes by the clock on the wall. A time that is left out fires once, when the clock jumps; one that is
  repeated fires once, the first time.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_NUM_FIELDS = 5
_HOURS = 1
_NO_PLACES = frozenset({"localtime", "posixrules", "Factory"})  # files beside the zones
_LOOK_BACK_DAYS = (1 / 24, 1.0, 32.0, 367.0, 9 * 366.0)  # 29 February may be eight years ago
_DAYS_A_YEAR = 366
_ALL_HOURS = set(range(24))
_SECOND = timedelta(seconds=1)
_PROBE = datetime(2024, 1, 1, tzinfo=UTC)  # any time will do: CronSim looks fifty years ahead


def zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name.

    Raises:
        ValueError: there is none, or it is another one on another machine.
    """
    if name in _NO_PLACES or name.startswith("right/"):
        msg = "means another time on another machine; write an IANA name, such as Asia/Shanghai, Europe/Berlin or UTC"
        raise ValueError(msg)
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        msg = (
            "no such time zone; write an IANA name, such as Asia/Shanghai, Europe/Berlin or UTC "
            "(a machine without zone data needs: pip install tzdata)"
        )
        raise ValueError(msg) from error


def check(cron: str) -> None:
    """Refuses an expression that cannot be read, or that never comes true.

    Raises:
        ValueError: saying which field.
    """
    fields = cron.split()
    if len(fields) != _NUM_FIELDS:
        msg = "five fields: minute, hour, day of month, month, day of week; such as '0 2 * * *' (each day at 02:00)"
        raise ValueError(msg)
    try:
        found = next(iter(CronSim(cron, _PROBE.replace(tzinfo=None))), None)
    except (CronSimError, AssertionError, ValueError, TypeError) as error:
        day = " (no such day in these months)" if "day-of-month" in str(error) and _reads(fields[2]) else ""
        msg = f"not a cron expression: {str(error) or 'it cannot be read'}{day}; the fields are minute, hour, day of "
        msg += "month, month, day of week, such as '0 2 * * MON-FRI'"
        raise ValueError(msg) from error
    if found is None:
        msg = "never comes true in fifty years; check the day of month, the month and the day of week"
        raise ValueError(msg)


def _reads(field: str) -> bool:
    """True if a field for the day of month is one by itself."""
    try:
        CronSim(f"0 0 {field} * *", _PROBE.replace(tzinfo=None))
    except (CronSimError, AssertionError, ValueError, TypeError):
        return False
    return True


def fire_times(cron: str, where: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """The ticks later than `after`, in order, each once, in UTC.

    Args:
        cron: an expression that `check` lets pass.
        where: the time zone that it is meant in.
        after: with a time zone.
    """
    last = after.astimezone(UTC)
    is_hourly = CronSim(cron, _PROBE.replace(tzinfo=None)).hours == _ALL_HOURS
    found = (_by_real_time if is_hourly else _by_the_wall)(cron, where, last)
    for tick in found:
        if tick > last:  # a time that was left out falls together with others; a repeated one may lie before `after`
            last = tick
            yield tick


def _by_the_wall(cron: str, where: ZoneInfo, after: datetime) -> Iterator[datetime]:
    for wall in CronSim(cron, after.astimezone(where).replace(tzinfo=None, fold=0)):
        yield _instant(wall, where)


def _by_real_time(cron: str, where: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """From change to change of the clock, CronSim counts in a zone that has none.

    Across one it would count by itself, but leave out the second 01:30 where the clock goes back half an hour.
    """
    at, offset = after, _offset(after, where)
    while True:
        for wall in CronSim(cron, at.replace(tzinfo=None) + offset):
            tick = (wall - offset).replace(tzinfo=UTC)
            if _offset(tick, where) != offset:
                change = _change(at, tick, where)
                at, offset = change - _SECOND, _offset(change, where)
                break
            yield tick
            at = tick
        else:
            return


def next_times(cron: str, where: ZoneInfo, after: datetime, num: int) -> list[datetime]:
    """The first `num` of them."""
    return list(islice(fire_times(cron, where, after), num))


def last_ticks(
    cron: str, where: ZoneInfo, until: datetime, after: datetime | None = None, more_s: float = 0.0
) -> Iterator[list[datetime]]:
    """The ticks not later than `until`, of the last hour, then of longer and longer times; no list is empty.

    Args:
        cron: an expression that `check` lets pass.
        where: the time zone that it is meant in.
        until: with a time zone.
        after: none that is not later than this; the list of all those that are is the last one.
        more_s: so much longer than usual does each look back.
    """
    for days in _LOOK_BACK_DAYS:
        start = until - timedelta(days=days, seconds=more_s)
        start = start if after is None else max(start, after)
        ticks = list(takewhile(lambda tick: tick <= until, fire_times(cron, where, start)))
        if ticks:
            yield ticks
        if start == after:
            return


def repeated_times(cron: str, where: ZoneInfo, after: datetime) -> list[datetime]:
    """The ticks of the hour that a clock which goes back within a year has twice; [] if there is none."""
    low = after.astimezone(UTC)
    for _ in range(_DAYS_A_YEAR):
        high = low + timedelta(days=1)
        back = _offset(low, where) - _offset(high, where)
        if back > timedelta():
            change = _change(low, high, where)
            found = fire_times(cron, where, max(after, change - back - _SECOND))
            return list(takewhile((change + back).__gt__, found))
        low = high
    return []


def _instant(wall: datetime, where: ZoneInfo) -> datetime:
    """What a clock on the wall means: of two moments the first; of none, the moment at which the clock jumps."""
    moment = wall.replace(tzinfo=where, fold=0).astimezone(UTC)
    if moment.astimezone(where).replace(tzinfo=None, fold=0) == wall:
        return moment
    # One of the two offsets puts it before the jump, the other one behind it.
    return _change(wall.replace(tzinfo=where, fold=1).astimezone(UTC), moment, where)


def _offset(moment: datetime, where: ZoneInfo) -> timedelta:
    return moment.astimezone(where).utcoffset() or timedelta()


def _change(low: datetime, high: datetime, where: ZoneInfo) -> datetime:
    """The first moment after `low` whose offset is not that of `low`; that of `high` is not."""
    before = _offset(low, where)
    while high - low > _SECOND:
        middle = (low + (high - low) / 2).replace(microsecond=0)
        if middle <= low:
            break
        if _offset(middle, where) == before:
            low = middle
        else:
            high = middle
    return high
