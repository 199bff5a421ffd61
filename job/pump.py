"""Keeps one engine busy: many batches in flight at once, none waiting for another (continuous batching)."""

import gc
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from rayferry.job.budget import Budget
from rayferry.job.calls import Call
from rayferry.job.errors import EngineError, without_frames
from rayferry.job.line import Line
from rayferry.job.rows import RowError
from rayferry.job.tally import Tally

_LOOK_EVERY_S = 1.0
_GATHER_S, _GATHER_MOST_S = 0.3, 1.0  # Ray Data hands over some forty blocks a second
_GC_THRESHOLDS = (10_000, 20, 100)  # a look at all that is new since the start every twenty million objects


class RefusedError(Exception):
    """The engine will not take this request: too long, no prompt, a template that fails.

    Its text is the stage at which it failed, its cause says why.
    """


@dataclass(frozen=True)
class Settled:
    """What an engine that takes requests in one go has for one of them.

    Attributes:
        request_id: the request's.
        outcome: vLLM's output, or the `RefusedError` with which it was refused late.
    """

    request_id: str
    outcome: Any
    finished: bool = True


class Engine(Protocol):
    """What the pump needs of an engine. Anything but `RefusedError` that it raises means that it is dead.

    It may have three attributes more: `room`, the calls that it can use at once; `cache_tokens`, those that its KV
    cache holds; and `tokens_of(call)`, the most tokens that a call may generate. Without them it gets all as it comes.
    """

    def add(self, call: Call) -> str:
        """Queues a request and gives its id.

        Raises:
            RefusedError: this request can never run; the others are not touched.
        """

    def step(self) -> list[Any]:
        """Runs one iteration; gives the outputs that it brought, each with `request_id` and `finished`.

        They are vLLM's own, or `Settled`.
        """

    def is_busy(self) -> bool:
        """True while `step` has work."""

    def abort(self, request_id: str) -> None:
        """Drops a request; no output of it comes any more."""


