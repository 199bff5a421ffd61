"""A cluster and its jobs, by the Jobs API."""

import io
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from rayferry.job.earlier import attempt_number
from rayferry.job.placement import Node, can_grow
from rayferry.submit.config import Address
from rayferry.submit.pauses import growing_pauses
from rayferry.submit.request import METADATA_PREFIX, SubmitRequest
from rayferry.submit.transport import ClusterError, NoSuchJobError, NotKnownError, Transport, UnreachableError

_SUBMIT_TRIES = 8
_SUBMIT_PAUSE_S = 1.0
_LOG_FOLLOWS = ", last available logs"  # and up to 20,000 characters of it, in Ray's message on a job that failed
TERMINAL = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


@dataclass(frozen=True)
class JobInfo:
    """A Ray job as the cluster tells it.

    Attributes:
        submission_id: its id.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        message: Ray's words on the status, without the log that it puts after them.
        exit_code: of the driver, once it ended by itself.
        start_ms: Unix time in milliseconds, or None.
        end_ms: likewise.
        metadata: what was sent with it.
        error_type: Ray's word for why it failed, such as RUNTIME_ENV_SETUP_FAILURE; None where Ray has none.
    """

    submission_id: str
    status: str
    message: str = ""
    exit_code: int | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    error_type: str | None = None

    @property
    def is_over(self) -> bool:
        """True once the status cannot change any more."""
        return self.status in TERMINAL

    @property
    def output_uri(self) -> str | None:
        """Where its answers are, if Rayferry submitted it."""
        return self.metadata.get(METADATA_PREFIX + "output_uri")

    @property
    def run(self) -> str:
        """The id of the first attempt of the run that it is an attempt of."""
        return self.metadata.get(METADATA_PREFIX + "run", self.submission_id)

    @property
    def name(self) -> str:
        """The job file's name for it, or ""."""
        return self.metadata.get(METADATA_PREFIX + "name", "")


