import json
from datetime import timedelta

import pytest
import yaml

from rayferry.submit.schedule import loop
from rayferry.submit.schedule.runs import Look
from rayferry.submit.schedule.scheduler import MAX_TRIES, Scheduler

from .conftest import JOB, START


def minute(number, seconds=0):
    return START + timedelta(minutes=number, seconds=seconds)


def state(book, number, name="nightly"):
    return book.firing(name, minute(number)).value.state


def test_a_tick_is_claimed_submitted_and_its_end_written_down(book, scheduler, runs, schedule):
    book.put_schedule(schedule(), None)
    scheduler.tend("nightly", minute(1))
    firing = book.firing("nightly", minute(1)).value
    assert (firing.state, firing.owner, firing.address) == ("submitted", "one", "http://head:8265")
    assert firing.output_uri == "s3://bucket/out/2026-03-01T1201/"
    assert runs.started == [firing.submission_id]
    runs.end(result={"exit_code": 0})
    scheduler.tend("nightly", minute(1, 30))
    firing = book.firing("nightly", minute(1)).value
    assert (firing.state, firing.result, firing.ended_at) == ("succeeded", {"exit_code": 0}, "2026-03-01T12:01:30Z")
    scheduler.tend("nightly", minute(1, 40))
    assert book.progress("nightly").value.cursor == "20260301T120100Z"


def test_a_scheduler_that_died_before_the_submission_is_stood_in_for(book, scheduler, runs, schedule):
    book.put_schedule(schedule(), None)

    class Dies(type(runs)):
        def start(self, firing):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Scheduler(book, Dies(), owner="two", say=print).tend("nightly", minute(1))
    assert (state(book, 1), runs.started) == ("claimed", [])
    scheduler.tend("nightly", minute(1, 60))
    assert runs.started == []
    scheduler.tend("nightly", minute(3, 1))
    assert book.firing("nightly", minute(1)).value.owner == "one"
    assert "20260301T120100Z" in runs.started[0]


def test_an_attempt_that_the_cluster_spoilt_is_followed_by_another(book, scheduler, runs, schedule):
    book.put_schedule(schedule(cron="0 * * * *"), None)
    scheduler.tend("nightly", minute(60))
    first = runs.started[0]
    runs.end(state="failed", again=True, reason="the node died")
    scheduler.tend("nightly", minute(60, 20))
    assert state(book, 60) == "waiting"
    scheduler.tend("nightly", minute(60, 29))
    assert runs.started == [first]
    scheduler.tend("nightly", minute(60, 30))
    assert runs.started == [first, f"{first}-a2"]
    runs.end(state="failed", again=True, reason="again")
    scheduler.tend("nightly", minute(61))
    scheduler.tend("nightly", minute(62))
    runs.end(state="failed", again=True, reason="and again")
    scheduler.tend("nightly", minute(63))
    firing = book.firing("nightly", minute(60)).value
    assert (firing.state, firing.attempt, firing.reason) == ("failed", 3, "and again")


def test_what_the_job_spoilt_is_not_tried_again(book, scheduler, runs, schedule):
    book.put_schedule(schedule(), None)
    scheduler.tend("nightly", minute(1))
    runs.end(state="failed", reason="no such model")
    scheduler.tend("nightly", minute(1, 30))
    assert state(book, 1) == "failed"
    assert len(runs.started) == 1


def test_a_run_that_its_cluster_forgot_is_gone_on_with_and_lost_in_the_end(book, scheduler, runs, schedule):
    book.put_schedule(schedule(cron="0 * * * *", job=JOB | {"retry": {"max_attempts": 2}}), None)
    scheduler.tend("nightly", minute(60))
    runs.jobs.clear()
    scheduler.tend("nightly", minute(60, 10))
    scheduler.tend("nightly", minute(61))
    assert [name.endswith("-a2") for name in runs.started] == [False, True]
    runs.jobs.clear()
    scheduler.tend("nightly", minute(62))
    assert state(book, 60) == "lost"


def test_a_submission_that_fails_is_tried_again_and_given_up(book, scheduler, runs, schedule, refusal):
    book.put_schedule(schedule(cron="0 * * * *"), None)
    runs.trouble = [refusal] * MAX_TRIES
    scheduler.tend("nightly", minute(60))
    firing = book.firing("nightly", minute(60)).value
    assert (firing.state, firing.tries, firing.next_at) == ("waiting", 1, "2026-03-01T13:00:10Z")
    assert firing.reason == "the cluster does not answer"
    for number in range(61, 61 + MAX_TRIES):
        scheduler.tend("nightly", minute(number * 2))
    assert state(book, 60) == "refused"
    assert runs.started == []


def test_a_replaced_run_is_stopped_first_and_is_no_failure(book, scheduler, runs, schedule, calls):
    book.put_schedule(schedule(overlap="replace", on_failure={"command": "true"}), None)
    for seconds in (0, 60, 70, 80):
        scheduler.tend("nightly", minute(1, seconds))
    first, second = (book.firing("nightly", minute(number)).value for number in (1, 2))
    assert runs.stopped == [first.submission_id]
    assert (first.state, first.reason) == ("stopped", "replaced by 2026-03-01T12:02:00Z")
    assert second.state == "submitted"
    assert calls == []


def test_under_forbid_a_tick_of_a_run_that_goes_on_is_skipped(book, scheduler, runs, schedule):
    book.put_schedule(schedule(), None)
    scheduler.tend("nightly", minute(1))
    scheduler.tend("nightly", minute(2))
    firing = book.firing("nightly", minute(2)).value
    assert (firing.state, firing.reason) == ("skipped", f"{runs.started[0]} of an earlier tick is not over")


