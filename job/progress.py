"""What is known of a run while it goes on: told by tasks and replicas, shown in the job's log and in S3."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayferry.job import storage
from rayferry.job.errors import root_line
from rayferry.job.log import counted, say

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_LOG_EVERY_S = 10.0
_SAVE_EVERY_S = 30.0
# Loading a model takes a minute often; after that, who waits wants to know for what.
_WAITING_AFTER_S = 60.0
# An estimate of the input's rows ends a run only on this much evidence, and with room for being wrong.
_FEW_FAILURES = 100
_ENOUGH_SEEN = 0.1
_MARGIN = 1.25
# With less than this to go it goes on to its end, for the sake of a manifest.
_LITTLE_LEFT_ROWS = 1000
_LITTLE_LEFT = 0.1
SCHEMA_VERSION = 1


@dataclass
class Snapshot:
    """The run at one moment.

    Attributes:
        rows_read: input rows in the files read to their end.
        files_read: number of those files.
        succeeded: rows in data parts.
        failed: rows in errors parts.
        num_input_tokens: prompt tokens of the rows in data parts.
        num_generated_tokens: generated tokens of those rows.
        num_rescued: rows with something in `rescued_data`.
        load_s: seconds that each ready replica took to load its model.
        ready_at: when the first replica became ready, as `time.time()` of the driver's node, or None.
        vllm: version of vLLM, once a replica is ready.
        failure: why a replica could not go on, if one could not.
        hopeless: why going on is of no use, if so many rows failed.
        preview: a few first answers.
    """

    rows_read: int = 0
    files_read: int = 0
    succeeded: int = 0
    failed: int = 0
    num_input_tokens: int = 0
    num_generated_tokens: int = 0
    num_rescued: int = 0
    load_s: list[float] = field(default_factory=list)
    ready_at: float | None = None
    vllm: str | None = None
    failure: str | None = None
    hopeless: str | None = None
    preview: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The counts, without what rows say."""
        return {
            "schema_version": SCHEMA_VERSION,
            "rows_read": self.rows_read,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "num_input_tokens": self.num_input_tokens,
            "num_generated_tokens": self.num_generated_tokens,
            "replicas": len(self.load_s),
        }


@dataclass
class _FileState:
    num_rows: int
    num_bytes: int


class Board:
    """Collects. A message that comes twice, from a task tried again, counts once."""

    def __init__(self, num_files: int = 0, num_bytes: int = 0, max_error_rate: float = 1.0) -> None:
        """Starts empty.

        Args:
            num_files: files that the input has.
            num_bytes: their size together.
            max_error_rate: share of failed rows that the run may have.
        """
        self._num_files = num_files
        self._num_bytes = num_bytes
        self._max_error_rate = max_error_rate
        self._files: dict[str, int] = {}
        self._partly: dict[str, _FileState] = {}
        self._parts: dict[str, list[dict[str, Any]]] = {}
        self._now = Snapshot()

    def file_read(self, path: str, num_rows: int, num_bytes: int = 0) -> None:
        """A file was read to its end."""
        self._files[path] = num_rows
        self._partly[path] = _FileState(num_rows, num_bytes)

    def file_partly_read(self, path: str, num_rows: int, num_bytes: int) -> None:
        """So many rows came from so many of a file's bytes."""
        if path not in self._files:
            self._partly[path] = _FileState(num_rows, num_bytes)

    def parts_written(self, name: str, parts: list[dict[str, Any]], preview: list[dict[str, str]]) -> str | None:
        """A write task finished with these parts.

        Returns:
            Why it is of no use to go on, or None.
        """
        self._parts[name] = parts
        if not self._now.preview:
            self._now.preview = preview
        self._now.hopeless = self._now.hopeless or self._hopeless()
        return self._now.hopeless

    def _hopeless(self) -> str | None:
        failed = sum(part["num_rows"] for parts in self._parts.values() for part in parts if part["kind"] == "errors")
        if not failed or self._max_error_rate >= 1:
            return None
        whole = len(self._files) >= self._num_files
        if whole:
            total: float = sum(self._files.values())
        else:
            seen = sum(file.num_bytes for file in self._partly.values())
            if failed < _FEW_FAILURES or seen < _ENOUGH_SEEN * self._num_bytes:
                return None
            total = _MARGIN * sum(file.num_rows for file in self._partly.values()) * self._num_bytes / seen
        written = sum(part["num_rows"] for parts in self._parts.values() for part in parts if part["kind"] != "openai")
        little_left = total - written < max(_LITTLE_LEFT_ROWS, _LITTLE_LEFT * total)
        if failed <= self._max_error_rate * total or little_left:
            return None
        about = f"{total:,.0f}" if whole else f"at most about {total:,.0f}"
        return (
            f"stopped early: {failed:,} of {about} rows failed, more than max_error_rate ({self._max_error_rate:.1%}) "
            "whatever becomes of the rest; see errors/, or raise on_error.max_error_rate"
        )

    def replica_ready(self, load_s: float, vllm: str) -> None:
        """A replica has its model."""
        self._now.load_s.append(load_s)
        self._now.vllm = vllm
        self._now.ready_at = self._now.ready_at or time.time()

    def failed(self, reason: str) -> None:
        """A replica cannot go on. The first reason is the one to tell."""
        self._now.failure = self._now.failure or reason

    def snapshot(self) -> Snapshot:
        """All of it, summed up."""
        now = self._now
        now.rows_read = sum(self._files.values())
        now.files_read = len(self._files)
        parts = [part for parts in self._parts.values() for part in parts]
        now.succeeded = sum(part["num_rows"] for part in parts if part["kind"] == "data")
        now.failed = sum(part["num_rows"] for part in parts if part["kind"] == "errors")
        now.num_rescued = sum(part.get("num_rescued", 0) for part in parts)
        now.num_input_tokens = sum(part["num_input_tokens"] for part in parts)
        now.num_generated_tokens = sum(part["num_generated_tokens"] for part in parts)
        return now


