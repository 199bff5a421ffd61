"""What systemd makes of a cron expression is what Rayferry's own scheduler makes of it."""

import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

import pytest

from rayferry.job.errors import SpecError
from rayferry.submit.schedule.export.on_calendar import on_calendar
from rayferry.submit.schedule.export.starting import TEND_MINUTES
from rayferry.submit.schedule.times import fire_times

NEEDS_SYSTEMD = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")


def events(cron):
    return on_calendar(cron, "UTC")


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


def test_the_zone_stands_at_the_end():
    assert on_calendar("30 2 * * *", "Asia/Shanghai") == ["*-*-* 02:30:00 Asia/Shanghai"]


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
def ticks_and_starts(cron, zone, since, num_days):
    """Rayferry's ticks, and when systemd starts the unit, for a while."""
    since = datetime(*since, tzinfo=UTC)
    until = since + timedelta(days=num_days)
    ticks = set(takewhile(lambda tick: tick < until, fire_times(cron, ZoneInfo(zone), since)))
    starts = {moment for event in on_calendar(cron, zone) for moment in elapses(event, since, until)}
    return ticks, starts - {since}


@NEEDS_SYSTEMD
@pytest.mark.parametrize(
    ("cron", "zone", "since", "num_days"),
    [
        ("0 2 * * *", "Asia/Shanghai", (2027, 1, 1), 20),
        ("0 0 13 * 5", "UTC", (2027, 1, 1), 120),
        ("0 6 LW * *", "Asia/Kolkata", (2027, 1, 1), 250),
        ("0 6 L 2 *", "UTC", (2027, 1, 1), 1000),
        ("0 6 29-31 * *", "UTC", (2027, 1, 1), 120),
        ("0 6 * * 5L", "UTC", (2027, 1, 1), 200),
        ("0 6 * * 1#5", "UTC", (2027, 1, 1), 400),
        ("0 6 * * 0,6-7", "UTC", (2027, 1, 1), 30),
        ("0 6 1-31 * 5", "UTC", (2027, 1, 1), 30),
        ("10-50/20 */6 */2 1,3 2", "UTC", (2027, 1, 1), 100),
    ],
)
def test_systemd_starts_the_unit_at_each_tick_and_at_no_other_time(cron, zone, since, num_days):
    ticks, starts = ticks_and_starts(cron, zone, since, num_days)
    assert ticks
    assert starts == ticks


@NEEDS_SYSTEMD
@pytest.mark.parametrize(
    ("cron", "zone", "since", "num_hidden"),
    [
        ("30 2 * * *", "Europe/Berlin", (2027, 3, 26), 1),  # left out by the clock: once, when it jumps
        ("*/20 * * * *", "America/New_York", (2027, 11, 6), 3),  # an hour that comes twice
        ("45 1 * * *", "America/New_York", (2027, 11, 6), 0),
    ],
)
def test_a_change_of_the_clock_hides_from_systemd_what_a_start_each_five_minutes_finds(cron, zone, since, num_hidden):
    ticks, starts = ticks_and_starts(cron, zone, since, 3)
    assert len(ticks - starts) == num_hidden
    assert all(tick.minute % TEND_MINUTES == 0 for tick in ticks - starts)
