import threading

import pytest

from rayferry.submit import s3
from rayferry.submit.schedule import loop
from rayferry.submit.schedule.book import Book
from rayferry.submit.schedule.scheduler import Scheduler

GUARD_S = 20.0


@pytest.fixture
def forever():
    """Lets a scheduler go on in a thread of its own until the test is over."""
    over, threads = threading.Event(), []

    def start(scheduler):
        threads.append(threading.Thread(target=loop.forever, args=[scheduler, 0.01, over]))
        threads[-1].start()

    yield start
    over.set()
    for thread in threads:
        thread.join(GUARD_S)
        assert not thread.is_alive()


def test_a_schedule_does_not_wait_for_the_cluster_of_another(book, runs, schedule, forever):
    """The first one's cluster hangs; its tick and the other's have been due for long."""
    fired, hangs = threading.Event(), threading.Event()
    start = runs.start

    def one_hangs(firing):
        if firing.schedule == "a-hangs":
            hangs.wait(GUARD_S)
        else:
            fired.set()
        return start(firing)

    runs.start = one_hangs
    for name in ("a-hangs", "b-goes-on"):
        book.put_schedule(schedule(name=name, catch_up="latest"), None)
    forever(Scheduler(book, runs, say=print))
    assert fired.wait(GUARD_S)
    hangs.set()


def test_a_store_that_goes_away_is_tried_again_and_said_once(book, runs, schedule, forever, capsys):
    class Away:
        """A store that fails some times."""

        uri, left = book.store.uri, 20

        def __getattr__(self, name):
            if self.left > 0:
                self.left -= 1
                raise s3.StorageError("the store is away")
            return getattr(book.store, name)

    fired = threading.Event()
    start = runs.start
    runs.start = lambda firing: (start(firing), fired.set())[0]
    book.put_schedule(schedule(catch_up="latest"), None)
    forever(Scheduler(Book(Away()), runs, say=print))
    assert fired.wait(GUARD_S)
    said = capsys.readouterr().err
    assert said.count("the store is away; trying again") == 1
    assert "the store can be used again" in said


def test_a_defect_in_one_schedule_does_not_end_the_others(book, runs, schedule, forever, capsys):
    fired = threading.Event()
    look = runs.look

    def defect(firing):
        if firing.schedule == "a-bad":
            raise ZeroDivisionError("a defect")
        fired.set()
        return look(firing)

    runs.look = defect
    for name in ("a-bad", "b-good"):
        book.put_schedule(schedule(name=name, catch_up="latest"), None)
    forever(Scheduler(book, runs, say=print))
    assert fired.wait(GUARD_S)
