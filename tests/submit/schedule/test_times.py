from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from rayferry.submit.schedule.times import check, fire_times, next_times, zone

# Days around each change of the clock, forwards and back: north, south, and one of half an hour.
CHANGES = [
    ("America/New_York", datetime(2026, 3, 8, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 3, 29, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 25, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, tzinfo=UTC)),
]
# What each cron expression is true of, written down again by hand.
FIXED = {
    "30 2 * * *": lambda wall: (wall.hour, wall.minute) == (2, 30),
    "15,45 1,2,3 * * *": lambda wall: wall.hour in {1, 2, 3} and wall.minute in {15, 45},
    "0 */2 * * *": lambda wall: wall.hour % 2 == 0 and wall.minute == 0,
    "*/20 2 * * *": lambda wall: wall.hour == 2 and wall.minute % 20 == 0,
    "0 0 * * *": lambda wall: (wall.hour, wall.minute) == (0, 0),
    "5 1 * * SUN": lambda wall: (wall.hour, wall.minute) == (1, 5) and wall.weekday() == 6,
}
EVERY_HOUR = {
    "0 * * * *": lambda wall: wall.minute == 0,
    "*/15 * * * *": lambda wall: wall.minute % 15 == 0,
    "30 * * * SUN": lambda wall: wall.minute == 30 and wall.weekday() == 6,
}


def by_the_wall(is_true, where, start, end):
    """Each minute that a calendar has, asked one after another: what is left out counts when the clock has jumped."""
    wall, found = start.astimezone(where).replace(tzinfo=None) - timedelta(hours=3), []
    while wall < end.astimezone(where).replace(tzinfo=None):
        if is_true(wall):
            moment = wall.replace(tzinfo=where).astimezone(UTC)
            if moment.astimezone(where).replace(tzinfo=None) != wall:
                moment = first_after_the_jump(wall, where)
            found.append(moment)
        wall += timedelta(minutes=1)
    return sorted({moment for moment in found if start < moment < end})


def first_after_the_jump(wall, where):
    """Minute by minute of real time from a day before, until the clock on the wall shows more."""
    moment = (wall - timedelta(hours=6)).replace(tzinfo=where).astimezone(UTC)
    while moment.astimezone(where).replace(tzinfo=None) < wall:
        moment += timedelta(minutes=1)
    return moment


def by_real_time(is_true, where, start, end):
    """Each minute that passes, asked what the clock on the wall shows."""
    num = int((end - start).total_seconds()) // 60
    minutes = [start + timedelta(minutes=number) for number in range(1, num)]
    return [moment for moment in minutes if is_true(moment.astimezone(where))]


@pytest.mark.parametrize(("name", "change"), CHANGES)
@pytest.mark.parametrize("cron", [*FIXED, *EVERY_HOUR])
def test_ticks_around_a_change_of_the_clock_are_those_of_a_count_by_minutes(name, change, cron):
    where, start, end = ZoneInfo(name), change - timedelta(days=3), change + timedelta(days=3)
    expected = (
        by_the_wall(FIXED[cron], where, start, end)
        if cron in FIXED
        else by_real_time(EVERY_HOUR[cron], where, start, end)
    )
    found = []
    for tick in fire_times(cron, where, start):
        if tick >= end:
            break
        found.append(tick)
    assert found == expected


@pytest.mark.parametrize(("name", "change"), CHANGES)
@pytest.mark.parametrize("cron", [*FIXED, *EVERY_HOUR])
def test_the_next_tick_is_the_same_from_wherever_one_looks(name, change, cron):
    where, start = ZoneInfo(name), change - timedelta(hours=12)
    ticks = next_times(cron, where, start, 200)
    for minutes in range(0, 24 * 60, 13):
        after = start + timedelta(minutes=minutes)
        assert next_times(cron, where, after, 1) == [next(tick for tick in ticks if tick > after)]


@pytest.mark.parametrize("hours", ["*/1", "0-23", "0-12,13-23"])
def test_every_hour_is_every_hour_however_it_is_written(hours):
    where, start = ZoneInfo("America/New_York"), datetime(2026, 11, 1, 3, tzinfo=UTC)
    assert next_times(f"0 {hours} * * *", where, start, 6) == next_times("0 * * * *", where, start, 6)


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        # 02:00 -> 03:00: what is left out fires once, when the clock jumps
        ("30 2 * * *", datetime(2026, 3, 8, 5, tzinfo=UTC), "2026-03-08T03:00:00-04:00"),
        # 02:00 -> 01:00: what is repeated fires the first time
        ("30 1 * * *", datetime(2026, 11, 1, 4, tzinfo=UTC), "2026-11-01T01:30:00-04:00"),
        ("30 1 * * *", datetime(2026, 11, 1, 5, 30, tzinfo=UTC), "2026-11-02T01:30:00-05:00"),
        # each hour that passes has its tick
        ("30 * * * *", datetime(2026, 11, 1, 5, 30, tzinfo=UTC), "2026-11-01T01:30:00-05:00"),
    ],
)
def test_a_change_of_the_clock_in_new_york(cron, after, expected):
    where = ZoneInfo("America/New_York")
    assert next_times(cron, where, after, 1)[0].astimezone(where).isoformat() == expected


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("0 0 30 2 *", "no such day in these months"),
        ("0 0 31 4,6 *", "no such day in these months"),
        ("* * */20 * 1L", "never comes true"),
        ("60 * * * *", "Bad minute"),
        ("* 24 * * *", "Bad hour"),
        ("* * * * 8", "Bad day-of-week"),
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("@daily", "five fields"),
        ("", "five fields"),
        ("a b c d e", "Bad minute"),
        ("*/0 * * * *", "Bad minute"),
        ("* * 1- * *", "Bad day-of-month;"),
    ],
)
def test_what_is_no_cron_expression_is_refused(cron, said):
    with pytest.raises(ValueError, match=said):
        check(cron)


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 9 * * MON-FRI", "*/5 8-18 * jan,jul *", "0 0 L * *", "0 0 30 2 MON"])
def test_what_comes_true_is_taken(cron):
    check(cron)


@pytest.mark.parametrize("name", ["Mars/Base", "", "../../etc/passwd", "/etc/localtime", "europe/nowhere", "UTC+8"])
def test_an_unknown_zone_is_refused(name):
    with pytest.raises(ValueError, match="no such time zone"):
        zone(name)


@pytest.mark.parametrize("name", ["localtime", "posixrules", "Factory", "right/UTC"])
def test_a_zone_that_is_another_one_elsewhere_is_refused(name):
    with pytest.raises(ValueError, match="another time on another machine"):
        zone(name)
