"""From a job to its result: preflight, submission, following, collecting."""

import sys
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from shlex import quote
from typing import Any

from rayferry.job.earlier import NOTHING_EARLIER, Earlier
from rayferry.job.errors import RayferryError
from rayferry.job.layout import Layout
from rayferry.job.spec import JobSpec
from rayferry.submit import collect, failure, report, s3
from rayferry.submit.client import Cluster, JobInfo
from rayferry.submit.config import Address
from rayferry.submit.follow import every_line, follow, our_lines
from rayferry.submit.preflight import PreflightError, ask_from_cluster, preflight, require
from rayferry.submit.request import SubmitRequest, build_request
from rayferry.submit.signals import EXIT_INTERRUPTED, Terminated, if_interrupted
from rayferry.submit.transport import ClusterError, UnreachableError

STOP_TIMEOUT_S = 60.0
_SECOND_CTRL_C_S = 2.0
_POLL_S = 0.3
_ASKED = "was asked to stop"
# Source: `JobManager._monitor_job_internal` and `stop_job` in ray/dashboard/modules/job/job_manager.py (Ray 2.60).
_START_TIMEOUT = "RAY_JOB_START_TIMEOUT_SECONDS on its head, 15 minutes by default"
_WORDS = {
    "FAILED": "failed",
    "STOPPED": "was stopped",
}


def submit(
    spec: JobSpec,
    address: Address,
    submission_id: str,
    skip: Collection[str] = (),
    earlier: Earlier = NOTHING_EARLIER,
) -> tuple[Cluster, SubmitRequest]:
    """Checks and starts the job.

    Args:
        spec: the job.
        address: the cluster's.
        submission_id: the job's id.
        skip: names of checks to leave out.
        earlier: what becomes of an earlier attempt's output.

    Raises:
        RayferryError: a check failed, or the cluster refused; nothing runs.
    """
    if address.note:
        report.note(address.note)
    request = build_request(spec, address.url, submission_id, earlier)
    report.left_out(request.package)
    clusters: list[Cluster] = []

    def connect() -> Cluster:
        clusters.append(Cluster(address))
        return clusters[0]

    with if_interrupted(f"interrupted before {submission_id} was submitted"):
        probes = preflight(spec, address, connect, request.package, skip, earlier)
        require(probes)
        cluster = clusters[0] if clusters else connect()
        _check_alone(cluster, spec, submission_id)
        probes = ask_from_cluster(spec, lambda: cluster, probes, skip, earlier)
        require(probes)
        for probe in probes:
            if probe.outcome == "unknown":
                report.note(f"not checked: {probe.text}")
    see = address.command(f"status {quote(submission_id)}")
    with if_interrupted(f"interrupted while submitting: see whether it was started: {see}"):
        cluster.submit(request)
    with if_interrupted(going_on(cluster, submission_id)):
        report.note(f"submitted {submission_id} to {address.url}")
    return cluster, request


def _check_alone(cluster: Cluster, spec: JobSpec, submission_id: str) -> None:
    """Refuses an output that a job of this cluster is still writing.

    Raises:
        PreflightError: with that job's id.
    """
    output_uri = Layout(spec.output.uri).output_uri
    for job in cluster.jobs():
        name = job.submission_id
        if job.output_uri == output_uri and not job.is_over and name != submission_id:
            follow_it = cluster.command(f"logs -f {quote(name)}")
            msg = f"{output_uri}: {name} is writing there; follow it: {follow_it}, or stop it first"
            raise PreflightError(msg)


@dataclass(frozen=True)
class Watch:
    """How a job is followed.

    Attributes:
        raw: show every line of its log, not only ours.
        as_json: the datum is the whole outcome instead of the output URI.
        timeout_s: seconds after which to leave it.
        tail: lines of the log's past to show; None: all.
    """

    raw: bool = False
    as_json: bool = False
    timeout_s: float | None = None
    tail: int | None = None