class _Batch:
    """Calls handed over together; its future is done when the last of them is."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.outcomes: list[Any] = [None] * len(calls)
        self.left = len(calls)
        self.future: Future[list[Any]] = Future()
        self.future.set_running_or_notify_cancel()  # a caller that gives up must not make `settle` fail

    def settle(self, index: int, outcome: Any) -> bool:
        """Keeps what a call came to; True for the last one."""
        self.outcomes[index] = outcome
        self.left -= 1
        if self.left == 0:
            self.future.set_result(self.outcomes)
        return self.left == 0


class Pump:
    """Owns the thread that steps the engine. `submit` may be called from any thread, any number of times.

    `tally` is what it has done.

    An engine is not safe for use from several threads, so requests pass through a queue. If `step` raises, the
    engine is taken for dead: every batch, waiting and later, fails with `EngineError`. So it is if it does not return.
    """

    def __init__(
        self,
        engine: Engine,
        timeout_s: float | None = None,
        request_timeout_s: float | None = None,
        processes: Sequence[BaseProcess] = (),
        *,
        all_here: bool = False,
    ) -> None:
        """Starts the thread.

        Args:
            engine: whom to feed.
            timeout_s: most time for the engine to return from one call.
            request_timeout_s: most time for one request, from when the engine has it.
            processes: what the engine runs in; vLLM waits for ever for one that was killed.
            all_here: all calls that will come are handed over at once; see `Line`.
        """
        self._engine = engine
        self._timeout_s = timeout_s
        self._processes = processes
        self._request_timeout_s = request_timeout_s
        self._added: deque[tuple[float, str]] = deque()  # in order; only where requests have a timeout
        self._called_at: float | None = None
        self._gather_until: float | None = None
        self._incoming: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self.tally = Tally()
        room = getattr(engine, "room", None)  # what waits here, and not with the engine, can be put in order
        self._line: Line[_Batch] = Line(getattr(engine, "tokens_of", None), room or 0, all_here=all_here)
        self._budget = Budget(room, getattr(engine, "cache_tokens", None), self.tally) if room else None
        self._running: dict[str, tuple[_Batch, int]] = {}
        self._open: set[_Batch] = set()
        self._dead: EngineError | None = None
        self._closing = False
        self._lock = threading.Lock()
        # What is loaded by now stays, and rows that are under way are no garbage: looking through both again and again,
        # Python's collector took most of a replica's time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        self._thread = threading.Thread(target=self._run, name="rayferry-pump", daemon=True)
        self._thread.start()
        if timeout_s is not None or processes:
            threading.Thread(target=self._watch, name="rayferry-watchdog", daemon=True).start()

    def submit(self, calls: Sequence[Call]) -> "Future[list[Any]]":
        """Hands a batch over and returns at once.

        Returns:
            A future of one outcome per call, in order: the engine's final output, the `RefusedError` with which it
            refused the call, or the `RowError` of one that took too long.

        Raises:
            EngineError: (by the future) the engine died.
        """
        batch = _Batch(calls)
        with self._lock:
            if self._dead is not None:
                batch.future.set_exception(self._dead)
            elif not calls:
                batch.future.set_result([])
            else:
                self._open.add(batch)
                self._incoming.put(batch)
        return batch.future

    def close(self) -> None:
        """Ends the thread once the engine has nothing left to do."""
        self._incoming.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._admit():
                self._called_at = time.monotonic()
                outputs = self._engine.step()
                self._called_at = None
                for output in outputs:
                    if output.finished:
                        batch, index = self._over(output.request_id)
                        outcome = output.outcome if type(output) is Settled else output
                        self.tally.add(outcome)
                        self._settle(batch, index, outcome)
                self._drop_late()
        except BaseException as error:  # noqa: BLE001  # whatever it is, nobody may be left waiting
            self._fail(error)

    def _admit(self) -> bool:
        """Gives the engine what it has room for; sleeps while there is nothing to do. False: closed."""
        while True:
            self._receive()
            self._line.watch(len(self._running))
            while self._line:
                one = self._line.next()
                whole = self._line.is_by_length
                if self._budget and not self._budget.has_room(one.num_chars, one.tokens, whole=whole):
                    break
                self._line.drop()
                self._called_at = time.monotonic()
                try:
                    name = self._engine.add(one.call)
                    self._running[name] = (one.owner, one.at)
                    if self._budget:
                        self._budget.reserve(name, one.num_chars, one.tokens)
                    if self._request_timeout_s is not None:
                        self._added.append((time.monotonic(), name))
                except RefusedError as refusal:
                    self._settle(one.owner, one.at, refusal)
                self._called_at = None
            if self._engine.is_busy():
                return True
            if self._closing:
                return False

    def _over(self, name: str) -> tuple[_Batch, int]:
        """Forgets a call that the engine is done with; gives whose it was."""
        if self._budget:
            self._budget.give_back(name)
        return self._running.pop(name)

    def _settle(self, batch: _Batch, index: int, outcome: Any) -> None:
        """Keeps what a call came to, so that its batch does not hold itself."""
        if isinstance(outcome, RefusedError):
            without_frames(outcome)
        if batch.settle(index, outcome):
            self._open.discard(batch)

    def _receive(self) -> None:
        """Puts what came in into the line; waits for it if there is nothing else to do.

        At the start it waits a little for more, where prompts begin alike: one round of each is better than two.
        """
        while True:
            is_idle = not (self._closing or self._line or self._engine.is_busy())
            since = time.monotonic()
            if self._gather_until is None and self._line:
                self._gather_until = since + _GATHER_MOST_S
            gathers = not self._closing and since < (self._gather_until or 0) and self._line.gathers
            try:
                batch = self._incoming.get(block=is_idle or gathers, timeout=None if is_idle else _GATHER_S)
            except queue.Empty:
                if gathers:
                    self._gather_until = 0
                return
            if self.tally.num_answered and is_idle:
                self.tally.idle_s += time.monotonic() - since
            if batch is None:
                self._closing = True
            else:
                self._line.add(batch, batch.calls)

    def _drop_late(self) -> None:
        """Ends the requests that have had their time."""
        before = time.monotonic() - (self._request_timeout_s or 0)
        while self._added and (self._added[0][0] < before or self._added[0][1] not in self._running):
            _, name = self._added.popleft()
            if name in self._running:
                self._engine.abort(name)
                batch, index = self._over(name)
                why = f"no answer in {self._request_timeout_s:g} s (retry.request_timeout)"
                self._settle(batch, index, RowError("engine", "RequestTimeout", why))

    def _watch(self) -> None:
        while self._thread.is_alive() and self._dead is None:
            called_at = self._called_at
            left = math.inf
            if self._timeout_s is not None:
                left = self._timeout_s - (time.monotonic() - called_at if called_at is not None else 0)
            ended = next((process for process in self._processes if not process.is_alive()), None)
            if ended is not None:
                self._fail(RuntimeError(f"its process {ended.name} ended (exit code {ended.exitcode})"))
            elif left < 0:
                self._fail(TimeoutError(f"it hangs: no step ended in {self._timeout_s:g} s (retry.engine_timeout)"))
            self._thread.join(min(_LOOK_EVERY_S, max(0.05, left)))

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._dead is not None:  # it hung, and then came back
                return
            self._dead = EngineError(f"the engine died: {type(error).__name__}: {error}")
            self._dead.__cause__ = error
        for batch in list(self._open):
            with suppress(InvalidStateError):  # it is done, maybe just now, by the other thread
                batch.future.set_exception(self._dead)
