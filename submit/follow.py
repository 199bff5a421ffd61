"""Follows a job to its true end: the status decides, the log stream only shows."""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from shlex import quote
from typing import Protocol

from rayferry.job.errors import RayferryError
from rayferry.job.log import MARK
from rayferry.submit.client import JobInfo
from rayferry.submit.pauses import growing_pauses
from rayferry.submit.transport import ClusterError, NoSuchJobError

_POLL_S = 1.0
_FIRST_POLL_S = 0.2
_LOST_AFTER_S = 120.0
_LOG_TRIES = 3
# The whole log beside the stream: how often, in what share of the time, and up to which length.
_WHOLE_EVERY_S = 0.4
_WHOLE_SHARE = 4
_MAX_WHOLE = 512 << 10


class LostContactError(RayferryError):
    """The cluster stopped answering, and the job's end is not known."""

    exit_code = 5


class WaitedError(RayferryError):
    """The job goes on, but was to be followed no longer."""

    exit_code = 6


class Followed(Protocol):
    """What `follow` needs of a cluster."""

    def command(self, words: str, /) -> str:
        """A command about it."""

    def info(self, submission_id: str) -> JobInfo:
        """The job."""

    def logs(self, submission_id: str) -> str:
        """Its whole log."""

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """Its log as it comes, from the first byte."""


class Lines:
    """Makes lines of pieces of a log; counts characters, so that a stream begun again shows nothing twice.

    Attributes:
        show: called with each line; may be changed on the way.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show = show
        self._shown = 0
        self._rest = ""

    def feed(self, text: str, start: int) -> None:
        """Takes `text`, which begins at character `start` of the log; one that leaves a gap is left alone."""
        fresh = text[max(0, self._shown - start) :]
        if start > self._shown or not fresh:
            return
        self._shown += len(fresh)
        *whole, self._rest = (self._rest + fresh).split("\n")
        for line in whole:
            self.show(line)

    def close(self) -> None:
        """Shows a last line that no newline ended."""
        if self._rest:
            self.show(self._rest)
            self._rest = ""


def every_line(show: Callable[[str], None]) -> Callable[[str], None]:
    """Lets every line through."""
    return show


def our_lines(show: Callable[[str], None]) -> Callable[[str], None]:
    """Lets only Rayferry's own lines through, without their mark."""

    def filtered(line: str) -> None:
        if line.startswith(MARK):
            show(line.removeprefix(MARK))

    return filtered


def follow(  # noqa: PLR0913  # each of them a choice of the caller's
    cluster: Followed,
    submission_id: str,
    show: Callable[[str], None],
    on_status: Callable[[JobInfo], None] = lambda _info: None,
    *,
    only: Callable[[Callable[[str], None]], Callable[[str], None]] = every_line,
    lost_after_s: float = _LOST_AFTER_S,
    timeout_s: float | None = None,
    tail: int | None = None,
) -> JobInfo:
    """Shows the job's log until the job is over.

    The status alone decides when that is. The stream is opened again as often as it ends while the job goes on; one
    that brings nothing new is made up for by the whole log, and so is what was lost at the end. While the log is short,
    the whole of it is asked for beside the stream, which is late. Questions that are not answered are asked again with
    growing pauses.

    Args:
        cluster: where the job is.
        submission_id: which job.
        show: called with each line, once.
        on_status: called at the first status, at every new one, and when Ray says something else of a job that waits.
        only: which lines are shown, and how: `every_line` or `our_lines`.
        lost_after_s: seconds without any answer after which contact is lost.
        timeout_s: seconds after which to leave a job that is not over; None: never.
        tail: lines of those that are there already to be shown; None: all.

    Returns:
        The job in its last state.

    Raises:
        LostContactError: the cluster did not answer for that long, or has forgotten the job.
        NoSuchJobError: the cluster answers and has no such job.
        WaitedError: the job is not over after `timeout_s`.
    """
    lines = Lines(only(show))
    if tail is not None:
        last = deque[str](maxlen=tail)
        lines.show = only(last.append)
        with contextlib.suppress(ClusterError):  # the stream brings it
            lines.feed(cluster.logs(submission_id), 0)
        for line in last:
            show(line)
        lines.show = only(show)
    pieces: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    over = threading.Event()
    threads = [
        threading.Thread(target=target, args=(cluster, submission_id, pieces, over), daemon=True)
        for target in (_stream, _hasten)
    ]
    contact = _Contact(cluster, submission_id, lost_after_s)
    end = time.monotonic() + timeout_s if timeout_s is not None else None
    told: tuple[str, str] = ("", "")
    pauses = growing_pauses(_FIRST_POLL_S)
    try:
        while True:
            info = contact.ask()
            if info is not None:
                pauses = growing_pauses(_FIRST_POLL_S if info.status == "PENDING" else _POLL_S)
                state = (info.status, info.message if info.status == "PENDING" else "")
                if state != told:
                    told = state
                    on_status(info)
                if info.status == "RUNNING":
                    _start(threads)
                if info.is_over:
                    break
            if end is not None and time.monotonic() >= end:
                go_on = cluster.command(f"logs -f {quote(submission_id)}")
                msg = f"{submission_id} is not over after {timeout_s:g} s; go on with: {go_on}"
                raise WaitedError(msg)
            _drain(pieces, lines, next(pauses))
    finally:
        over.set()
    while not pieces.empty():
        lines.feed(*pieces.get())
    _finish(cluster, submission_id, lines)
    return info