def start_board(num_files: int = 0, num_bytes: int = 0, max_error_rate: float = 1.0) -> "ActorHandle[Any]":
    """Starts the board on the driver's own node, where no spot instance is taken away under it; see `Board`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote(num_files, num_bytes, max_error_rate)


class Reporter:
    """A thread that says how far the run is, for as long as the `with` block takes."""

    def __init__(self, board: "ActorHandle[Any]", uri: str, num_files: int, preview_rows: int) -> None:
        """Prepares.

        Args:
            board: whom to ask.
            uri: the object to rewrite with the counts.
            num_files: files that the input has.
            preview_rows: first answers to quote, or 0.
        """
        self._board = board
        self._uri = uri
        self._num_files = num_files
        self._preview_rows = preview_rows
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rayferry-progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(timeout=_LOG_EVERY_S)

    def _run(self) -> None:
        logged = saved = start = time.monotonic()
        patience_s = _WAITING_AFTER_S
        last = Snapshot()
        ended = False
        while not ended:
            ended = self._ended.wait(1.0)  # and then one look more: a short run's first answers came since
            try:
                now: Snapshot = ray.get(self._board.snapshot.remote(), timeout=_LOG_EVERY_S)
            except ray.exceptions.GetTimeoutError:
                continue  # on a busy node the board takes a while to start
            except ray.exceptions.RayError as error:
                say(f"progress is not known just now ({root_line(error)})")
                continue
            if len(now.load_s) > len(last.load_s):
                ready = len(now.load_s)
                say(f"{ready} replica{'s' * (ready > 1)} ready (model loaded in {max(now.load_s):.0f} s)")
            if not now.load_s and time.monotonic() - start >= patience_s:
                with contextlib.suppress(ray.exceptions.RayError):
                    say(waiting(patience_s, ray.available_resources(), ray.cluster_resources(), _pending_groups()))
                patience_s *= 2
            if now.preview and not last.preview and self._preview_rows:
                for row in now.preview[: self._preview_rows]:
                    prompt, *answer = row.values()
                    say(f"preview: {prompt!r} -> {', '.join(map(repr, answer))}")
            if time.monotonic() - logged >= _LOG_EVERY_S and now.succeeded + now.failed:
                logged = time.monotonic()
                say(describe(now, self._num_files, time.time))
            if time.monotonic() - saved >= _SAVE_EVERY_S:
                saved = time.monotonic()
                self._save(now)
            last = now

    def _save(self, now: Snapshot) -> None:
        try:
            storage.write_bytes(self._uri, json.dumps(now.to_json()).encode())
        except OSError as error:
            say(f"{self._uri} could not be written ({error}); the run goes on")


def describe(now: Snapshot, num_files: int, clock: Callable[[], float]) -> str:
    """A line for people: rows done of rows known, failures, speed since the first replica was ready."""
    more = "" if now.files_read >= num_files else "+"
    done = now.succeeded + now.failed
    line = f"{done:,} of {now.rows_read:,}{more} rows written"
    if now.failed:
        line += f", {now.failed:,} failed"
    if now.ready_at and now.num_generated_tokens:
        line += f", {now.num_generated_tokens / max(1e-3, clock() - now.ready_at):,.0f} tokens/s"
    return line


def waiting(seconds: float, free: Mapping[str, float], there: Mapping[str, float], num_pending: int) -> str:
    """A line for people, while no replica is ready: what there is for one.

    Args:
        seconds: for how long.
        free: amounts by resource, as `ray.available_resources` tells them.
        there: the same of `ray.cluster_resources`.
        num_pending: placement groups that have no place.
    """
    left = [f"{free.get(name, 0):g} of {there[name]:g} {name}s" for name in ("GPU", "CPU") if there.get(name)]
    line = f"no replica is ready after {seconds:.0f} s; free on the cluster: {', '.join(left) or 'nothing'}"
    if num_pending:
        line += f"; waiting for {counted(num_pending, 'placement group')} (GPUs of one node each)"
    elif there.get("GPU") and not free.get("GPU"):
        line += "; if no model is loading (rayferry logs --raw), other jobs hold the GPUs (rayferry list --all)"
    return line


def _pending_groups() -> int:
    from ray.util import placement_group_table  # noqa: PLC0415  # only here

    return sum(group["state"] == "PENDING" for group in placement_group_table().values())