class Cluster:
    """One cluster's Jobs API. Every method raises `ClusterError` in plain words, and nothing else.

    Attributes:
        url: the dashboard's.
        command: see `Address.command`.
    """

    def __init__(self, address: Address | str) -> None:
        """Connects.

        Args:
            address: of the dashboard, and how it is spoken to; or its URL alone.

        Raises:
            UnreachableError: nothing answers there.
            ClusterError: something else than a Ray dashboard answers, or it refuses.
        """
        address = Address(address, "") if isinstance(address, str) else address
        self._transport = Transport(address)
        self.url = address.url
        self.command = address.command

    def version(self) -> dict[str, str]:
        """`ray_version`, `session_name`, and where the cluster tells it `python_version`."""
        found = dict(self._transport.get("/api/version"))
        with suppress(ClusterError):  # no part of the Jobs API
            path = "/api/v0/cluster_metadata"
            found["python_version"] = self._transport.get(path, lambda value: value["data"]["pythonVersion"])
        return found

    def nodes(self) -> tuple[list[Node], bool]:
        """The nodes that are alive, and whether the cluster can start further ones."""
        listing = self._alive()
        status = self._transport.get("/api/cluster_status", lambda value: value["data"].get("clusterStatus") or {})
        alive = [Node.from_ray(node["resources_total"] or {}, node.get("labels")) for node in listing]
        return alive, can_grow(alive, status)

    def is_here(self) -> bool:
        """True if the head runs on this machine. Its address alone does not tell: a tunnel's end is on loopback too."""
        if not Address(self.url, "").is_loopback:
            return False
        heads = [node["node_ip"] for node in self._alive() if node.get("is_head_node")]
        return not heads or any(map(_is_of_this_machine, heads))

    def _alive(self) -> list[dict[str, Any]]:
        def living(value: Any) -> list[dict[str, Any]]:
            return [node for node in value["data"]["result"]["result"] if node["state"] == "ALIVE"]

        return cast("list[dict[str, Any]]", self._transport.get("/api/v0/nodes?detail=1&limit=10000", living))

    def submit(self, request: SubmitRequest, sleep: Callable[[float], None] = time.sleep) -> None:
        """Uploads the package and starts the job, once, however often the request has to be repeated.

        Raises:
            NotKnownError: the cluster stopped answering, and the job may have started.
            ClusterError: the cluster refused, or did not answer; nothing was started.
        """
        with tempfile.TemporaryDirectory(prefix="rayferry-") as folder:
            package = Path(folder) / request.package["name"]
            package.write_bytes(request.content)
            pauses = growing_pauses(_SUBMIT_PAUSE_S)
            for attempt in count(1):
                # Ray writes the package's URI into the dictionary that it is given
                env = {**request.runtime_env, "working_dir": str(package)}
                try:
                    self._transport.ask(
                        lambda env=env: self._transport.sdk.submit_job(  # type: ignore[misc]
                            entrypoint=request.entrypoint,
                            submission_id=request.submission_id,
                            runtime_env=env,
                            metadata=request.metadata,
                        ),
                        request.submission_id,
                    )
                except ClusterError as error:
                    is_refusal = not isinstance(error, UnreachableError)
                    if is_refusal and attempt == 1:
                        raise
                    started = self._started(request)
                    if started:
                        return
                    if is_refusal and started is False:
                        raise
                    if attempt == _SUBMIT_TRIES:
                        raise error if started is False else self._not_known(request.submission_id) from error
                    sleep(next(pauses))
                else:
                    return

    def _started(self, request: SubmitRequest) -> bool | None:
        """True if the cluster has this very job, although its answer was lost; None if it does not tell."""
        try:
            return self.info(request.submission_id).metadata == request.metadata
        except NoSuchJobError:
            return False
        except ClusterError:
            return None

    def _not_known(self, submission_id: str) -> "NotKnownError":
        return NotKnownError(
            f"{self.url} does not answer any more, and whether {submission_id} was started is not known; "
            f"see: {self.command(f'status {submission_id}')}, or send it again with --submission-id {submission_id}"
        )

    def info(self, submission_id: str) -> JobInfo:
        """One job.

        Raises:
            NoSuchJobError: the cluster has no job of this id.
        """
        found = self._transport.ask(lambda: self._transport.sdk.get_job_info(_quoted(submission_id)), submission_id)
        return _job_info(found)

    def last_attempt(self, submission_id: str) -> JobInfo:
        """The last attempt of a run, by the id of any: one that failed, or is forgotten, may have been followed.

        Raises:
            NoSuchJobError: the cluster has no job of this id, nor one that followed it.
        """
        try:
            info = self.info(submission_id)
        except NoSuchJobError:
            for job in self.jobs():
                asked, its = (attempt_number(name, job.run) for name in (submission_id, job.submission_id))
                if asked is not None and its is not None and its > asked:
                    return job
            raise
        if info.status == "FAILED":
            with suppress(ClusterError):  # then it is not known whether it was followed
                return next((job for job in self.jobs() if job.run == info.run), info)
        return info

    def jobs(self) -> list[JobInfo]:
        """All jobs that came in through the Jobs API, newest first."""
        found = [job for job in self._transport.read(self._transport.sdk.list_jobs, "list") if job.submission_id]
        return sorted(map(_job_info, found), key=lambda job: job.start_ms or 0, reverse=True)

    def logs(self, submission_id: str) -> str:
        """The whole driver log."""
        try:
            return str(
                self._transport.ask(lambda: self._transport.sdk.get_job_logs(_quoted(submission_id)), submission_id)
            )
        except ClusterError as error:
            if "UnicodeDecodeError" not in str(error.__cause__):
                raise
            return self._logs_as_bytes(submission_id)

    def _logs_as_bytes(self, submission_id: str) -> str:
        """The same by another way: the Jobs API gives nothing at all of a log that has one bad byte."""
        job = self._transport.ask(lambda: self._transport.sdk.get_job_info(_quoted(submission_id)), submission_id)
        path = (
            f"/api/v0/logs/file?node_id={job.driver_node_id}&filename=job-driver-{_quoted(submission_id)}.log&lines=-1"
        )
        content = self._transport.get(path, read=lambda answer: answer.content)
        with io.TextIOWrapper(io.BytesIO(content), "utf-8", errors="replace") as text:
            return text.read()  # line ends as the Jobs API has them

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """The driver log from its first byte on, for as long as the connection holds. Its end proves nothing."""
        return self._transport.sdk.tail_job_logs(_quoted(submission_id))

    def stop(self, submission_id: str) -> None:
        """Asks the job to end. It has not ended when this returns."""
        self._transport.ask(lambda: self._transport.sdk.stop_job(_quoted(submission_id)), submission_id)

    def forget(self, submission_id: str) -> None:
        """Takes a job that is over off the cluster's list."""
        self._transport.ask(lambda: self._transport.sdk.delete_job(_quoted(submission_id)), submission_id)


def _quoted(submission_id: str) -> str:
    """An id as a part of a URL: Ray's client puts it in as it is."""
    return quote(submission_id, safe="")


def _is_of_this_machine(ip: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
            probe.bind((ip, 0))
    except OSError:
        return False
    return True


def _job_info(found: Any) -> JobInfo:
    return JobInfo(
        submission_id=found.submission_id,
        status=str(getattr(found.status, "value", found.status)),
        message=(found.message or "").partition(_LOG_FOLLOWS)[0],
        exit_code=getattr(found, "driver_exit_code", None),  # an older Ray has none
        start_ms=found.start_time,
        end_ms=found.end_time,
        metadata=dict(found.metadata or {}),
        error_type=_error_type(found),
    )


def _error_type(found: Any) -> str | None:
    told = getattr(found, "error_type", None)  # an older Ray has none
    return str(getattr(told, "value", told)) if told else None
