from datetime import timedelta

import pytest

from rayferry.submit.schedule.decide import Advance, Drop, Known, Notify, Record, Skip, Stop, Submit, decide, jitter
from rayferry.submit.schedule.definition import stamp
from rayferry.submit.schedule.records import Firing, Hook, Progress, key_of

from .conftest import START


def minute(number):
    return START + timedelta(minutes=number)


def firing(number, state="submitted", **values):
    tick = minute(number)
    return {
        tick: Firing(
            schedule="nightly", scheduled_time=stamp(tick), state=state, submission_id=f"run-{number}", **values
        )
    }


def decided(schedule, now, *firings, standing=None, cursor=0):
    """What is to be done, but for the cursor."""
    ours = {tick: one for several in firings for tick, one in several.items()}
    known = Known(
        schedule,
        Progress(cursor=key_of(minute(cursor)) if cursor else ""),
        ours,
        {minute(number): how for number, how in (standing or {}).items()},
    )
    return [action for action in decide(known, now) if not isinstance(action, Advance)]


def advanced(schedule, now, *firings):
    ours = {tick: one for several in firings for tick, one in several.items()}
    found = [action for action in decide(Known(schedule, Progress(), ours), now) if isinstance(action, Advance)]
    return found[0] if found else None


def test_nothing_is_due_before_the_first_tick(schedule):
    assert decided(schedule(), minute(1) - timedelta(seconds=1)) == []


def test_a_tick_is_due_at_its_second(schedule):
    assert decided(schedule(), minute(1)) == [Submit(minute(1))]


def test_a_paused_schedule_fires_nothing_but_writes_down_what_ends(schedule):
    found = decided(schedule(paused=True), minute(3), firing(1), standing={1: "over"})
    assert found == [Record(minute(1))]


@pytest.mark.parametrize(
    ("catch_up", "overlap", "expected"),
    [
        ("none", "allow", [5]),
        ("latest", "allow", [5]),
        ("all", "allow", [1, 2, 3, 4, 5]),
        ("none", "forbid", [5]),
        ("latest", "forbid", [5]),
        ("all", "forbid", [1]),
        ("latest", "replace", [5]),
    ],
)
def test_after_some_minutes_away(schedule, catch_up, overlap, expected):
    found = decided(schedule(catch_up=catch_up, overlap=overlap), minute(5) + timedelta(seconds=30))
    assert found == [Submit(minute(number)) for number in expected]


def test_after_hours_away_a_daily_tick_is_passed_over_unless_it_is_caught_up_on(schedule):
    late = minute(60 * 20)
    assert decided(schedule(cron="0 13 * * *"), late) == []
    assert decided(schedule(cron="0 13 * * *", catch_up="latest"), late) == [Submit(minute(60))]


@pytest.mark.parametrize("cron", ["* * * * *", "0 13 1 3 *", "0 0 29 2 *"])
def test_the_latest_tick_is_found_after_years(schedule, cron):
    now = minute(60 * 24 * 365 * 7)
    found = decided(schedule(cron=cron, catch_up="latest"), now)
    assert len(found) == 1
    assert minute(0) < found[0].tick <= now


def test_a_tick_that_was_fired_is_not_fired_again(schedule):
    ended = firing(1, "succeeded")
    assert decided(schedule(), minute(1) + timedelta(seconds=30), ended) == []


def test_a_clock_that_was_set_back_fires_nothing_again(schedule):
    assert decided(schedule(catch_up="all"), minute(3), cursor=5) == []


@pytest.mark.parametrize(
    ("overlap", "catch_up", "standing", "expected"),
    [
        ("forbid", "none", "running", [Skip(minute(2), "run-1 of an earlier tick is not over")]),
        ("forbid", "latest", "running", []),
        ("forbid", "all", "running", []),
        ("forbid", "none", "unknown", []),  # it waits until the cluster answers
        ("forbid", "none", "over", [Record(minute(1)), Submit(minute(2))]),  # it finished while nobody looked
        ("allow", "none", "running", [Submit(minute(2))]),
        ("allow", "none", "unknown", [Submit(minute(2))]),
        ("replace", "none", "running", [Stop(minute(1), minute(2))]),
        ("replace", "none", "unknown", []),
        ("replace", "none", "over", [Record(minute(1)), Submit(minute(2))]),
        ("forbid", "none", "forgotten", [Record(minute(1))]),
    ],
)
def test_overlap_goes_by_how_the_earlier_run_stands(schedule, overlap, catch_up, standing, expected):
    found = decided(schedule(overlap=overlap, catch_up=catch_up), minute(2), firing(1), standing={1: standing})
    assert found == expected


def test_a_run_that_is_being_replaced_is_asked_to_stop_once(schedule):
    stopping = firing(1, replaced_by=stamp(minute(2)))
    assert decided(schedule(overlap="replace"), minute(2), stopping, standing={1: "running"}) == []


