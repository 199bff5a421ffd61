"""What a plainer cron is told is what the expression says, or a little more."""

from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from rayferry.submit.schedule.export.fields import parse, plain
from rayferry.submit.schedule.times import fire_times

SINCE = datetime(2027, 1, 1, tzinfo=UTC)


def ticks(cron):
    return list(islice(fire_times(cron, ZoneInfo("UTC"), SINCE), 200))


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 2 * * *", "0 2 * * *"),
        ("*/15 9-17 * jan,JUL mon-fri", "0,15,30,45 9-17 * 1,7 1-5"),
        ("0 0 * * 7", "0 0 * * 0"),
        ("0 0 * * 5-7", "0 0 * * 0,5,6"),
        ("0 0 13 * 5", "0 0 13 * 5"),
        ("0 0 1-31 * 5", "0 0 * * *"),  # "or" with every day
        ("0 0 5 * 0-7", "0 0 * * *"),
        ("0 0 */2 * *", "0 0 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31 * *"),
    ],
)
def test_a_plain_expression_keeps_its_ticks(cron, expected):
    assert parse(cron).is_plain
    assert plain(parse(cron)) == expected
    assert ticks(cron) == ticks(expected)


@pytest.mark.parametrize("cron", ["0 0 L * *", "0 0 LW * *", "0 0 * * 5L", "0 0 * * 1#2", "0 0 */2 * 5", "0 0 1 * 5L"])
def test_one_that_is_not_plain_gets_times_more_and_loses_none(cron):
    assert not parse(cron).is_plain
    wider = ticks(plain(parse(cron)))
    assert {tick for tick in ticks(cron) if tick <= wider[-1]} < set(wider)