def wait(cluster: Cluster, submission_id: str, watch: Watch = Watch()) -> int:  # it is frozen
    """Follows a job to its end and tells what came of it.

    Returns:
        The exit code.

    Raises:
        LostContactError: the cluster stopped answering.
        WaitedError: the job is not over after `watch.timeout_s`.
    """
    info = to_its_end(cluster, submission_id, watch)
    return EXIT_INTERRUPTED if info is None else conclude(cluster, info, as_json=watch.as_json)


def to_its_end(cluster: Cluster, submission_id: str, watch: Watch) -> JobInfo | None:
    """Follows a job to its end.

    On Ctrl-C or SIGTERM, says how to go on and leaves the job alone; on Ctrl-C twice within two seconds, stops it.

    Returns:
        The job, or None if it was left alone.

    Raises:
        LostContactError: the cluster stopped answering.
        WaitedError: the job is not over after `watch.timeout_s`.
    """
    only = every_line if watch.raw else our_lines
    try:
        return follow(
            cluster, submission_id, report.note, _tell_status, only=only, timeout_s=watch.timeout_s, tail=watch.tail
        )
    except Terminated:
        _detach(cluster, submission_id)
        return None
    except KeyboardInterrupt:
        return _second_thoughts(cluster, submission_id)


def going_on(cluster: Cluster, submission_id: str) -> str:
    """What to do about a job that is left alone."""
    follow_it, stop_it = (cluster.command(f"{words} {quote(submission_id)}") for words in ("logs -f", "stop"))
    return f"{submission_id} goes on. Follow it: {follow_it}\nStop it: {stop_it}"


def _detach(cluster: Cluster, submission_id: str) -> None:
    report.note(f"\ndetached: {going_on(cluster, submission_id)}")


def _second_thoughts(cluster: Cluster, submission_id: str) -> JobInfo | None:
    """Detaches; stops the job if Ctrl-C comes again at once. Gives the job's end then, else None."""
    try:
        _detach(cluster, submission_id)
        if sys.stdin.isatty():  # a script's Ctrl-C comes once
            report.note("(Ctrl-C again within 2 s: stop it)")
            time.sleep(_SECOND_CTRL_C_S)
    except Terminated:
        return None
    except KeyboardInterrupt:
        report.note(f"\nstopping {submission_id}")
        try:
            return stop(cluster, submission_id)
        except ClusterError as error:
            report.note(str(error))
    return None


def stop(cluster: Cluster, submission_id: str, timeout_s: float = STOP_TIMEOUT_S) -> JobInfo:
    """Stops a job and waits until it is over, however it ended.

    Raises:
        NoSuchJobError: the cluster has no such job.
        ClusterError: it goes on, or the cluster does not tell.
    """
    see = cluster.command(f"status {quote(submission_id)}")
    asked = "was not asked to stop"
    deadline = time.monotonic() + timeout_s
    try:
        info = cluster.info(submission_id)
        while not info.is_over:
            try:
                if asked != _ASKED:
                    asked = "may have been asked to stop"
                    cluster.stop(submission_id)
                    asked = _ASKED
                info = cluster.info(submission_id)
            except UnreachableError:
                if time.monotonic() > deadline:
                    raise
            if not info.is_over and time.monotonic() > deadline:
                raise ClusterError(_outlived(info, timeout_s, see))
            if not info.is_over:
                time.sleep(_POLL_S)
    except KeyboardInterrupt as error:
        error.add_note(f"interrupted: {submission_id} {asked}; see: {see}")
        raise
    return info


def _outlived(info: JobInfo, timeout_s: float, see: str) -> str:
    """What to do about a job that would not end."""
    name = info.submission_id
    if info.status == "PENDING":
        return (
            f"{name} is still PENDING {timeout_s:g} s after it was asked to stop: Ray stops a job only once its "
            f"supervisor has started. It ends then, or when Ray gives up starting it ({_START_TIMEOUT}); see: {see}"
        )
    return (
        f"{name} is still {info.status} {timeout_s:g} s after it was asked to stop; "
        f"it may yet end, or its processes hang on the cluster; see: {see}"
    )


