"""A cron expression as systemd's calendar events, in the schedule's zone.

Source: https://www.freedesktop.org/software/systemd/man/latest/systemd.time.html#Calendar%20Events
"""

from collections.abc import Iterable, Iterator

from rayferry.job.errors import SpecError
from rayferry.submit.schedule.export.fields import (
    ALL_DAYS,
    ALL_WEEKDAYS,
    LAST,
    LAST_WEEKDAY,
    Fields,
    parse,
    runs,
)

_WEEKDAYS = ("", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")  # whose week begins on Monday
_MON_TO_FRI = frozenset(range(1, 6))
_FRIDAY = frozenset({5})

# What is let pass of days: weekdays, and days of the month by numbers, or by systemd's `~`, which counts from the end.
_Days = tuple[frozenset[int], frozenset[int] | str]


def on_calendar(cron: str, timezone: str) -> list[str]:
    """Values for `OnCalendar=`, of which each starts the unit. Together they let pass the ticks and nothing else.

    Where a clock is set forward or back, systemd leaves out the ticks of that hour.

    Raises:
        SpecError: systemd cannot say it.
    """
    fields = parse(cron)
    time = f"{_listed(fields.hours, range(24))}:{_listed(fields.minutes, range(60))}:00 {timezone}"
    months = _listed(fields.months, range(1, 13))
    events = []
    for weekdays, days in _passing(fields, cron):
        named = "" if weekdays == ALL_WEEKDAYS else _named(weekdays) + " "
        day = f"~{days}" if isinstance(days, str) else f"-{_listed(days, range(1, 32))}"
        events.append(f"{named}*-{months}{day} {time}")
    return events


def _passing(fields: Fields, cron: str) -> Iterator[_Days]:
    by_month: list[_Days] = []
    numbers = fields.days - {LAST, LAST_WEEKDAY}
    if numbers:
        by_month.append((ALL_WEEKDAYS, numbers))
    if LAST in fields.days:
        by_month.append((ALL_WEEKDAYS, "01"))
    if LAST_WEEKDAY in fields.days:  # the last day, or the Friday before a Saturday or a Sunday that is the last day
        by_month += [(_MON_TO_FRI, "01"), (_FRIDAY, "02"), (_FRIDAY, "03")]
    by_week: list[_Days] = [(fields.weekdays, ALL_DAYS)] if fields.weekdays else []
    for day, number in sorted(fields.nth_weekdays):
        week = frozenset(range(7 * number - 6, min(7 * number, 31) + 1))
        by_week.append((frozenset({day}), "07/1" if number == LAST else week))
    if not fields.both:
        yield from (*by_month, *by_week)
        return
    for weekdays, days in by_month:
        for others, in_week in by_week:
            passing = weekdays & others
            if passing and (both := _both(days, in_week, cron)):
                yield passing, both


def _both(days: frozenset[int] | str, others: frozenset[int] | str, cron: str) -> frozenset[int] | str:
    if isinstance(days, frozenset) and isinstance(others, frozenset):
        return days & others
    if days == ALL_DAYS:
        return others
    if others == ALL_DAYS:
        return days
    raise SpecError(f"cron {cron!r}: systemd cannot say both of its days at once; write it as two schedules")


def _named(weekdays: frozenset[int]) -> str:
    numbers = runs(day or 7 for day in weekdays)
    return ",".join(f"{_WEEKDAYS[low]}..{_WEEKDAYS[high]}" if high > low else _WEEKDAYS[low] for low, high in numbers)


def _listed(numbers: Iterable[int], full: range) -> str:
    if set(numbers) == set(full):
        return "*"
    return ",".join(f"{low:02}..{high:02}" if high > low else f"{low:02}" for low, high in runs(numbers))