def _start(threads: list[threading.Thread]) -> None:
    while threads:
        threads.pop().start()


class _Contact:
    """Asks for the job's state, and knows when to give up."""

    def __init__(self, cluster: Followed, submission_id: str, lost_after_s: float) -> None:
        self._cluster = cluster
        self._submission_id = submission_id
        self._lost_after_s = lost_after_s
        self._answered = time.monotonic()
        self._known = False

    def ask(self) -> JobInfo | None:
        """The job, or None if the cluster does not tell just now; see `follow` for what it raises."""
        name = self._submission_id
        try:
            info = self._cluster.info(name)
        except NoSuchJobError as error:
            if not self._known:
                raise
            msg = f"{name}: the cluster was restarted and has forgotten the job; how it ended is not known"
            raise LostContactError(msg) from error
        except ClusterError as error:  # a refusal too: the job may well go on
            if time.monotonic() - self._answered > self._lost_after_s:
                go_on = self._cluster.command(f"logs -f {quote(name)}")
                msg = f"lost contact with {name}: {error}; go on with: {go_on}"
                raise LostContactError(msg) from error
            return None
        self._answered, self._known = time.monotonic(), True
        return info


def _finish(cluster: Followed, submission_id: str, lines: Lines) -> None:
    for _ in range(_LOG_TRIES):  # a log that cannot be had does not change how the job ended
        with contextlib.suppress(ClusterError):
            lines.feed(cluster.logs(submission_id), 0)
            break
        time.sleep(_POLL_S)
    lines.close()


def _drain(pieces: "queue.SimpleQueue[tuple[str, int]]", lines: Lines, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            lines.feed(*pieces.get(timeout=left))


def _stream(
    cluster: Followed, submission_id: str, pieces: "queue.SimpleQueue[tuple[str, int]]", over: threading.Event
) -> None:
    # asyncio and Ray's client report a connection cut at the end as errors; here it is what is expected
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    async def once(seen: int) -> int:
        at = 0
        with contextlib.suppress(Exception, asyncio.CancelledError):  # whatever ended the stream, it is opened again
            async for text in cluster.tail(submission_id):
                pieces.put((text, at))
                at += len(text)
                if over.is_set():
                    break
        return max(at, seen)

    seen, pauses = 0, growing_pauses(_POLL_S)
    while not over.is_set():
        before, seen = seen, asyncio.run(once(seen))
        if seen > before:
            pauses = growing_pauses(_POLL_S)
        else:  # such as one that ends at a bad byte, each time
            with contextlib.suppress(ClusterError):
                pieces.put((_whole_lines(cluster.logs(submission_id)), 0))
        over.wait(next(pauses))


def _hasten(
    cluster: Followed, submission_id: str, pieces: "queue.SimpleQueue[tuple[str, int]]", over: threading.Event
) -> None:
    """Brings lines before the stream does: that one holds each back for one to two seconds.

    The state API's own stream (`/api/v0/logs/stream`) is quicker, but a dashboard does not end what nobody reads any
    more, and with a hundred such left behind it answers no question on nodes or logs again (seen on Ray 2.60).
    Source: `file_tail_iterator` sleeps a second at the file's end, and then gives what it had read (Ray 2.60).
    """
    seen, pause = 0, _WHOLE_EVERY_S
    while not over.wait(pause) and seen < _MAX_WHOLE:
        start = time.monotonic()
        with contextlib.suppress(ClusterError):  # the stream brings it
            log = cluster.logs(submission_id)
            if len(log) > seen:
                seen = len(log)
                pieces.put((_whole_lines(log), 0))
        pause = max(_WHOLE_EVERY_S, _WHOLE_SHARE * (time.monotonic() - start))


def _whole_lines(log: str) -> str:
    """Without the beginning of a line, which may have half a character at its end."""
    return log[: log.rfind("\n") + 1]
