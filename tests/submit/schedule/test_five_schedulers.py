"""Five schedulers on one S3 store, which are killed between any two of their steps: each tick is fired once."""

import random
import threading
from collections import Counter
from datetime import timedelta

import pytest

from rayferry.submit.schedule.book import Book
from rayferry.submit.schedule.runs import Look
from rayferry.submit.schedule.scheduler import Scheduler
from rayferry.submit.schedule.store import open_store

from .conftest import START

NUM_SCHEDULERS = 5
KILLED = 0.02  # of all steps
STEPS_A_TICK = 25
MOST_STEPS = 100_000


class Killed(BaseException):
    """The scheduler dies here. No `except Exception` sees it."""


class Actor:
    """One scheduler after another in a thread of its own, which makes a step only when it is told to."""

    def __init__(self, world, number):
        self.world, self.number, self.lives = world, number, 0
        self.may_go, self.stands = threading.Semaphore(0), threading.Semaphore(0)
        self.dies = False
        threading.Thread(target=self._live, daemon=True).start()
        self.stands.acquire()

    def move(self, *, dies):
        """Lets it make one step, or die before it."""
        self.dies = dies
        self.may_go.release()
        assert self.stands.acquire(timeout=30)
        if self.world.error is not None:
            raise self.world.error

    def step(self):
        self.stands.release()
        self.may_go.acquire()
        if self.dies:
            raise Killed

    def _live(self):
        try:
            while not self.world.is_over:
                self.lives += 1
                self._one_life()
        except Exception as error:  # noqa: BLE001  # the test fails of it
            self.world.error = error
        self.stands.release()

    def _one_life(self):
        owner = f"{self.number}.{self.lives}"
        book = Book(Stepping(self.world.store, self.step))
        scheduler = Scheduler(book, Jobs(self.world, self.step), owner=owner, say=self.world.said.append)
        try:
            while not self.world.is_over:
                self.step()
                scheduler.tend("nightly", self.world.now)
        except Killed:
            pass


class Stepping:
    """A store each use of which is a step."""

    def __init__(self, store, step):
        self.uri, self._store, self._step = store.uri, store, step

    def __getattr__(self, name):
        def use(*args):
            self._step()
            found = getattr(self._store, name)(*args)
            found = list(found) if name == "keys" else found
            if name == "put":
                self._step()  # dies with the write done and its answer not seen
            return found

        return use


class Jobs:
    """A cluster that refuses a second job of one id, as Ray does."""

    def __init__(self, world, step):
        self._world, self._step = world, step

    def place(self, firing, named):
        self._step()
        return {"address": "http://head:8265"}

    def start(self, firing):
        self._step()
        world, name = self._world, firing.latest_submission_id
        world.asked[name] += 1
        if name not in world.jobs:
            world.jobs[name] = world.now + timedelta(seconds=world.random.randint(5, world.longest_s))
            world.started.append(firing.tick)
            running = [job for job, end in world.jobs.items() if end > world.now]
            world.most_at_once = max(world.most_at_once, len(running))
        self._step()
        return "http://head:8265"

    def look(self, firing):
        self._step()
        is_over = self._world.jobs[firing.latest_submission_id] <= self._world.now
        return Look("over", "succeeded") if is_over else Look("running")

    def stop(self, firing):
        raise AssertionError(firing)


class World:
    """What the schedulers share: the store, the clock, the cluster.

    Attributes:
        jobs: when each job ends, by its submission id.
        started: the ticks whose jobs were started, in that order.
        asked: how often each job was to be started.
    """

    def __init__(self, store, seed):
        self.store, self.random = store, random.Random(seed)
        self.now, self.jobs, self.started, self.asked, self.said = START, {}, [], Counter(), []
        self.error, self.is_over = None, False
        self.num_kills, self.most_at_once, self.longest_s = 0, 0, 0


def play(store, schedule, *, seed, num_ticks, overlap, longest_s):
    """Lets the schedulers work until so many ticks are settled; gives what happened, and the store."""
    world, book = World(store, seed), Book(store)
    world.longest_s = longest_s
    book.put_schedule(schedule(overlap=overlap, catch_up="all"), None)
    actors = [Actor(world, number) for number in range(NUM_SCHEDULERS)]
    try:
        for number in range(MOST_STEPS):
            dies = world.random.random() < KILLED
            world.num_kills += dies
            world.random.choice(actors).move(dies=dies)
            world.now += timedelta(seconds=60 / STEPS_A_TICK)
            if number % 200 == 0 and len(world.started) >= num_ticks and _is_done(book, num_ticks):
                return world, book  # the clock goes on, and a few more ticks with it
        raise AssertionError(f"not done after {MOST_STEPS} steps: {world.said[-20:]}")
    finally:
        world.is_over = True
        for actor in actors:
            actor.may_go.release()


def _is_done(book, num_ticks):
    return all(book.firing("nightly", tick).value.is_settled for tick in book.ticks("nightly")[:num_ticks])


def check(world, book, num_ticks):
    """Each tick has one job, was not lost, and its end was written down."""
    ticks = [START + timedelta(minutes=number) for number in range(1, num_ticks + 1)]
    assert set(ticks) <= set(world.started)
    assert max(Counter(world.started).values()) == 1
    firings = [book.firing("nightly", tick).value for tick in ticks]
    assert {firing.state for firing in firings} == {"succeeded"}
    assert {firing.submission_id for firing in firings} <= set(world.jobs)
    # and the kills came where it matters: after a job was started, and before that was written down
    assert [name for name, times in world.asked.items() if times > 1]
    assert any("submitted" in line for line in world.said)


@pytest.mark.parametrize(("num_ticks", "least_kills"), [(30, 5), pytest.param(200, 50, marks=pytest.mark.slow)])
def test_each_tick_is_fired_once_and_none_is_lost(bucket_uri, schedule, num_ticks, least_kills):
    store = open_store(bucket_uri)
    world, book = play(store, schedule, seed=1, num_ticks=num_ticks, overlap="allow", longest_s=60)
    check(world, book, num_ticks)
    assert world.num_kills > least_kills


def test_under_forbid_they_wait_for_each_other_and_none_is_lost(tmp_path, schedule):
    world, book = play(
        open_store(str(tmp_path / "store")), schedule, seed=2, num_ticks=40, overlap="forbid", longest_s=90
    )
    check(world, book, 40)
    assert world.most_at_once == 1