def conclude(cluster: Cluster, info: JobInfo, *, as_json: bool = False) -> int:
    """Tells how an ended job ended. Returns the exit code."""
    code, manifest, missing = judge(cluster, info)
    if code != collect.exit_code(info):
        report.note(f"{info.submission_id} ended well, but there is no manifest: {missing}")
    if code != 0 and not (code == collect.EXIT_TOO_MANY_ERRORS and (manifest or not _has_none(missing))):
        report.note(f"{info.submission_id} {_WORDS.get(info.status, info.status)}")
        if info.status == "FAILED":
            explain(cluster, info)
        elif info.output_uri:
            report.note(_after_a_stop(cluster, info, info.output_uri))
    elif manifest:
        report.note(report.summary(manifest))
        if manifest["counts"]["failed"]:
            uri = manifest["output_uri"]
            report.note(f"look at the failed rows: rayferry preview {quote(uri.rstrip('/') + '/errors/')}")
            report.note(f"try them again: {cluster.command(f'resume {quote(uri)} --retry-failed')}")
    elif missing:
        report.note(f"the manifest cannot be read from here: {missing}")
    if as_json:
        report.json_datum(outcome(info, manifest, code))
    elif info.output_uri and (manifest or code == 0):
        report.datum(info.output_uri)
    return code


def judge(cluster: Cluster, info: JobInfo) -> tuple[int, dict[str, Any] | None, RayferryError | None]:
    """The exit code that an ended job means, its manifest, and why there is none; without one, no job ended well."""
    code = collect.exit_code(info)
    manifest, missing = _manifest(info)
    if code == 0 and isinstance(missing, s3.NotThereError) and _is_seen(cluster, info):
        code = collect.EXIT_FAILED
    return code, manifest, missing


def _after_a_stop(cluster: Cluster, info: JobInfo, output_uri: str) -> str:
    if collect.has_begun(info) is False:
        return "it had not begun to write, so nothing of it is to be resumed: give its command again"
    return f"go on with it: {cluster.command(f'resume {quote(output_uri)}')}"


def outcome(info: JobInfo, manifest: dict[str, Any] | None, code: int) -> dict[str, Any]:
    """An ended job as JSON values."""
    found = failure.sort(info)
    return {
        "submission_id": info.submission_id,
        "status": info.status,
        "exit_code": code,
        "output_uri": info.output_uri,
        "counts": manifest["counts"] if manifest else None,
        "tokens": manifest["tokens"] if manifest else None,
        "seconds": manifest["seconds"] if manifest else None,
        "error_type": info.error_type,
        "failure_class": found.name if found else None,
    }


def _manifest(info: JobInfo) -> tuple[dict[str, Any] | None, RayferryError | None]:
    """This job's manifest, or why there is none."""
    if info.output_uri is None:
        return None, None
    try:
        manifest = collect.read_manifest(info.output_uri)
    except RayferryError as error:
        return None, error
    is_among = info.status == "SUCCEEDED" and info.submission_id in manifest["attempts"]  # and another went on with it
    if manifest["submission_id"] != info.submission_id and not is_among:
        return None, s3.NotThereError(f"{info.output_uri} holds the answers of {manifest['submission_id']}")
    return manifest, None


def _has_none(missing: RayferryError | None) -> bool:
    """True if the run left no manifest, rather than one that cannot be read from here."""
    return isinstance(missing, s3.NotThereError)


def _is_seen(cluster: Cluster, info: JobInfo) -> bool:
    """False if its output is a path of another machine."""
    try:
        return s3.is_s3(info.output_uri or "") or cluster.is_here()
    except RayferryError:
        return False


def _tell_status(info: JobInfo) -> None:
    if info.status == "PENDING":
        why = info.message.removeprefix("Job has not started yet.").strip()
        why = why or "the cluster prepares the job's environment"
        report.note(f"{info.submission_id}: PENDING ({why})")
    elif info.status == "RUNNING":
        report.note(f"{info.submission_id}: RUNNING")


def explain(cluster: Cluster, info: JobInfo, *, goes_on: bool = False) -> None:
    """Says why a job failed; `goes_on`: it is tried again without the user."""
    log: str | RayferryError
    log = ""
    with suppress(RayferryError):
        log = cluster.logs(info.submission_id)
    for line in failure.explain(info, log, cluster.command, goes_on=goes_on):
        report.note(line)
