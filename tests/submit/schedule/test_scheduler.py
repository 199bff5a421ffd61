import json
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from rayferry.job.errors import SpecError
from rayferry.submit.config import NoClusterError
from rayferry.submit.schedule import adding, loop, telling
from rayferry.submit.schedule.records import Firing, changed
from rayferry.submit.schedule.runs import Look
from rayferry.submit.schedule.scheduler import MAX_TRIES, Scheduler
from rayferry.submit.transport import NotKnownError, UnreachableError

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


@pytest.mark.parametrize("how", ["failed", "lost", "refused"])
def test_on_failure_is_called_for_what_failed(book, scheduler, runs, schedule, calls, refusal, how):
    one = schedule(cron="0 * * * *", on_failure={"command": "tell"}, job=JOB | {"retry": {"max_attempts": 1}})
    book.put_schedule(one, None)
    if how == "refused":
        runs.trouble = [SpecError("no")]
    scheduler.tend("nightly", minute(60))
    if how == "failed":
        runs.end(state="failed")
    elif how == "lost":
        runs.jobs.clear()
    for seconds in (10, 20, 30):
        scheduler.tend("nightly", minute(60, seconds))
    assert [(hook.command, firing.state) for hook, firing in calls] == [("tell", how)]
    assert book.firing("nightly", minute(60)).value.on_failure.state == "done"


def test_on_failure_is_not_called_for_what_went_well_or_was_stopped(book, scheduler, runs, schedule, calls):
    book.put_schedule(schedule(on_failure={"command": "tell"}), None)
    for number, how in enumerate(("succeeded", "stopped"), 1):
        scheduler.tend("nightly", minute(number))
        runs.end(state=how)
        scheduler.tend("nightly", minute(number, 10))
        scheduler.tend("nightly", minute(number, 20))
        assert state(book, number) == how
    assert calls == []


def test_a_call_that_fails_is_made_again_and_given_up(book, runs, schedule, refusal):
    made = []

    def call(hook, firing):
        made.append(firing)
        raise refusal

    scheduler = Scheduler(book, runs, call=call, owner="one", say=print)
    book.put_schedule(schedule(cron="0 * * * *", on_failure={"command": "tell"}), None)
    runs.trouble = [SpecError("no")]
    for seconds in range(0, 200, 10):
        scheduler.tend("nightly", minute(60, seconds))
    hook = book.firing("nightly", minute(60)).value.on_failure
    assert (len(made), hook.state, hook.error) == (MAX_TRIES, "failed", "the cluster does not answer")


def test_commands_of_a_shared_store_are_not_run_unasked(book, runs, schedule, calls):
    scheduler = Scheduler(book, runs, call=lambda *given: calls.append(given), own_commands=False, say=print)
    book.put_schedule(schedule(on_failure={"command": "tell"}), None)
    runs.trouble = [SpecError("no")]
    for seconds in (0, 10, 20):
        scheduler.tend("nightly", minute(1, seconds))
    assert calls == []
    assert "--allow-commands" in book.firing("nightly", minute(1)).value.on_failure.error


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
    assert "it is the schedule 'nightly', and not 'other'" in book.progress("other").value.broken.error


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
