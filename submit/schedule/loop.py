"""How a scheduler spends its time: round after round until it is told to end, or once."""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime

from rayferry.job.errors import RayferryError
from rayferry.submit import report, s3
from rayferry.submit.schedule.scheduler import Scheduler

EVERY_S = 10.0
_THREADS = 8
_MAX_PASSES = 1000
_LAST_S = 20.0  # for what is going on when the scheduler is to end
_MARGIN_S = 0.05


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def once(scheduler: Scheduler, clock: Callable[[], datetime] = now) -> None:
    """Fires what is due, and writes down what has ended; waits for no run.

    Raises:
        StorageError: the store cannot be used.
    """
    for name in scheduler.book.names():
        for _ in range(_MAX_PASSES):  # a run that is over makes room for the next
            try:
                if not scheduler.tend(name, clock()):
                    break
            except s3.StorageError as error:  # it may be of one object alone
                report.note(f"{name}: {error}")
                break


def forever(scheduler: Scheduler, every_s: float = EVERY_S, over: threading.Event | None = None) -> None:
    """Goes on until it is interrupted, or `over` is set. One schedule does not wait for another.

    A store that cannot be used is tried again.
    """
    over = over or threading.Event()
    busy: dict[str, Future[int]] = {}
    trouble = ""
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="rayferry-schedule")
    try:
        while not over.is_set():
            said = _results(busy)
            try:
                for name in scheduler.book.names():
                    if name not in busy:
                        busy[name] = pool.submit(scheduler.tend, name, now())
            except s3.StorageError as error:
                said = str(error)
            if said != trouble:
                trouble = said
                report.note(f"{said}; trying again every {every_s:g} s" if said else "the store can be used again")
            over.wait(min(every_s, 60 - time.time() % 60 + _MARGIN_S))  # ticks are whole minutes
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _LAST_S
        while any(not one.done() for one in busy.values()) and time.monotonic() < deadline:
            time.sleep(_MARGIN_S)


def until_interrupted(scheduler: Scheduler, every_s: float) -> None:
    """The same for a command: SIGTERM and Ctrl-C end it well, and what it submitted goes on."""
    try:
        report.note(f"scheduler {scheduler.owner} on {scheduler.book.store.uri}, every {every_s:g} s; Ctrl-C ends it")
        forever(scheduler, every_s)
    except KeyboardInterrupt:
        report.note("ended; what it submitted goes on, and the next scheduler writes down what came of it")
    sys.stdout.flush()
    os._exit(0)  # a submission that hangs must not keep the process: what it claimed is taken over


def _results(busy: dict[str, "Future[int]"]) -> str:
    """Takes those out that are done; gives what was wrong with the store, or ""."""
    said = ""
    for name, one in list(busy.items()):
        if not one.done():
            continue
        del busy[name]
        error = one.exception()
        if isinstance(error, s3.StorageError):
            said = str(error)
        elif isinstance(error, RayferryError):
            report.note(f"{name}: {error}")
        elif error is not None:
            report.note(f"{name}: {type(error).__name__}: {error}; tried again")
    return said
