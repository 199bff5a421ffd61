"""A tick that another system starts is fired once and followed to its end, whoever fired it."""

from datetime import UTC, datetime, timedelta

import pytest

from rayferry.job.errors import RayferryError
from rayferry.submit.schedule.one_tick import Followed, follow, newest_tick
from rayferry.submit.schedule.records import Firing
from rayferry.submit.schedule.runs import Look
from rayferry.submit.transport import NotKnownError

TICK = datetime(2026, 3, 2, 2, 0, tzinfo=UTC)
NIGHTLY = {"cron": "0 2 * * *"}


class Clock:
    """A clock that jumps; `then` is called after each pause."""

    def __init__(self, start, then=lambda: None):
        self.time, self.then, self.num_pauses = start, then, 0

    def __call__(self):
        return self.time

    def pause(self, seconds):
        self.num_pauses += 1
        assert self.num_pauses < 500
        self.time += timedelta(seconds=seconds)
        self.then()


def followed(scheduler, clock, tick=TICK):
    return follow(scheduler, "nightly", tick, clock, clock.pause)


def kept(book, schedule, **changes):
    made = schedule(**NIGHTLY | changes)
    book.put_schedule(made, None)
    return made


@pytest.mark.parametrize(
    ("until", "tick"),
    [
        ((2026, 3, 2, 2, 0, 0), (2026, 3, 2, 2)),
        ((2026, 3, 2, 1, 59, 59), (2026, 3, 1, 2)),
        ((2026, 3, 2, 23, 0, 0), (2026, 3, 2, 2)),
    ],
)
def test_the_newest_tick_is_the_last_one_that_is_not_later(schedule, until, tick):
    assert newest_tick(schedule(**NIGHTLY), datetime(*until, tzinfo=UTC)) == datetime(*tick, tzinfo=UTC)


