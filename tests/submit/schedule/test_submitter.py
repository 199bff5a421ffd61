from pathlib import Path

import pytest

from rayferry.job.errors import SpecError
from rayferry.submit.config import NoClusterError
from rayferry.submit.schedule import adding, loop, telling
from rayferry.submit.schedule.records import Firing, changed
from rayferry.submit.schedule.runs import Look
from rayferry.submit.schedule.scheduler import Scheduler
from rayferry.submit.transport import NotKnownError, UnreachableError

from .conftest import JOB
from .test_scheduler import minute, state


def test_a_cluster_that_is_away_for_long_does_not_lose_a_tick_that_is_caught_up_on(book, scheduler, runs, schedule):
    book.put_schedule(schedule(cron="0 * * * *", catch_up="all"), None)
    runs.trouble = [UnreachableError("away")] * 30
    for seconds in range(0, 31 * 30, 30):
        scheduler.tend("nightly", minute(60, seconds))
    assert state(book, 60) == "submitted"


@pytest.mark.parametrize(("catch_up", "late", "end"), [("none", 71, "refused"), ("latest", 120, "skipped")])
def test_a_cluster_that_is_away_is_tried_as_long_as_catch_up_allows(
    book, scheduler, runs, schedule, catch_up, late, end
):
    book.put_schedule(schedule(cron="0 * * * *", catch_up=catch_up), None)
    runs.trouble = [NoClusterError("none")] * 100
    for number in range(60, late - 1):
        scheduler.tend("nightly", minute(number))
        assert state(book, 60) == "waiting"
    scheduler.tend("nightly", minute(late))
    assert state(book, 60) == end


def test_a_run_whose_answer_was_lost_is_looked_for_and_not_taken_for_refused(book, scheduler, runs, schedule):
    book.put_schedule(schedule(cron="0 * * * *"), None)
    runs.trouble = [NotKnownError("lost")]
    scheduler.tend("nightly", minute(60))
    firing = book.firing("nightly", minute(60)).value
    assert (firing.state, firing.submitted_at, firing.address) == ("submitted", None, "http://head:8265")
    runs.jobs[firing.submission_id] = Look("running")
    scheduler.tend("nightly", minute(60, 10))
    firing = book.firing("nightly", minute(60)).value
    assert (firing.state, firing.reason, firing.submitted_at) == ("submitted", None, "2026-03-01T13:00:10Z")


def test_a_run_whose_answer_was_lost_is_submitted_anew_if_it_never_came(book, scheduler, runs, schedule):
    book.put_schedule(schedule(cron="0 * * * *", job=JOB | {"retry": {"max_attempts": 1}}), None)
    runs.trouble = [NotKnownError("lost")]
    for seconds in (0, 10, 20):
        scheduler.tend("nightly", minute(60, seconds))
    firing = book.firing("nightly", minute(60)).value
    assert (firing.state, firing.attempt, runs.started) == ("submitted", 1, [firing.submission_id])


def test_the_cluster_of_a_run_is_written_down_before_it_is_submitted(book, runs, schedule):
    book.put_schedule(schedule(address="http://a:8265"), None)
    seen = []
    runs.start = lambda firing: seen.append(book.firing("nightly", minute(1)).value.address) or firing.address
    Scheduler(book, runs, say=print).tend("nightly", minute(1))
    assert seen == ["http://a:8265"]


def test_why_it_is_not_known_how_a_run_stands_is_told_once(book, runs, schedule):
    said = []
    scheduler = Scheduler(book, runs, say=said.append)
    book.put_schedule(schedule(cron="0 * * * *"), None)
    scheduler.tend("nightly", minute(60))
    runs.jobs[runs.started[0]] = Look("unknown", reason="nobody answers")
    del said[:]
    for seconds in (10, 20, 30):
        scheduler.tend("nightly", minute(60, seconds))
    assert (len(said), "nobody answers" in said[0]) == (1, True)
    assert book.firing("nightly", minute(60)).value.reason == "nobody answers"
    runs.jobs[runs.started[0]] = Look("running")
    scheduler.tend("nightly", minute(60, 40))
    assert book.firing("nightly", minute(60)).value.reason is None


