"""The job's entrypoint, run on the cluster's head: `python -m rayferry.job spec.json --submission-id ID`.

A job that no laptop submits has no `--submission-id`: Ray tells it. One of a schedule has `--schedule`; see `tick`.
"""

import argparse
import functools
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType

from rayferry.job import VERSION, secrets
from rayferry.job.earlier import Earlier, attempt_number
from rayferry.job.errors import EXIT_PASSING, RayferryError, SpecError, is_passing, root_line
from rayferry.job.layout import Layout
from rayferry.job.log import counted, say
from rayferry.job.outcome import Recorder, driver_log
from rayferry.job.spec import JobSpec, parse
from rayferry.job.tick import Tick, own_submission_id

EXIT_TOO_MANY_ERRORS = 3
EXIT_TIMED_OUT = 6
_EXIT_STOPPED = 143
_TO_TELL_S = 600.0  # a run that is over already has nothing to do but tell so


def main(arguments: list[str] | None = None) -> int:
    """Runs the job.

    Returns:
        The process's exit code: 0, 1 (failed), 2 (spec), 3 (too many errors), 75 (the cluster or the store failed). A
        run out of time ends at once with 6.
    """
    parser = argparse.ArgumentParser(prog="python -m rayferry.job")
    parser.add_argument("spec", type=Path)
    parser.add_argument("--submission-id", default=own_submission_id())
    Earlier.add_to(parser)
    Tick.add_to(parser)
    options = parser.parse_args(arguments)
    if options.submission_id is None:
        parser.error("the following arguments are required outside of a job of Ray's: --submission-id")
    recorder = Recorder(options.submission_id, driver_log())
    signal.signal(signal.SIGTERM, functools.partial(_on_sigterm, recorder))
    timer: threading.Timer | None = None
    try:
        spec = _read(options.spec, Tick.read(options))
        say(f"rayferry {VERSION}: {options.submission_id}")
        secrets.settle(spec.runtime_env.secrets)
        earlier = Earlier.read(options)
        if spec.timeout_s:
            timer = _start_timer(spec, earlier, recorder)
        from rayferry.job import manifest, pipeline  # they import Ray, which takes a second

        result = pipeline.run(spec, options.submission_id, accepted=recorder.start, earlier=earlier)
    except Exception as error:  # noqa: BLE001  # the last boundary: whatever it is, it is told and ends in a code
        if timer:
            timer.cancel()
        traceback.print_exc()
        root = root_line(error)
        say(f"error: {root}")
        code = error.exit_code if isinstance(error, RayferryError) else 1
        if code == 1 and is_passing(error, is_under_way=recorder.is_started or Earlier.read(options).goes_on):
            code = EXIT_PASSING
        recorder.end("FAILED", code, root)
        return code
    if timer:
        timer.cancel()
    counts = result["counts"]
    say(f"done: {counted(counts['succeeded'], 'answer')}, {counted(counts['failed'], 'error')}")
    if manifest.too_many_errors(result):
        root = (
            f"{manifest.error_rate(result):.1%} of the rows failed, "
            f"more than max_error_rate ({spec.on_error.max_error_rate:.1%})"
        )
        say(f"error: {root}")
        recorder.end("FAILED", EXIT_TOO_MANY_ERRORS, root, has_manifest=True)
        return EXIT_TOO_MANY_ERRORS
    recorder.end("SUCCEEDED", 0, has_manifest=True)
    return 0


def _read(path: Path, tick: Tick | None) -> JobSpec:
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        msg = f"{path}: not JSON: {error}"
        raise SpecError(msg) from error
    return parse(data if tick is None else tick.fill(data), str(path))


def _on_sigterm(recorder: Recorder, _number: int, _frame: FrameType | None) -> None:
    say("stopped: what is in data/ and errors/ stays; there is no manifest")
    recorder.end("STOPPED", _EXIT_STOPPED)
    sys.exit(_EXIT_STOPPED)


def _start_timer(spec: JobSpec, earlier: Earlier, recorder: Recorder) -> threading.Timer:
    """Ends the run once its time is up; what attempts before took, which the cluster failed, is part of it."""
    left_s = spec.timeout_s or 0.0
    if earlier.later:
        from rayferry.job import attempts, storage

        layout = Layout(spec.output.uri)
        left_s -= attempts.spent_s(layout, earlier.run)
        if storage.read_bytes(layout.manifest_uri) is not None:
            left_s = max(left_s, _TO_TELL_S)
        elif left_s <= 0:
            told = (storage.read_json(layout.outcome_uri) or {}).get("submission_id", "")
            if attempt_number(told, earlier.first or "") is not None:  # nobody else has taken the output over since
                recorder.start(layout)
            _on_timeout(spec.timeout or "", recorder)
    timer = threading.Timer(left_s, _on_timeout, [spec.timeout, recorder])
    timer.daemon = True
    timer.start()
    return timer


def _on_timeout(timeout: str, recorder: Recorder) -> None:
    root = f"timed out: not done after {timeout}; raise timeout, or add replicas"
    say(f"error: {root}")
    recorder.end("TIMED_OUT", EXIT_TIMED_OUT, root)
    os._exit(EXIT_TIMED_OUT)


if __name__ == "__main__":
    sys.exit(main())
