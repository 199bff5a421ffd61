"""Checks before anything runs: each asks one thing, all at once, and none is waited for too long."""

import json
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from rayferry.job import sample
from rayferry.job.earlier import NOTHING_EARLIER, Earlier
from rayferry.job.errors import RayferryError, UnseenError
from rayferry.job.probe import MARK, NAMES
from rayferry.job.spec import JobSpec
from rayferry.submit import probes, report, s3
from rayferry.submit.client import Cluster, JobInfo
from rayferry.submit.config import Address
from rayferry.submit.probes import PreflightError
from rayferry.submit.request import SubmitRequest, build_probe
from rayferry.submit.transport import NoSuchJobError, UnreachableError

__all__ = ["PreflightError", "Probe", "preflight", "require"]

T = TypeVar("T")
PROBE_JOB = "probe-job"  # what --skip calls the cluster's own look
_LIMIT_S = 25.0
_CLUSTER_LIMIT_S = 120.0  # an environment may have to be installed first
_STOP_LIMIT_S = 15.0  # an environment that is being installed cannot be stopped
_INTERRUPTED_STOP_LIMIT_S = 3.0
_AGAIN_S = 3.0
_POLL_S = 0.3
# What becomes of a question that has no answer from here.
_LATER = {
    "capacity": "the job plans its replicas again when it starts",
    "input": "the job lists its input when it starts, and ends at once if nothing is there",
    "rows": "the job reads them all; bad ones become rows of errors/",
    "output": "the job looks there when it starts, and ends at once if it is not empty or cannot be written",
    "model": "the replicas load it when they start, and the job ends if they cannot",
    "engine": "the replicas ask vLLM when they start, and the job ends if it does not have them",
}


@dataclass(frozen=True)
class Probe:
    """One check's outcome.

    Attributes:
        name: what was checked.
        outcome: `ok`, `failed`, `unknown` where it cannot be checked from here, or `skipped`.
        text: what was seen, or what to do.
        seconds: how long it took.
        elsewhere: where it is unknown, the cluster may see it.
    """

    name: str
    outcome: str
    text: str
    seconds: float
    elsewhere: bool = False

    def to_json(self) -> dict[str, Any]:
        """As `check --json` prints it."""
        return {"name": self.name, "outcome": self.outcome, "text": self.text, "seconds": self.seconds}


class _Once(Generic[T]):
    """What several checks need: made by whoever asks first, while the others wait."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: Future[T] = Future()
        self._first = threading.Lock()

    def __call__(self) -> T:
        if self._first.acquire(blocking=False):
            try:
                self._made.set_result(self._make())
            except BaseException as error:  # noqa: BLE001  # it is raised for everybody who asks
                self._made.set_exception(error)
        return self._made.result()


def preflight(
    spec: JobSpec,
    address: Address,
    connect: Callable[[], Cluster],
    package: dict[str, Any],
    skip: Collection[str] = (),
    earlier: Earlier = NOTHING_EARLIER,
) -> list[Probe]:
    """Runs every check, all at once. One that gives no answer in time is left behind.

    Args:
        spec: the job.
        address: the cluster's.
        connect: gives the client; called at most once, in a thread, as it may take its time.
        package: what is to be sent, as a request describes it.
        skip: names of checks to leave out.
        earlier: what becomes of what the output holds.
    """
    checks = _checks(spec, address, connect, package, earlier)
    start = time.monotonic()
    running = {name: _start(name, ask) for name, ask in checks.items() if name not in skip}
    found = []
    for name in checks:
        if name not in running:
            found.append(Probe(name, "skipped", "", 0.0))
            continue
        try:
            found.append(running[name].result(max(0.0, start + _LIMIT_S - time.monotonic())))
        except TimeoutError:
            outcome, text = _no_answer(name, address)
            found.append(Probe(name, outcome, text, time.monotonic() - start, elsewhere=outcome == "unknown"))
    return found


def ask_from_cluster(
    spec: JobSpec,
    connect: Callable[[], Cluster],
    found: Sequence[Probe],
    skip: Collection[str] = (),
    earlier: Earlier = NOTHING_EARLIER,
) -> list[Probe]:
    """Lets the cluster's head look where the laptop cannot: what it has no credentials for, and paths there.

    Runs a small job in the job's own environment, and takes it off the cluster's list again.

    Args:
        spec: the job.
        connect: gives the client.
        found: what was seen from the laptop.
        skip: checks that are left out; PROBE_JOB among them leaves all as it is.
        earlier: what becomes of what the output holds.

    Returns:
        `found`, with the cluster's answers where it had none.
    """
    unseen = [probe.name for probe in found if probe.outcome == "unknown" and probe.elsewhere and probe.name in NAMES]
    if not unseen or PROBE_JOB in skip or ("cluster", "ok") not in {(probe.name, probe.outcome) for probe in found}:
        return list(found)
    report.note(f"asking the cluster about what cannot be seen from here ({', '.join(unseen)}), by a small job")
    start = time.monotonic()
    answers: dict[str, tuple[str, str]] = {}
    why = "it says nothing of it"
    try:
        answers = _answers_of(connect(), build_probe(spec, "", unseen, earlier))
    except RayferryError as error:
        why = str(error)
    seconds = time.monotonic() - start

    def better(probe: Probe) -> Probe:
        if probe.name not in unseen:
            return probe
        if probe.name not in answers:
            return replace(probe, text=f"{probe.text}; the cluster could not look either: {why}")
        outcome, text = answers[probe.name]
        return replace(probe, outcome=outcome, text=f"{text} (seen from the cluster)", seconds=seconds)

    return [better(probe) for probe in found]


def _answers_of(cluster: Cluster, request: SubmitRequest) -> dict[str, tuple[str, str]]:
    """What `rayferry.job.probe` said.

    Raises:
        RayferryError: it could not run, or not in time.
    """
    name = request.submission_id
    limit_s = _STOP_LIMIT_S
    try:
        cluster.submit(request)
        info, log = _log_at_end(cluster, name)
    except KeyboardInterrupt:
        limit_s = _INTERRUPTED_STOP_LIMIT_S
        raise
    finally:
        _leave_nothing(cluster, name, limit_s)
    answers = {}
    for line in log.splitlines():
        if line.startswith(MARK):
            with suppress(ValueError):
                of, outcome, text = json.loads(line.removeprefix(MARK))
                answers[of] = (outcome, text)
    if not answers:
        told = [line for line in log.splitlines() if line.strip()][-1:]
        msg = " ".join(["its job ended without an answer:", info.status, info.message, *told])
        raise UnseenError(msg)
    return answers


def _log_at_end(cluster: Cluster, name: str) -> tuple[JobInfo, str]:
    deadline = time.monotonic() + _CLUSTER_LIMIT_S
    while True:
        try:
            info = cluster.info(name)
            if info.is_over:
                return info, cluster.logs(name)
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
        else:
            if time.monotonic() > deadline:
                msg = f"its job was not over in {_CLUSTER_LIMIT_S:g} s ({info.status}: {info.message})"
                raise UnseenError(msg)
        time.sleep(_POLL_S)


def _leave_nothing(cluster: Cluster, name: str, limit_s: float) -> None:
    """Ends a job and takes it off the cluster's list, if it is there."""
    deadline = time.monotonic() + limit_s
    see = f"the job that looked may still be there; end it: {cluster.command(f'stop {name}')}"
    try:
        while not cluster.info(name).is_over:
            cluster.stop(name)
            if time.monotonic() > deadline:
                report.note(see)
                return
            time.sleep(_POLL_S)
        cluster.forget(name)
        # Ray's monitor of it may not have seen its end yet, and then writes down that its supervisor died
        end = time.monotonic() + _AGAIN_S
        while time.monotonic() < end:
            time.sleep(_POLL_S)
            with suppress(NoSuchJobError):
                cluster.forget(cluster.info(name).submission_id)
                return
    except NoSuchJobError:
        pass
    except RayferryError:
        report.note(see)
    except KeyboardInterrupt:
        report.note(see)
        raise