def test_a_pause_between_decision_and_claim_holds(book, runs, schedule):
    entry = book.put_schedule(schedule(), None)

    class Pauses(type(runs)):
        def place(self, firing, named):
            book.put_schedule(entry.value.model_copy(update={"paused": True}), entry.tag)
            return super().place(firing, named)

    paused = Pauses()
    Scheduler(book, paused, say=print).tend("nightly", minute(1))
    assert (state(book, 1), paused.started) == ("skipped", [])


def test_a_run_that_another_scheduler_started_meanwhile_is_waited_for(book, runs, schedule):
    book.put_schedule(schedule(catch_up="all"), None)
    other = Firing(schedule="nightly", scheduled_time="2026-03-01T12:02:00Z", state="submitted", submission_id="other")

    class Slow(type(runs)):
        def place(self, firing, named):
            book.put_firing(other, None)
            return super().place(firing, named)

    slow = Slow()
    Scheduler(book, slow, say=print).tend("nightly", minute(1))
    assert (state(book, 1), slow.started) == ("waiting", [])


def test_once_ends_if_a_run_cannot_be_stopped(book, scheduler, runs, schedule, refusal):
    book.put_schedule(schedule(overlap="replace"), None)
    scheduler.tend("nightly", minute(1))
    asked = []

    def stop(firing):
        asked.append(firing)
        raise refusal

    runs.stop = stop
    loop.once(scheduler, lambda: minute(2))
    assert len(asked) <= 2


def test_a_run_whose_job_is_not_valid_is_followed_to_its_end(book, scheduler, runs, schedule):
    book.put_schedule(schedule(), None)
    scheduler.tend("nightly", minute(1))
    entry = book.firing("nightly", minute(1))
    book.put_firing(changed(entry.value, job={"model": 3}), entry.tag)
    runs.end(state="failed", again=True, reason="the node died")
    scheduler.tend("nightly", minute(1, 10))
    assert state(book, 1) == "failed"


def test_a_schedule_under_another_name_is_corrupt_and_fires_nothing(book, scheduler, runs, schedule):
    book.put_schedule(schedule(), None)
    book.store.put("schedules/other.json", book.store.get("schedules/nightly.json")[0], None)
    scheduler.tend("other", minute(1))
    assert runs.started == []
    assert "it is of 'nightly'" in book.progress("other").value.broken.error


def test_an_object_that_cannot_be_read_does_not_hold_up_the_others(book, scheduler, runs, schedule):
    for name in ("a-bad", "b-good"):
        book.put_schedule(schedule(name=name), None)
    (Path(book.store.uri) / "progress" / "a-bad.json").mkdir(parents=True)
    loop.once(scheduler, lambda: minute(1))
    assert state(book, 1, "b-good") == "submitted"
    assert telling.overview(book, "a-bad")["state"] == "broken"


def test_a_run_that_was_given_up_lets_its_schedule_go_on(book, scheduler, runs, schedule):
    book.put_schedule(schedule(cron="0 * * * *"), None)
    scheduler.tend("nightly", minute(60))
    runs.jobs[runs.started[0]] = Look("unknown", reason="nobody answers")
    scheduler.tend("nightly", minute(120))
    assert adding.give_up(book, "nightly", runs.started[0], minute(120)).state == "lost"
    scheduler.tend("nightly", minute(120))
    assert len(runs.started) == 2


def test_a_trigger_that_would_take_the_output_of_a_tick_is_refused(book, scheduler, schedule):
    daily = schedule(
        cron="0 20 * * *", job=JOB | {"output": {"uri": "s3://bucket/{{ scheduled_time | date('%Y-%m-%d') }}/"}}
    )
    with pytest.raises(SpecError, match=r"the output of the tick of 2026-03-01T20:00:00\+00:00"):
        adding.trigger_now(scheduler, daily, minute(5))


def test_a_trigger_whose_answer_was_lost_is_no_refusal(book, scheduler, runs, schedule):
    runs.trouble = [NotKnownError("lost")]
    entry = book.put_schedule(schedule(cron="0 0 1 1 *"), None)
    firing = adding.trigger_now(scheduler, entry.value, minute(5, 7))
    assert (firing.state, firing.submitted_at, firing.reason) == ("submitted", None, "lost")
