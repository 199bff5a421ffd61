"""Why a job failed: whose matter it is, the root line, the log's last lines, and what to do next."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from shlex import quote

from rayferry.job.errors import EXIT_PASSING
from rayferry.job.layout import Layout
from rayferry.job.log import MARK
from rayferry.submit.client import JobInfo
from rayferry.submit.config import command

_MAX_LINES = 6
_MAX_CHARS = 240
_MIN_CHARS = 20
_KILLED = {137, -9}
# SIGTERM without a stop, as of a node that goes down; SIGABRT and SIGSEGV, as of Ray's own code that lost its head
_ENDED = {143, -15, 134, -6, 139, -11}
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# `ValueError: x` or `ray.exceptions.RayActorError`, at a line's beginning or after Ray's `(name pid=1)`.
_RAISED = re.compile(r"^(?:\([^()]*\) )?((?:\w+\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)(?::.*)?)$")
_NOTHING = re.compile(r"^(Traceback \(most recent call last\):|[\s^~]*)$")
_OF_A_TRACEBACK = re.compile(r"^(\s|The above exception was the direct cause|During handling of the above)")


# Ray calls it "unschedulable" too when a node has room, but cannot start a worker in the job's environment.
_NO_WORKER = re.compile(
    r"worker startup failed|runtime[_ ]env(?:ironment)?\b.*\bfail|failed\b.*\bruntime[_ ]env", re.IGNORECASE
)


@dataclass(frozen=True)
class Failure:
    """A class of failures.

    Attributes:
        name: user, environment, cluster or capacity.
        whose: whose matter it is.
        next_step: what the user is to do; {list_all} is the command that lists all jobs.
    """

    name: str
    whose: str
    next_step: str


_USER = Failure(
    "user", "the cause is in your job, or in what it asks for", "mend what is named here, and submit it again"
)
_ENVIRONMENT = Failure(
    "environment",
    "the cause is in the job's environment, which could not be set up",
    "check runtime_env in the job file, and what the cluster's nodes may fetch",
)
_CLUSTER = Failure(
    "cluster",
    "the cause is in the cluster, not in your job",
    "check its head node (is it up, has it memory and disk left?), and submit the job again",
)
_AWAY = Failure(
    "cluster",
    "the cause is in the cluster or in S3, not in your job",
    "look after what is named here, and go on with the run by --resume",
)
_CAPACITY = Failure(
    "capacity",
    "the cause is the cluster's capacity, not your job (it found no room to start in time)",
    "wait for other jobs ({list_all}) or add nodes, and submit it again",
)
# Source: `JobErrorType` in ray/dashboard/modules/job/common.py (Ray 2.60); an older Ray has fewer of them, or none.
_BY_ERROR_TYPE = {
    "JOB_ENTRYPOINT_COMMAND_ERROR": _USER,
    "RUNTIME_ENV_SETUP_FAILURE": _ENVIRONMENT,
    "JOB_ENTRYPOINT_COMMAND_START_ERROR": _CLUSTER,
    "JOB_SUPERVISOR_ACTOR_DIED": _CLUSTER,
    "JOB_SUPERVISOR_ACTOR_START_FAILURE": _CLUSTER,
    "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE": _CLUSTER,
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": _CAPACITY,
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": _CAPACITY,
}
# What Ray's message begins with; for a Ray that tells no error type.
# Source: `JobManager._monitor_job_internal` (Ray 2.49 and 2.60).
_BY_MESSAGE = {
    "runtime_env setup failed": _ENVIRONMENT,
    "Job supervisor actor failed to start within": _CAPACITY,
    "Job supervisor actor could not be scheduled": _CAPACITY,
    "Job supervisor actor": _CLUSTER,
    "Unexpected error occurred": _CLUSTER,
    "Failed to start supervisor actor": _CLUSTER,
}


def sort(info: JobInfo) -> Failure | None:
    """Whose matter a job's failure is; None if it did not fail, or Ray does not tell."""
    if info.status != "FAILED":
        return None
    if info.exit_code in _KILLED | _ENDED | {EXIT_PASSING}:  # from outside; or as the driver itself knows
        return _AWAY if info.exit_code == EXIT_PASSING else _CLUSTER
    if info.exit_code is None and _NO_WORKER.search(info.message):
        return _ENVIRONMENT
    if info.error_type in _BY_ERROR_TYPE:
        return _BY_ERROR_TYPE[info.error_type]
    if info.exit_code is not None:
        return _USER
    return next((failure for start, failure in _BY_MESSAGE.items() if info.message.startswith(start)), None)


def root_first(text: str) -> list[str]:
    """What a log, or a message of Ray's, says about a failure.

    Returns:
        Our last error line, or else the last line that names an exception, and then at most six of the last lines
        that are not ours; no line is longer than 240 characters but the first. Empty if the text is.
    """
    lines = [_ANSI.sub("", line).rstrip() for line in text.splitlines()]
    ours = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    # our lines were shown when they came
    others = [line for line in lines if not line.startswith(MARK) and not _NOTHING.match(line)]
    root = None
    if errors := [line.partition("error: ")[2] for line in ours if " error: " in line]:
        root = errors[-1]
        others = [line for line in others if not _OF_A_TRACEBACK.match(line)]  # the driver's, which leads to this root
    elif raised := [found[1] for line in lines if (found := _RAISED.match(line))]:
        root = raised[-1]
    last = [line[:_MAX_CHARS] for line in others if root is None or not _tells(root, line)][-_MAX_LINES:]
    return last if root is None else [root, *last]


def _tells(root: str, line: str) -> bool:
    """True if the root line says all that a line does: a reason of several lines is one line in it."""
    whole, part = " ".join(root.split()), " ".join(line.split())
    return part.endswith(whole) or whole[:_MAX_CHARS] in part or (len(part) >= _MIN_CHARS and part in whole)


def explain(info: JobInfo, log: str, command: Callable[[str], str] = command, *, goes_on: bool = False) -> list[str]:
    """A failed job in lines for people: whose matter, the root line, the last lines, where the whole log is.

    Args:
        info: the job.
        log: the driver's log, or "" if it cannot be had.
        command: makes a command about the same cluster.
        goes_on: it is tried again without the user, so there is nothing to do.
    """
    failure = sort(info)
    lines = []
    if failure:
        next_step = "" if goes_on else f": {failure.next_step.format(list_all=command('list --all'))}"
        lines.append(f"  {failure.whose}{next_step}")
    if info.exit_code in _KILLED:
        lines.append(f"  the driver was killed (exit code {info.exit_code}), mostly for want of memory")
    elif info.exit_code in _ENDED:
        lines.append(f"  the driver was ended by a signal (exit code {info.exit_code}), and nobody stopped the job")
    # if it did not come to the driver's end, Ray knows why
    by_log, by_ray = root_first(log), root_first(info.message)
    lines += [f"  {line}" for line in ((by_ray or by_log) if info.exit_code is None else (by_log or by_ray))]
    copy = f" or {Layout(info.output_uri).driver_log_uri}" if info.output_uri else ""
    return [*lines, f"the whole log: {command(f'logs --raw {quote(info.submission_id)}')}{copy}"]
