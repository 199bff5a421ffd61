"""A cron expression as sets of numbers, and again as text that systems with a plainer cron read."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cronsim import CronSim

LAST = CronSim.LAST
LAST_WEEKDAY = CronSim.LAST_WEEKDAY
_ANY_TIME = datetime(2024, 1, 1)  # noqa: DTZ001  # CronSim wants one to begin at; it is not used
ALL_DAYS = frozenset(range(1, 32))
ALL_WEEKDAYS = frozenset(range(7))
_RANGES = (range(60), range(24), range(1, 32), range(1, 13), range(7))


@dataclass(frozen=True)
class Fields:
    """What each field of an expression lets pass.

    Attributes:
        minutes: of the hour.
        hours: of the day.
        days: of the month; `LAST` and `LAST_WEEKDAY` may be among them.
        months: of the year.
        weekdays: 0 is Sunday.
        nth_weekdays: (weekday, n): the n-th of the month, or its `LAST`.
        both: day of month and day of week must both pass; else one of them is enough.
    """

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    nth_weekdays: frozenset[tuple[int, int]]
    both: bool

    @property
    def is_plain(self) -> bool:
        """True if a cron without `L`, `LW` and `#` can say it, which takes two restricted fields of days for "or"."""
        restricted = self.days != ALL_DAYS and self.weekdays != ALL_WEEKDAYS
        return min(self.days) > 0 and not self.nth_weekdays and not (self.both and restricted)


def parse(cron: str) -> Fields:
    """Reads an expression that `times.check` lets pass."""
    found = CronSim(cron, _ANY_TIME)
    nth = {one for one in found.weekdays if isinstance(one, tuple)}
    return Fields(
        minutes=frozenset(found.minutes),
        hours=frozenset(found.hours),
        days=frozenset(found.days),
        months=frozenset(found.months),
        weekdays=frozenset(one % 7 for one in found.weekdays if isinstance(one, int)),
        nth_weekdays=frozenset((day % 7, number) for day, number in nth),
        both=found.day_and,
    )


def plain(fields: Fields) -> str:
    """Five fields of numbers, ranges, lists and `*`: every tick, and a few times more if it is not plain."""
    days, weekdays = set(fields.days), set(fields.weekdays)
    if LAST in days:
        days = (days - {LAST}) | {28, 29, 30, 31}
    if LAST_WEEKDAY in days:
        days = (days - {LAST_WEEKDAY}) | set(range(26, 32))
    weekdays |= {day for day, _ in fields.nth_weekdays}
    if not fields.both and (days == ALL_DAYS or weekdays == ALL_WEEKDAYS):  # a `*` would mean "and"
        days, weekdays = set(ALL_DAYS), set(ALL_WEEKDAYS)
    parts = (fields.minutes, fields.hours, days, fields.months, weekdays)
    return " ".join(listed(set(part), full) for part, full in zip(parts, _RANGES, strict=True))


def listed(numbers: set[int], full: range) -> str:
    """A field of plain cron that lets these numbers pass, of all that there are."""
    if numbers == set(full):
        return "*"
    return ",".join(f"{low}-{high}" if high > low else str(low) for low, high in runs(numbers))


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as (first, last) of those that follow each other; two alone stay two."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return [part for low, high in found for part in ([(low, high)] if high != low + 1 else [(low, low), (high, high)])]
