"""The runs of firings on their clusters: started, looked at, stopped."""

import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from rayferry.job.earlier import Earlier, attempt_id
from rayferry.job.errors import EXIT_PASSING, RayferryError
from rayferry.job.spec import JobSpec, parse
from rayferry.submit import collect, failure, launch, retry, s3
from rayferry.submit.client import Cluster, JobInfo
from rayferry.submit.config import Address
from rayferry.submit.preflight import PROBE_JOB
from rayferry.submit.schedule.decide import Standing
from rayferry.submit.schedule.records import Firing
from rayferry.submit.transport import ClusterError, NoSuchJobError, UnreachableError

# Exit codes of a job that the cluster has forgotten: 143 is of a head that goes down, or of a stop right before.
_AGAIN = {EXIT_PASSING, 143}

T = TypeVar("T")


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

    def place(self, firing: Firing, named: str | None) -> dict[str, str | None]:
        """The firing's `address`, `session` and `seen_from`: of the cluster to which its run is to go.

        Args:
            firing: with its job.
            named: the address that its schedule names.

        Raises:
            RayferryError: no cluster is named, or it does not answer.
        """

    def start(self, firing: Firing) -> str:
        """Sees that the attempt runs, or has run, and starts it if not. Gives the cluster's address.

        Raises:
            SpecError: there is no job to be made of it.
            NotKnownError: it may have been started.
            RayferryError: it could not be started.
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

    A run is looked for where its firing says that it was sent. If that is an address of another machine, or nothing
    answers there, it is looked for on this scheduler's own cluster too, provided that it is the same one.

    Args:
        address_of: the cluster to send to, of what a schedule and its job file name.
        recorded: how to speak to an address that a firing has.
        is_tunnel: whether `address_of` gives the end of a tunnel, which is of use to this process alone.
    """

    def __init__(
        self,
        address_of: Callable[[str | None], Address],
        recorded: Callable[[str], Address] = lambda url: Address(url, "the firing"),
        *,
        is_tunnel: bool = False,
    ) -> None:
        self._address_of = address_of
        self._recorded = recorded
        self._host = socket.gethostname()
        self._tunnel = f"a tunnel of {self._host} ({secrets.token_hex(4)})" if is_tunnel else None
        self._clusters: dict[str, Cluster] = {}
        self._lock = threading.Lock()

    def place(self, firing: Firing, named: str | None) -> dict[str, str | None]:
        """See `Runs`."""
        address = self._address_of(named or _own_address(firing))
        session = self._cluster(address).version().get("session_name")
        seen_from = self._tunnel or (self._host if address.is_loopback else None)
        return {"address": address.url, "session": session, "seen_from": seen_from}

    def start(self, firing: Firing) -> str:
        """See `Runs`."""
        spec = _spec(firing)
        if firing.address is None:
            self.place(firing, None)
            msg = "no cluster answered when it was to be submitted"
            raise UnreachableError(msg)
        name = firing.latest_submission_id
        address, is_there = self._asked(firing, lambda address: (address, _has(self._cluster(address), name)))
        if not is_there and not _has_begun(spec, name):
            later = firing.attempt > 1
            over = _over(self._cluster(address), firing) if later else ()
            earlier = Earlier(run=firing.run, later=later, over=over)
            launch.submit(spec, address, name, (PROBE_JOB,), earlier)  # nobody waits for what a look beforehand tells
        return firing.address

    def look(self, firing: Firing) -> Look:
        """See `Runs`."""
        name = firing.latest_submission_id
        try:
            return self._asked(firing, lambda address: _look(self._cluster(address), name))
        except NoSuchJobError:
            return _by_output(firing.output_uri or "", name)
        except RayferryError as error:
            return Look("unknown", reason=str(error))

    def stop(self, firing: Firing) -> None:
        """See `Runs`."""
        self._asked(firing, lambda address: self._cluster(address).stop(firing.latest_submission_id))

    def _asked(self, firing: Firing, ask: Callable[[Address], T]) -> T:
        """What the firing's cluster answers.

        Raises:
            UnreachableError: it does not, or is out of reach from here.
            RayferryError: what `ask` raises.
        """
        if firing.address is not None and firing.seen_from in {None, self._host, self._tunnel}:
            try:
                return ask(self._recorded(firing.address))
            except UnreachableError:
                own = self._same(firing)
                if own is None:
                    raise
        else:
            own = self._same(firing)
        if own is None:
            where = f", as {firing.seen_from} sees it" if firing.seen_from else ""
            msg = f"{firing.latest_submission_id}: its cluster is {firing.address}{where}; it cannot be asked from here"
            raise UnreachableError(msg)
        return ask(own)

    def _same(self, firing: Firing) -> Address | None:
        """This scheduler's own cluster, if the firing was sent to it under another address."""
        try:
            own = self._address_of(_own_address(firing))
            session = self._cluster(own).version().get("session_name") if own.url != firing.address else None
        except RayferryError:
            return None
        return own if session is not None and session == firing.session else None

    def _cluster(self, address: Address) -> Cluster:
        with self._lock:
            found = self._clusters.get(address.url)
        if found is None:
            found = Cluster(address)
            with self._lock:
                self._clusters[address.url] = found
        return found


def _spec(firing: Firing) -> JobSpec:
    return parse(firing.job, f"schedule {firing.schedule}, {firing.scheduled_time}")


def _own_address(firing: Firing) -> str | None:
    """What the job names as its cluster."""
    named = (firing.job or {}).get("cluster")
    address = named.get("address") if isinstance(named, dict) else None
    return address if isinstance(address, str) else None


def _look(cluster: Cluster, name: str) -> Look:
    info = cluster.info(name)
    return _ended(cluster, info) if info.is_over else Look("running", reason=info.message)


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
    return Look("over", state, record["error"], result, again=record["exit_code"] in _AGAIN)
