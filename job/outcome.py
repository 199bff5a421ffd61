"""What a run leaves of itself under `_meta/`, however it ends: a copy of the driver's log, and the outcome."""

import json
import os
import stat
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayferry.job.layout import Layout
from rayferry.job.log import MARK, say

SCHEMA_VERSION = 1
MAX_LOG_BYTES = 16 << 20
_SAVE_EVERY_S = 30.0
# The driver ends without its last words in S3, rather than never.
_LAST_SAVE_S = 20.0


@dataclass(frozen=True)
class Outcome:
    """How a run stands, as its driver knows it.

    Attributes:
        submission_id: the Ray job.
        status: RUNNING, SUCCEEDED, FAILED, STOPPED or TIMED_OUT; a driver that was killed leaves RUNNING.
        started_at: seconds since 1970.
        ended_at: likewise, or None.
        exit_code: the driver's, once it has one.
        error: the root line of what went wrong, or None.
    """

    submission_id: str
    status: str
    started_at: float
    ended_at: float | None = None
    exit_code: int | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Its form in `_meta/outcome.json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "submission_id": self.submission_id,
            "status": self.status,
            "exit_code": self.exit_code,
            "error": self.error,
            "started_at": _utc(self.started_at),
            "ended_at": None if self.ended_at is None else _utc(self.ended_at),
        }


class Recorder:
    """A thread that copies the log while the run goes on, and writes the outcome and the log's last lines at its end.

    Nothing is written before `start`, and nothing into an output where another run's manifest is. What cannot be
    written is said once; it never fails the job.
    """

    def __init__(self, submission_id: str, log: Path | None = None) -> None:
        """Prepares.

        Args:
            submission_id: the Ray job.
            log: the driver's log, or None where there is no such file.
        """
        self._outcome = Outcome(submission_id, "RUNNING", time.time())
        self._log = log
        self._layout: Layout | None = None
        self._has_manifest = False
        self._is_told = False
        self._num_bytes = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rayferry-recorder", daemon=True)

    def start(self, layout: Layout) -> None:
        """Begins: the output is this run's. Again, it does nothing."""
        if self._layout is None:
            self._layout = layout
            self._thread.start()

    @property
    def is_started(self) -> bool:
        """True once the output is this run's."""
        return self._layout is not None

    def end(self, status: str, exit_code: int, error: str | None = None, *, has_manifest: bool = False) -> None:
        """Writes how the run ended, and the rest of the log; the first call counts.

        Args:
            status: see `Outcome`.
            exit_code: what the process is about to end with.
            error: the root line of what went wrong.
            has_manifest: True if this run wrote the manifest.
        """
        if self._thread.ident is None:
            return
        if not self._ended.is_set():
            self._outcome = replace(
                self._outcome, status=status, exit_code=exit_code, error=error, ended_at=time.time()
            )
            self._has_manifest = has_manifest
            self._ended.set()
        self._thread.join(_LAST_SAVE_S)

    def _run(self) -> None:
        if self._log is None:
            say("the driver's log is not copied to _meta/: it goes to no file here")
        self._save(with_outcome=True)
        while not self._ended.wait(_SAVE_EVERY_S):
            self._save(with_outcome=False)
        self._save(with_outcome=True)

    def _save(self, *, with_outcome: bool) -> None:
        """Writes the outcome first: Ray leaves a job that it stops three seconds."""
        layout = self._layout
        if layout is None:
            return
        try:
            from rayferry.job import storage  # it imports pyarrow, which the entrypoint must be able to miss

            there = storage.children(layout.meta_uri)
            if not self._has_manifest and layout.manifest_uri.rpartition("/")[2] in there:
                return  # another run's: so are the files beside it
            if with_outcome:
                content = json.dumps(self._outcome.to_json(), indent=1).encode()
                storage.write_bytes(layout.outcome_uri, content)
            self._save_log(layout)
        except Exception as error:  # noqa: BLE001  # whatever it is, the run goes on
            if not self._is_told:
                self._is_told = True
                reason = f"{type(error).__name__}: {error}"
                say(f"the log and the outcome could not be written to {layout.meta_uri} ({reason}); the run goes on")

    def _save_log(self, layout: Layout) -> None:
        if self._log is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        from rayferry.job import storage

        num_bytes = self._log.stat().st_size
        if num_bytes != self._num_bytes:
            storage.write_bytes(layout.driver_log_uri, last_part(self._log))
            self._num_bytes = num_bytes


def driver_log() -> Path | None:
    """The file that this process's stdout goes to, or None where it goes elsewhere.

    Ray's job supervisor sends the driver's stdout and stderr to `job-driver-<submission_id>.log`; what Ray and vLLM
    print in the driver, and what Ray brings there from the workers, is in it too.
    Source: `JobSupervisor._exec_entrypoint` (Ray 2.60).
    """
    path = Path("/proc/self/fd/1")
    try:
        return path if stat.S_ISREG(os.fstat(1).st_mode) and path.exists() else None
    except OSError:  # closed
        return None


def last_part(log: Path, max_bytes: int = MAX_LOG_BYTES) -> bytes:
    """The end of a log, in whole lines; its first line says so if something was left out."""
    with log.open("rb") as file:
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, num_bytes - max_bytes))
        content = file.read(max_bytes)
    if num_bytes <= max_bytes:
        return content
    kept = content.partition(b"\n")[2] or content
    return f"{MARK}the log's first {num_bytes - len(kept):,} bytes are not in this copy\n".encode() + kept


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
