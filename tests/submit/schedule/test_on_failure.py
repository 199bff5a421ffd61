"""`on_failure`: when it is called, how often, and by whom."""

from datetime import timedelta

import pytest

from rayferry.job.errors import SpecError
from rayferry.submit.schedule.scheduler import MAX_TRIES, Scheduler

from .conftest import JOB, START


def minute(number, seconds=0):
    return START + timedelta(minutes=number, seconds=seconds)


def state(book, number):
    return book.firing("nightly", minute(number)).value.state


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


def test_calls_that_fail_are_made_with_growing_pauses_on_a_shared_store_too(book, runs, schedule, refusal):
    made = []

    def call(hook, firing):
        made.append(seconds)
        raise refusal

    scheduler = Scheduler(book, runs, call=call, own_commands=False, say=print)
    book.put_schedule(schedule(cron="0 * * * *", on_failure={"webhook": "https://example.com/"}), None)
    runs.trouble = [SpecError("no")]
    for seconds in range(200):
        scheduler.tend("nightly", minute(60, seconds))
    assert made == [1, 11, 31, 71, 151]
    assert book.firing("nightly", minute(60)).value.on_failure.state == "failed"


def leaves_commands(book, runs, calls, said):
    """A scheduler that may not run commands of the store."""
    return Scheduler(book, runs, call=lambda *given: calls.append(given), own_commands=False, say=said.append)


def test_a_command_of_a_shared_store_is_left_to_a_scheduler_that_may_run_it(book, runs, scheduler, schedule, calls):
    said, theirs = [], []
    one = leaves_commands(book, runs, theirs, said)
    book.put_schedule(schedule(cron="0 * * * *", on_failure={"command": "tell"}), None)
    runs.trouble = [SpecError("no")]
    for seconds in range(0, 600, 10):
        one.tend("nightly", minute(60, seconds))
    hook = book.firing("nightly", minute(60)).value.on_failure
    assert (theirs, hook.state, hook.tries) == ([], "due", 0)
    assert len([line for line in said if "--allow-commands" in line]) == 1
    scheduler.tend("nightly", minute(71))
    assert len(calls) == 1
    assert book.firing("nightly", minute(60)).value.on_failure.state == "done"


def test_a_command_that_nobody_may_run_is_given_up_after_a_day(book, runs, schedule, calls):
    one = leaves_commands(book, runs, calls, [])
    book.put_schedule(schedule(cron="0 12 * * *", on_failure={"command": "tell"}), None)
    runs.trouble = [SpecError("no")]
    for hours in (24, 25, 49):
        one.tend("nightly", minute(60 * hours))
    hook = book.firing("nightly", minute(60 * 24)).value.on_failure
    assert (calls, hook.state) == ([], "failed")
    assert "--allow-commands, and none came for a day" in hook.error
