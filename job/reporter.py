"""A run's news, told in the job's log and kept in S3 while it goes on."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import ray

from rayferry.job import storage
from rayferry.job.errors import root_line
from rayferry.job.log import counted, say
from rayferry.job.progress import Snapshot

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_LOG_EVERY_S = 10.0
_SAVE_EVERY_S = 30.0
# Loading a model takes a minute often; after that, who waits wants to know for what.
_WAITING_AFTER_S = 60.0
# Nor does a replica that is ready answer so long, unless its node is lost, or its rows are very long ones.
_STILL_AFTER_S = 300.0


class Reporter:
    """A thread that says how far the run is, for as long as the `with` block takes."""

    def __init__(
        self,
        board: "ActorHandle[Any]",
        uri: str,
        num_files: int,
        preview_rows: int,
        save_files: Callable[[dict[str, int]], None] = lambda _num_rows: None,
    ) -> None:
        """Prepares.

        Args:
            board: whom to ask.
            uri: the object to rewrite with the counts.
            num_files: files that the input has.
            preview_rows: first answers to quote, or 0.
            save_files: keeps the number of rows of the files that were read to their end.
        """
        self._save_files = save_files
        self._board = board
        self._uri = uri
        self._num_files = num_files
        self._preview_rows = preview_rows
        self._saved_files = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rayferry-progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(timeout=_LOG_EVERY_S)

    def _run(self) -> None:
        logged = saved = moved = time.monotonic()
        patience_s = _WAITING_AFTER_S
        far: tuple[int, ...] = (0, 0, 0)
        last = Snapshot()
        ended = is_away = False
        while not ended:
            ended = self._ended.wait(1.0)  # and then one look more: a short run's first answers came since
            try:
                now: Snapshot = ray.get(self._board.snapshot.remote(), timeout=_LOG_EVERY_S)
            except ray.exceptions.GetTimeoutError:
                continue  # on a busy node the board takes a while to start
            except ray.exceptions.RayError as error:
                if not is_away:
                    say(f"progress is not known just now ({root_line(error)})")
                is_away = True
                continue
            is_away = False
            self._say_news(now, last)
            if far != (far := _how_far(now)):
                moved, patience_s = time.monotonic(), _STILL_AFTER_S if now.load_s else _WAITING_AFTER_S
            if time.monotonic() - moved >= patience_s:
                what = "no batch has ended for" if now.load_s else "no replica is ready after"
                with contextlib.suppress(ray.exceptions.RayError):
                    free = waiting(ray.available_resources(), ray.cluster_resources(), _pending_groups())
                    say(f"{what} {patience_s:.0f} s; {free}")
                patience_s *= 2
            if time.monotonic() - logged >= _LOG_EVERY_S and now.succeeded + now.failed:
                logged = time.monotonic()
                say(describe(now, self._num_files, time.time))
            if time.monotonic() - saved >= _SAVE_EVERY_S:
                saved = time.monotonic()
                self._save(now)
            last = now

    def _say_news(self, now: Snapshot, last: Snapshot) -> None:
        if len(now.load_s) > len(last.load_s):
            ready = len(now.load_s)
            say(f"{ready} replica{'s' * (ready > 1)} ready (model loaded in {max(now.load_s):.0f} s)")
            if now.limits and not last.load_s:
                say(f"engine: {', '.join(f'{name} {value}' for name, value in now.limits.items())}")
        for reason in now.deaths[len(last.deaths) :]:
            say(f"a replica's engine died ({reason}); it is started again")
        if now.preview and not last.preview and self._preview_rows:
            for row in now.preview[: self._preview_rows]:
                prompt, *answer = row.values()
                say(f"preview: {prompt!r} -> {', '.join(map(repr, answer))}")

    def _save(self, now: Snapshot) -> None:
        try:
            storage.write_bytes(self._uri, json.dumps(now.to_json()).encode())
            if now.files_read > self._saved_files:
                self._save_files(ray.get(self._board.files_read.remote(), timeout=_LOG_EVERY_S))
                self._saved_files = now.files_read
        except (OSError, ray.exceptions.RayError) as error:
            say(f"{self._uri} could not be written ({error}); the run goes on")


def describe(now: Snapshot, num_files: int, clock: Callable[[], float]) -> str:
    """A line for people: rows done of rows known, failures, speed since the first replica was ready."""
    more = "" if now.files_read >= num_files else "+"
    done = now.succeeded + now.failed
    line = f"{done:,} of {now.rows_read:,}{more} rows written"
    if now.failed:
        line += f", {now.failed:,} failed"
    if now.ready_at and now.num_generated_tokens:
        num_new = now.num_generated_tokens - now.num_earlier_tokens
        line += f", {num_new / max(1e-3, clock() - now.ready_at):,.0f} tokens/s"
    return line


def _how_far(now: Snapshot) -> tuple[int, ...]:
    """Numbers of which one changes as long as a run goes on."""
    answered = sum(life.tally.num_answered for life in now.lives if life.tally)
    return (len(now.load_s), now.succeeded + now.failed, answered)


def waiting(free: Mapping[str, float], there: Mapping[str, float], num_pending: int) -> str:
    """Words for people, while no replica answers: what there is for one.

    Args:
        free: amounts by resource, as `ray.available_resources` tells them.
        there: the same of `ray.cluster_resources`.
        num_pending: placement groups that have no place.
    """
    left = [f"{free.get(name, 0):g} of {there[name]:g} {name}s" for name in ("GPU", "CPU") if there.get(name)]
    line = f"free on the cluster: {', '.join(left) or 'nothing'}"
    if num_pending:
        line += f"; waiting for {counted(num_pending, 'placement group')} (GPUs of one node each)"
    elif there.get("GPU") and not free.get("GPU"):
        line += "; if no model is loading (rayferry logs --raw), other jobs hold the GPUs (rayferry list --all)"
    return line


def _pending_groups() -> int:
    from ray.util import placement_group_table  # noqa: PLC0415  # only here

    return sum(group["state"] == "PENDING" for group in placement_group_table().values())
