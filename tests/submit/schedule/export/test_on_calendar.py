"""What systemd makes of a cron expression is what Rayferry's own scheduler makes of it."""

import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from rayferry.job.errors import SpecError
from rayferry.submit.schedule.export.on_calendar import on_calendar
from rayferry.submit.schedule.times import fire_times

SINCE = datetime(2027, 1, 1, tzinfo=UTC)


def events(cron, zone="UTC"):
    return on_calendar(cron, ZoneInfo(zone), SINCE)


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 2 * * *", ["*-*-* 02:00:00 UTC"]),
        ("*/15 9-17 * * MON-FRI", ["Mon..Fri *-*-* 09..17:00,15,30,45:00 UTC"]),
        ("* * * * *", ["*-*-* *:*:00 UTC"]),
        ("5 4 1,15 * *", ["*-*-01,15 04:05:00 UTC"]),
        ("0 0 13 * 5", ["*-*-13 00:00:00 UTC", "Fri *-*-* 00:00:00 UTC"]),  # cron's "or"
        ("0 0 */2 * 5", ["Fri *-*-01,03,05,07,09,11,13,15,17,19,21,23,25,27,29,31 00:00:00 UTC"]),  # and its "and"
        ("0 0 * * 0", ["Sun *-*-* 00:00:00 UTC"]),
        ("0 0 * * 7", ["Sun *-*-* 00:00:00 UTC"]),
        ("0 0 * * 6-7", ["Sat,Sun *-*-* 00:00:00 UTC"]),
        ("0 0 * JAN,jul *", ["*-01,07-* 00:00:00 UTC"]),
        ("0 0 L * *", ["*-*~01 00:00:00 UTC"]),
        ("0 0 * * 5L", ["Fri *-*~07/1 00:00:00 UTC"]),
        ("0 0 * * MON#2", ["Mon *-*-08..14 00:00:00 UTC"]),
        ("0 0 LW * *", ["Mon..Fri *-*~01 00:00:00 UTC", "Fri *-*~02 00:00:00 UTC", "Fri *-*~03 00:00:00 UTC"]),
    ],
)
def test_an_expression_becomes_these_events(cron, expected):
    assert events(cron) == expected


def test_what_systemd_cannot_say_is_refused_by_the_expression():
    with pytest.raises(SpecError, match=r"cron '0 0 \*/2 \* 5L': systemd cannot say both of its days at once"):
        events("0 0 */2 * 5L")


def test_a_tick_that_a_clock_set_forward_leaves_out_has_an_event_at_that_moment():
    assert events("30 2 * * *", "America/New_York") == [
        "*-*-* 02:30:00 America/New_York",
        "*-03-09..14 07:00:00 UTC",
    ]


def test_ticks_of_an_hour_that_is_repeated_have_events_of_their_own():
    assert events("*/30 * * * *", "Europe/Berlin") == [
        "*-*-* *:00,30:00 Europe/Berlin",
        "*-10-26..31 01:00,30:00 UTC",
    ]


def test_hours_that_no_change_of_the_clock_touches_need_nothing_more():
    assert events("30 4 * * *", "America/New_York") == ["*-*-* 04:30:00 America/New_York"]


def elapses(event, since, until):
    """When systemd says that an event comes true."""
    found, base, last = [], since, None
    while True:
        command = [
            "systemd-analyze",
            "calendar",
            "--iterations=400",
            f"--base-time={base:%Y-%m-%d %H:%M:%S} UTC",
            event,
        ]
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, env={"TZ": "UTC", "PATH": "/bin:/usr/bin"}
        )
        times = re.findall(r"(?:elapse|#\d+): \w{3} (\S+ \S+) UTC", said.stdout)
        for text in times:
            last = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
            if last >= until:
                return found
            found.append(last)
        if len(times) < 400:
            return found
        base = last


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize(
    ("cron", "zone", "since", "num_days", "is_exact"),
    [
        ("0 2 * * *", "Asia/Shanghai", (2027, 1, 1), 60, True),
        ("*/20 1-3 * * *", "America/New_York", (2027, 3, 10), 8, False),
        ("30 2 * * *", "Europe/Berlin", (2027, 3, 20), 14, False),
        ("*/20 * * * *", "America/New_York", (2027, 11, 5), 4, False),
        ("15 * * * *", "Australia/Lord_Howe", (2027, 4, 1), 5, False),
        ("45 1 * * *", "Australia/Lord_Howe", (2027, 10, 1), 4, False),
        ("0 0 13 * 5", "UTC", (2027, 1, 1), 120, True),
        ("0 6 LW * *", "Asia/Kolkata", (2027, 1, 1), 800, True),
        ("0 6 L 2 *", "UTC", (2027, 1, 1), 1000, True),
        ("0 6 29-31 * *", "UTC", (2027, 1, 1), 120, True),
        ("0 6 * * 5L", "UTC", (2027, 1, 1), 200, True),
        ("0 6 * * 1#5", "UTC", (2027, 1, 1), 400, True),
        ("10-50/20 */6 */2 1,3 2", "UTC", (2027, 1, 1), 100, True),
    ],
)
def test_systemd_starts_the_unit_at_each_tick(cron, zone, since, num_days, is_exact):
    since = datetime(*since, tzinfo=UTC)
    until = since + timedelta(days=num_days)
    ticks = set()
    for tick in fire_times(cron, ZoneInfo(zone), since):
        if tick >= until:
            break
        ticks.add(tick)
    starts = {moment for event in on_calendar(cron, ZoneInfo(zone), since) for moment in elapses(event, since, until)}
    assert ticks
    assert starts - {since} >= ticks
    if is_exact:
        assert starts - {since} == ticks
