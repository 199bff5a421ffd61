"""The runs of firings on their clusters: started, looked at, stopped."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rayferry.job.earlier import Earlier, attempt_id
from rayferry.job.errors import RayferryError
from rayferry.job.spec import JobSpec, parse
from rayferry.submit import collect, failure, launch, retry, s3
from rayferry.submit.client import Cluster, JobInfo
from rayferry.submit.config import Address
from rayferry.submit.preflight import PROBE_JOB
from rayferry.submit.schedule.decide import Standing
from rayferry.submit.schedule.records import Firing
from rayferry.submit.transport import ClusterError, NoSuchJobError


@dataclass(frozen=True)
class Look:
    """How the last attempt of a run stands.

    Attributes:
        standing: see `Standing`.
        state: the firing's state that its end means, if it is over.
        reason: in words.
        result: as `rayferry submit --json` gives it, if it is over.
        again: a further attempt may do better.
    """

    standing: Standing
    state: str = ""
    reason: str | None = None
    result: dict[str, Any] | None = None
    again: bool = False


class Runs(Protocol):
    """What a scheduler needs of clusters."""

    def start(self, firing: Firing) -> str:
        """Sees that the attempt runs, or has run, and starts it if not. Gives the cluster's address.

        Raises:
            SpecError: there is no job to be made of it.
            RayferryError: it could not be started, or is not known to have been.
        """

    def look(self, firing: Firing) -> Look:
        """How the attempt stands."""

    def stop(self, firing: Firing) -> None:
        """Asks it to end.

        Raises:
            RayferryError: the cluster does not answer.
        """


class RayRuns:
    """By the Jobs API.

    Args:
        address_of: the cluster, of what a schedule and its job file name.
    """

    def __init__(self, address_of: Callable[[str | None], Address]) -> None:
        self._address_of = address_of
        self._clusters: dict[str, Cluster] = {}
        self._lock = threading.Lock()

    def start(self, firing: Firing) -> str:
        """See `Runs`."""
        spec = _spec(firing)
        address = self._address_of(firing.address or spec.cluster.address)
        name = name_of(firing)
        cluster = self._cluster(address)
        if not _has(cluster, name) and not _has_begun(spec, name):
            later = firing.attempt > 1
            earlier = Earlier(run=firing.run, later=later, over=_over(cluster, firing) if later else ())
            launch.submit(spec, address, name, (PROBE_JOB,), earlier)  # nobody waits for what a look beforehand tells
        return address.url

    def look(self, firing: Firing) -> Look:
        """See `Runs`."""
        name = name_of(firing)
        try:
            spec = _spec(firing)
            cluster = self._cluster(self._address_of(firing.address or spec.cluster.address))
            info = cluster.info(name)
        except NoSuchJobError:
            return _by_output(spec.output.uri, name)
        except RayferryError as error:
            return Look("unknown", reason=str(error))
        if not info.is_over:
            return Look("running", reason=info.message)
        return _ended(cluster, info)

    def stop(self, firing: Firing) -> None:
        """See `Runs`."""
        cluster = self._cluster(self._address_of(firing.address or _spec(firing).cluster.address))
        cluster.stop(name_of(firing))

    def _cluster(self, address: Address) -> Cluster:
        with self._lock:
            found = self._clusters.get(address.url)
        if found is None:
            found = Cluster(address)
            with self._lock:
                self._clusters[address.url] = found
        return found


def name_of(firing: Firing) -> str:
    """The submission id of a firing's last attempt."""
    return attempt_id(firing.submission_id or "", firing.attempt)


def _spec(firing: Firing) -> JobSpec:
    return parse(firing.job, f"schedule {firing.schedule}, {firing.scheduled_time}")


def _has(cluster: Cluster, name: str) -> bool:
    try:
        cluster.info(name)
    except NoSuchJobError:
        return False
    return True


def _has_begun(spec: JobSpec, name: str) -> bool:
    """True if the output tells of this attempt, which the cluster has forgotten."""
    try:
        return bool(collect.read_outcome(spec.output.uri)["submission_id"] == name)
    except RayferryError:  # nothing is there, or it cannot be seen from here: the cluster's word counts
        return False


def _over(cluster: Cluster, firing: Firing) -> tuple[str, ...]:
    """The earlier attempts that are known to be over."""
    over = []
    for number in range(1, firing.attempt):
        name = attempt_id(firing.submission_id or "", number)
        try:
            over += [name] if cluster.info(name).is_over else []
        except ClusterError:  # what it started on other nodes may live a little longer
            continue
    return tuple(over)


def _ended(cluster: Cluster, info: JobInfo) -> Look:
    code, manifest, missing = launch.judge(cluster, info)
    sort = failure.sort(info)
    state = "succeeded" if code == 0 else "stopped" if info.status == "STOPPED" else "failed"
    reason = None
    if code == collect.EXIT_TOO_MANY_ERRORS:
        reason = "more rows failed than max_error_rate allows"
    elif code != 0:
        reason = str(missing) if info.status == "SUCCEEDED" else (info.message.splitlines() or [info.status])[0]
    again = sort is not None and sort.name in retry.CLASSES
    return Look("over", state, reason, launch.outcome(info, manifest, code), again)


def _by_output(output_uri: str, name: str) -> Look:
    """How a job ended that the cluster does not know, as far as its output tells."""
    try:
        if collect.read_outcome(output_uri)["submission_id"] != name:
            return Look("forgotten", reason="the cluster does not know it, and its output tells of another run")
        record = collect.ended(output_uri)
    except (s3.NotThereError, s3.NoAccessError):
        return Look("forgotten", reason="the cluster does not know it, and its output does not tell how it ended")
    except s3.StorageError as error:
        return Look("unknown", reason=str(error))
    except RayferryError:  # it was running when the cluster went down
        return Look("forgotten", reason="the cluster was restarted while it ran")
    state = {"SUCCEEDED": "succeeded", "STOPPED": "stopped"}.get(str(record["status"]), "failed")
    result = {key: record[key] for key in ("submission_id", "status", "exit_code", "output_uri")}
    return Look("over", state, record["error"], result)