def test_a_claim_of_somebody_else_is_waited_for_until_it_expires(schedule):
    claimed = firing(1, "claimed", owner="other", claimed_at=stamp(minute(1)))
    assert decided(schedule(), minute(1) + timedelta(seconds=119), claimed) == []
    assert decided(schedule(), minute(1) + timedelta(seconds=121), claimed) == [Submit(minute(1))]


def test_a_tick_that_was_claimed_is_not_submitted_once_its_schedule_is_paused(schedule):
    paused, late = schedule(paused=True), minute(1) + timedelta(seconds=121)
    for state in ("claimed", "waiting"):
        (found,) = decided(paused, late, firing(1, state, claimed_at=stamp(minute(1))))
        assert isinstance(found, Drop)
    assert decided(paused, late, firing(1, "waiting", attempt=2)) == [Submit(minute(1))]


def test_what_a_removed_schedule_of_the_same_name_left_is_not_submitted(schedule):
    (found,) = decided(
        schedule(cron="0 * * * *", created_at=stamp(minute(2))), minute(2), firing(1, "waiting", attempt=2)
    )
    assert (type(found), found.tick) == (Drop, minute(1))


def test_of_two_that_wait_for_each_other_the_first_goes(schedule):
    ours = firing(1, "waiting"), firing(2, "waiting")
    assert decided(schedule(catch_up="all"), minute(2), *ours) == [Submit(minute(1))]


def test_on_failure_is_called_last(schedule):
    failed = firing(1, "failed", on_failure=Hook())
    assert decided(schedule(), minute(2), failed) == [Submit(minute(2)), Notify(minute(1))]


def test_what_was_missed_is_counted_as_far_as_the_cursor_goes(schedule):
    now, cursor, missed = minute(2500), 0, 0
    for _ in range(5):
        known = Known(schedule(), Progress(cursor=key_of(minute(cursor)) if cursor else "", missed=missed))
        for found in decide(known, now):
            if isinstance(found, Advance):
                cursor, missed = int((found.cursor - START).total_seconds() // 60), missed + found.missed
    assert (cursor, missed) == (2499, 2499)


def test_a_next_attempt_is_sent_when_it_is_due(schedule):
    waiting = firing(1, "waiting", next_at=stamp(minute(1) + timedelta(seconds=30)))
    assert decided(schedule(), minute(1) + timedelta(seconds=29), waiting) == []
    assert decided(schedule(), minute(1) + timedelta(seconds=30), waiting) == [Submit(minute(1))]


def test_on_failure_is_called_once_it_is_due_and_again_if_the_caller_died(schedule):
    due = firing(1, "failed", on_failure=Hook())
    calling = firing(1, "failed", on_failure=Hook(state="calling", at=stamp(minute(1))))
    assert decided(schedule(), minute(1), due) == [Notify(minute(1))]
    assert decided(schedule(), minute(1), calling) == []
    assert Notify(minute(1)) in decided(schedule(), minute(4), calling)


def test_jitter_is_the_same_for_all_and_another_for_each_tick(schedule):
    one = schedule(jitter="5m")
    found = [jitter(one, minute(number)) for number in range(50)]
    assert found == [jitter(schedule(jitter="5m"), minute(number)) for number in range(50)]
    assert len(set(found)) > 40
    assert timedelta(0) <= min(found)
    assert max(found) < timedelta(minutes=5)


def test_a_tick_with_jitter_waits_for_it_and_the_cursor_does_not_pass_it(schedule):
    one = schedule(cron="0 * * * *", jitter="30m")
    tick = minute(60)
    due = tick + jitter(one, tick)
    assert decided(one, due - timedelta(seconds=1)) == []
    assert decided(one, due) == [Submit(tick)]
    assert advanced(one, due - timedelta(seconds=1)) is None


@pytest.mark.parametrize(
    ("catch_up", "firings", "expected"),
    [
        ("none", [], None),
        ("none", [firing(3, "succeeded")], Advance(minute(3), 2)),
        ("none", [firing(3)], Advance(minute(2), 2)),
        ("latest", [firing(3, "succeeded")], Advance(minute(3), 2)),
        ("all", [firing(3, "succeeded")], None),
        ("all", [firing(1, "succeeded"), firing(3, "succeeded")], Advance(minute(1), 0)),
        ("all", [firing(number, "succeeded") for number in (1, 2, 3)], Advance(minute(3), 0)),
        ("all", [firing(1, "succeeded"), firing(2), firing(3, "succeeded")], Advance(minute(1), 0)),
        ("all", [firing(1, "failed", on_failure=Hook())], None),
    ],
)
def test_the_cursor_passes_what_is_settled_and_counts_what_was_missed(schedule, catch_up, firings, expected):
    found = advanced(schedule(catch_up=catch_up), minute(3), *firings)
    if catch_up == "none" and not firings:  # the newest waits, those before it were missed
        expected = Advance(minute(2), 2)
    assert found == expected