def require(found: Sequence[Probe]) -> None:
    """Lets a job pass whose checks did not fail.

    Raises:
        PreflightError: a line for each that failed.
    """
    failed = [probe.text for probe in found if probe.outcome == "failed"]
    if failed:
        raise PreflightError("\n".join(failed))


def _checks(
    spec: JobSpec, address: Address, connect: Callable[[], Cluster], package: dict[str, Any], earlier: Earlier
) -> dict[str, Callable[[], str]]:
    cluster = _Once(connect)

    def head_is_here() -> bool:
        if not address.is_loopback:
            return False
        try:
            return cluster().is_here()
        except RayferryError:  # its own check tells; without an answer the address decides
            return True

    is_here = _Once(head_is_here)
    listed = _Once(lambda: probes.list_input(spec, is_here))
    return {
        "cluster": lambda: probes.ask_cluster(cluster()),
        "capacity": lambda: probes.ask_capacity(spec, cluster, address.most),
        "input": lambda: probes.ask_input(listed()),
        "rows": lambda: sample.ask_rows(spec, listed),
        "output": lambda: probes.ask_output(spec, is_here, earlier),
        "model": lambda: probes.ask_model(spec, is_here),
        "engine": lambda: probes.ask_engine(spec),
        "package": lambda: probes.ask_package(package),
    }


def _start(name: str, ask: Callable[[], str]) -> "Future[Probe]":
    """Asks in a thread that does not keep the process alive."""
    future: Future[Probe] = Future()
    threading.Thread(target=lambda: future.set_result(_run(name, ask)), daemon=True, name=f"check {name}").start()
    return future


def _run(name: str, ask: Callable[[], str]) -> Probe:
    start = time.monotonic()
    elsewhere = False
    try:
        outcome, text = "ok", ask()
    except (s3.NoAccessError, UnseenError) as error:
        outcome, text = "unknown", _with_later(name, str(error))
        elsewhere = error.elsewhere if isinstance(error, UnseenError) else True
    except RayferryError as error:
        outcome, text = "failed", str(error)
    except Exception as error:  # noqa: BLE001  # a fault of the check is none of the job
        outcome = "failed" if name == "cluster" else "unknown"
        text = f"{name}: the check broke off: {type(error).__name__}: {error}"
    return Probe(name, outcome, text, time.monotonic() - start, elsewhere)


def _no_answer(name: str, address: Address) -> tuple[str, str]:
    if name == "cluster":
        return "failed", f"no answer from {address.url} in {_LIMIT_S:g} s; check the address and the network"
    return "unknown", _with_later(name, f"{name}: no answer in {_LIMIT_S:g} s")


def _with_later(name: str, text: str) -> str:
    return f"{text}; {_LATER[name]}" if name in _LATER else text