def test_a_tick_of_years_ago_is_found(schedule):
    made = schedule(cron="0 0 29 2 *")
    assert newest_tick(made, datetime(2027, 1, 1, tzinfo=UTC)) == datetime(2024, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize(
    ("state", "values", "code"),
    [
        ("succeeded", {"result": {"exit_code": 0}}, 0),
        ("failed", {"result": {"exit_code": 3}}, 3),
        ("failed", {"result": {"exit_code": 6}}, 6),
        ("stopped", {"result": {"exit_code": 4}}, 4),
    ],
)
def test_it_is_fired_and_ends_as_its_run_does(book, runs, scheduler, schedule, state, values, code):
    kept(book, schedule)
    clock = Clock(TICK, lambda: runs.end(state=state, **values))
    end = followed(scheduler, clock)
    assert (end.firing.state, end.exit_code, len(runs.started)) == (state, code, 1)


def test_what_another_scheduler_fired_is_followed_and_not_fired_again(book, runs, scheduler, schedule):
    kept(book, schedule)
    scheduler.tend("nightly", TICK)
    clock = Clock(TICK + timedelta(minutes=3), lambda: runs.end(result={"exit_code": 0}))
    assert followed(scheduler, clock).exit_code == 0
    assert len(runs.started) == 1


def test_a_run_that_is_over_is_told_at_once(book, runs, scheduler, schedule):
    kept(book, schedule)
    followed(scheduler, Clock(TICK, lambda: runs.end(result={"exit_code": 0})))
    later = Clock(TICK + timedelta(hours=12))
    assert (followed(scheduler, later).exit_code, later.num_pauses, len(runs.started)) == (0, 0, 1)


def test_a_run_that_failed_and_may_go_on_is_followed_over_its_attempts(book, runs, scheduler, schedule):
    kept(book, schedule)

    def then():
        is_last = len(runs.started) == 2
        runs.end(state="succeeded" if is_last else "failed", again=not is_last, result={"exit_code": int(not is_last)})

    end = followed(scheduler, Clock(TICK, then))
    assert (end.exit_code, end.firing.attempt, len(runs.started)) == (0, 2, 2)


def test_it_waits_for_jitter(book, runs, scheduler, schedule):
    kept(book, schedule, jitter="10m")
    clock = Clock(TICK, lambda: runs.started and runs.end(result={"exit_code": 0}))
    assert followed(scheduler, clock).exit_code == 0
    assert timedelta() < clock.time - TICK < timedelta(minutes=11)


def test_a_late_start_of_a_schedule_that_catches_nothing_up_has_no_run(book, runs, scheduler, schedule):
    kept(book, schedule)
    end = followed(scheduler, Clock(TICK + timedelta(minutes=11)))
    assert (end.firing, end.exit_code, runs.started) == (None, 0, [])
    assert end.reason == "2026-03-02T02:00:00Z was passed over, as catch_up (none) says"


def test_a_late_start_of_one_that_does_is_fired(book, runs, scheduler, schedule):
    kept(book, schedule, catch_up="latest")
    clock = Clock(TICK + timedelta(hours=3), lambda: runs.end(result={"exit_code": 0}))
    assert followed(scheduler, clock).exit_code == 0


def test_a_tick_whose_run_is_forbidden_by_the_one_before_is_skipped(book, runs, scheduler, schedule):
    kept(book, schedule)
    scheduler.tend("nightly", TICK)
    next_tick = TICK + timedelta(days=1)
    end = followed(scheduler, Clock(next_tick), next_tick)
    assert (end.firing.state, end.exit_code, len(runs.started)) == ("skipped", 0, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"paused": True}, "nightly is paused; to go on: rayferry schedule unpause nightly"),
        ({"since": "2026-03-02T02:00:00Z"}, "2026-03-02T02:00:00Z was before nightly was added, changed or unpaused"),
    ],
)
def test_a_tick_that_does_not_count_has_no_run(book, runs, scheduler, schedule, changes, reason):
    kept(book, schedule, **changes)
    end = followed(scheduler, Clock(TICK))
    assert (end.firing, runs.started) == (None, [])
    assert end.reason.startswith(reason)


def test_a_schedule_that_is_removed_meanwhile_ends_it(book, scheduler, schedule):
    kept(book, schedule, jitter="10m")
    end = followed(scheduler, Clock(TICK, lambda: book.remove_schedule("nightly")))
    assert end.reason == "nightly was removed"


def test_a_corrupt_store_ends_it_with_the_object_that_is(book, scheduler, schedule):
    kept(book, schedule, jitter="10m")

    def then():
        content, tag = book.store.get("schedules/nightly.json")
        book.store.put("schedules/nightly.json", content[:9], tag)

    with pytest.raises(RayferryError, match=r"schedules/nightly\.json: not valid"):
        followed(scheduler, Clock(TICK, then))


def test_a_job_that_cannot_be_made_is_a_failure(book, scheduler, schedule):
    kept(book, schedule, job={"model": "m", "input": {"uri": "s3://b/in/"}, "output": {"uri": "{{ nothing }}"}})
    end = followed(scheduler, Clock(TICK))
    assert (end.firing.state, end.exit_code) == ("refused", 1)


def test_a_run_that_was_stopped_before_it_told_anything_ends_as_stopped():
    assert Followed(Firing(schedule="nightly", scheduled_time="2026-03-02T02:00:00Z", state="stopped")).exit_code == 4


def test_a_run_of_which_nobody_tells_is_left_with_the_code_of_lost_contact(book, runs, scheduler, schedule):
    kept(book, schedule)
    clock = Clock(TICK, lambda: runs.jobs.update({runs.started[0]: Look("unknown", reason="nobody answers")}))
    with pytest.raises(NotKnownError, match="nobody answers") as caught:
        followed(scheduler, clock)
    assert caught.value.exit_code == 5
    assert "rayferry schedule give-up nightly" in str(caught.value)