@pytest.fixture
def tracked(book, schedule, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(JOB))
    book.put_schedule(schedule(job_path=str(path), track=True), None)
    return path


def test_a_tracked_file_is_read_at_each_tick(book, scheduler, tracked):
    tracked.write_text(yaml.safe_dump(JOB | {"model": "org/newer"}))
    scheduler.tend("nightly", minute(1))
    assert book.firing("nightly", minute(1)).value.job["model"] == "org/newer"


def test_a_copy_stays_as_it_was_at_add(book, scheduler, schedule, tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB | {"model": "org/newer"}))
    book.put_schedule(schedule(job_path=str(tmp_path / "job.yaml")), None)
    scheduler.tend("nightly", minute(1))
    assert book.firing("nightly", minute(1)).value.job["model"] == "org/model"


def test_a_copy_that_was_changed_in_the_store_is_not_run(book, scheduler, runs, schedule):
    one = schedule()
    book.put_schedule(one.model_copy(update={"job": JOB | {"model": "org/other"}}), None)
    scheduler.tend("nightly", minute(1))
    assert (state(book, 1), runs.started) == ("refused", [])
    assert "not the one that was added" in book.progress("nightly").value.broken.error


def test_a_clock_that_was_set_back_is_told_once_and_fires_nothing(book, runs, schedule):
    said = []
    scheduler = Scheduler(book, runs, say=said.append)
    book.put_schedule(schedule(), None)
    for seconds in (0, 10):
        scheduler.tend("nightly", minute(10, seconds))
        runs.end()
    scheduler.tend("nightly", minute(10, 20))
    del said[:]
    for seconds in (0, 10):
        scheduler.tend("nightly", minute(5, seconds))
    assert len(runs.started) == 1
    assert len(said) == 1
    assert "the clock here is behind" in said[0]


@pytest.mark.parametrize("content", [None, "model: 3\n", "{", "- a\n"])
def test_a_tracked_file_that_is_no_job_any_more_breaks_its_schedule_alone(
    book, scheduler, runs, schedule, tracked, content
):
    book.put_schedule(schedule(name="other"), None)
    tracked.unlink() if content is None else tracked.write_text(content)
    loop.once(scheduler, lambda: minute(1))
    assert state(book, 1) == "refused"
    assert book.progress("nightly").value.broken.error
    assert state(book, 1, "other") == "submitted"
    tracked.write_text(yaml.safe_dump(JOB))
    scheduler.tend("nightly", minute(2))
    assert book.progress("nightly").value.broken is None
    assert state(book, 2) == "submitted"


@pytest.mark.parametrize("key", ["schedules/bad.json", "firings/bad/20260301T120100Z.json", "progress/bad.json"])
def test_a_corrupt_object_breaks_its_schedule_alone_until_it_is_put_right(book, scheduler, runs, schedule, key):
    book.put_schedule(schedule(name="bad"), None)
    book.put_schedule(schedule(name="good"), None)
    before = book.store.get(key)
    book.store.put(key, b"{", before[1] if before else None)
    loop.once(scheduler, lambda: minute(1))
    assert [name.rpartition("-2026")[0] for name in runs.started] == ["good"]
    content, tag = book.store.get(key)
    assert content == b"{"
    if key != "progress/bad.json":
        assert key in book.progress("bad").value.broken.error
    book.store.remove(key) if before is None else book.store.put(key, before[0], tag)
    loop.once(scheduler, lambda: minute(1, 30))
    assert book.progress("bad").value.broken is None
    assert state(book, 1, "bad") == "submitted"


@pytest.mark.parametrize("place", ["schedule", "firing", "progress"])
def test_an_odd_time_breaks_its_schedule_alone(book, scheduler, runs, schedule, place):
    for name in ("bad", "good"):
        book.put_schedule(schedule(name=name), None)
    loop.once(scheduler, lambda: minute(1))
    runs.end()
    key, field = {
        "schedule": ("schedules/bad.json", "since"),
        "firing": ("firings/bad/20260301T120100Z.json", "scheduled_time"),
        "progress": ("progress/bad.json", "cursor"),
    }[place]
    found = book.store.get(key) or (b"{}", None)
    book.store.put(key, json.dumps(json.loads(found[0]) | {field: "soon"}).encode(), found[1])
    loop.once(scheduler, lambda: minute(2))
    assert state(book, 1, "good") == "succeeded"
    assert scheduler.tend("bad", minute(3)) == 0


def test_once_goes_on_as_long_as_there_is_something_to_do(book, scheduler, runs, schedule):
    book.put_schedule(schedule(catch_up="all"), None)

    def start(firing):
        runs.started.append(firing.submission_id)
        runs.jobs[firing.submission_id] = Look("over", "succeeded")
        return "http://head:8265"

    runs.start = start
    loop.once(scheduler, lambda: minute(5))
    assert len(runs.started) == 5
    assert book.progress("nightly").value.cursor == "20260301T120500Z"


def test_what_the_store_keeps_has_a_schema_version(book, scheduler, schedule):
    book.put_schedule(schedule(), None)
    loop.once(scheduler, lambda: minute(3))
    keys = [key for prefix in ("schedules/", "firings/nightly/", "progress/") for key in book.store.keys(prefix)]
    assert len(keys) == 3
    assert {json.loads(book.store.get(key)[0])["schema_version"] for key in keys} == {1}
