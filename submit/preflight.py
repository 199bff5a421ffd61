"""Checks before anything runs: each asks one thing, all at once, and none is waited for too long."""

import json
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from rayferry.job.errors import RayferryError
from rayferry.job.probe import MARK
from rayferry.job.spec import JobSpec
from rayferry.submit import probes, s3, sample
from rayferry.submit.client import Cluster
from rayferry.submit.config import Address
from rayferry.submit.probes import PreflightError, UnseenError
from rayferry.submit.request import build_probe
from rayferry.submit.transport import ClusterError

__all__ = ["PreflightError", "Probe", "preflight", "require"]

T = TypeVar("T")
_LIMIT_S = 25.0
_CLUSTER_LIMIT_S = 120.0  # an environment may have to be installed first
_POLL_S = 0.3
_SEEN_FROM_CLUSTER = {"input", "output", "model"}
# What becomes of a question that has no answer from here.
_LATER = {
    "capacity": "the job plans its replicas again when it starts",
    "input": "the job lists its input when it starts, and ends at once if nothing is there",
    "rows": "the job reads them all; bad ones become rows of errors/",
    "output": "the job looks there when it starts, and ends at once if it is not empty or cannot be written",
    "model": "the replicas load it when they start, and the job ends if they cannot",
}


@dataclass(frozen=True)
class Probe:
    """One check's outcome.

    Attributes:
        name: what was checked.
        outcome: `ok`, `failed`, `unknown` where it cannot be checked from here, or `skipped`.
        text: what was seen, or what to do.
        seconds: how long it took.
    """

    name: str
    outcome: str
    text: str
    seconds: float


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
    *,
    may_hold: bool = False,
) -> list[Probe]:
    """Runs every check, all at once. One that gives no answer in time is left behind.

    Args:
        spec: the job.
        address: the cluster's.
        connect: gives the client; called at most once, in a thread, as it may take its time.
        package: what is to be sent, as a request describes it.
        skip: names of checks to leave out.
        may_hold: the output may hold an earlier attempt.
    """
    checks = _checks(spec, address, connect, package, may_hold=may_hold)
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
            found.append(Probe(name, *_no_answer(name, address), time.monotonic() - start))
    return found


def ask_from_cluster(spec: JobSpec, cluster: Cluster, found: Sequence[Probe], *, may_hold: bool = False) -> list[Probe]:
    """Lets a node of the cluster look where the laptop cannot: what it has no credentials for, and paths there.

    Runs a small job in the job's own environment, and takes it off the cluster's list again.

    Args:
        spec: the job.
        cluster: where to look from.
        found: what was seen from the laptop.
        may_hold: the output may hold an earlier attempt.

    Returns:
        `found`, with the cluster's answers where it had none.
    """
    unseen = {probe.name for probe in found if probe.outcome == "unknown"} & _SEEN_FROM_CLUSTER
    if not spec.model.startswith(("s3://", "/", "file://")):  # a hub id
        unseen.discard("model")
    if not unseen:
        return list(found)
    start = time.monotonic()
    try:
        answers = _answers_of(cluster, spec, may_hold=may_hold)
    except RayferryError as error:
        answers = dict.fromkeys(unseen, ("unknown", f"the cluster could not look either: {error}"))
    seconds = time.monotonic() - start

    def better(probe: Probe) -> Probe:
        if probe.name not in unseen or probe.name not in answers:
            return probe
        outcome, text = answers[probe.name]
        return replace(probe, outcome=outcome, text=f"{text} (seen from the cluster)", seconds=seconds)

    return [better(probe) for probe in found]


def _answers_of(cluster: Cluster, spec: JobSpec, *, may_hold: bool) -> dict[str, tuple[str, str]]:
    """What `rayferry.job.probe` said.

    Raises:
        RayferryError: it could not run, or not in time.
    """
    request = build_probe(spec, cluster.url, may_hold=may_hold)
    name = request.submission_id
    cluster.submit(request)
    deadline = time.monotonic() + _CLUSTER_LIMIT_S
    try:
        info = cluster.info(name)
        while not info.is_over:
            if time.monotonic() > deadline:
                cluster.stop(name)
                msg = f"its job {name} was not over in {_CLUSTER_LIMIT_S:g} s ({info.status}: {info.message})"
                raise UnseenError(msg)
            time.sleep(_POLL_S)
            info = cluster.info(name)
    except KeyboardInterrupt:
        cluster.stop(name)
        raise
    lines = [line for line in cluster.logs(name).splitlines() if line.startswith(MARK)]
    if not lines:
        see = cluster.command(f"logs --raw {name}")
        msg = f"its job {name} ended without an answer ({info.status}: {info.message}); see: {see}"
        raise UnseenError(msg)
    with suppress(ClusterError):  # it did what it was for
        cluster.forget(name)
    return {key: (outcome, text) for key, (outcome, text) in json.loads(lines[-1].removeprefix(MARK)).items()}


def require(found: Sequence[Probe]) -> None:
    """Lets a job pass whose checks did not fail.

    Raises:
        PreflightError: a line for each that failed.
    """
    failed = [probe.text for probe in found if probe.outcome == "failed"]
    if failed:
        raise PreflightError("\n".join(failed))


def _checks(
    spec: JobSpec, address: Address, connect: Callable[[], Cluster], package: dict[str, Any], *, may_hold: bool
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
        "output": lambda: probes.ask_output(spec, is_here, may_hold=may_hold),
        "model": lambda: probes.ask_model(spec, is_here),
        "package": lambda: probes.ask_package(package),
    }


def _start(name: str, ask: Callable[[], str]) -> "Future[Probe]":
    """Asks in a thread that does not keep the process alive."""
    future: Future[Probe] = Future()
    threading.Thread(target=lambda: future.set_result(_run(name, ask)), daemon=True, name=f"check {name}").start()
    return future


def _run(name: str, ask: Callable[[], str]) -> Probe:
    start = time.monotonic()
    try:
        outcome, text = "ok", ask()
    except (s3.NoAccessError, UnseenError) as error:
        outcome, text = "unknown", _with_later(name, str(error))
    except RayferryError as error:
        outcome, text = "failed", str(error)
    except Exception as error:  # noqa: BLE001  # a fault of the check is none of the job
        outcome = "failed" if name == "cluster" else "unknown"
        text = f"{name}: the check broke off: {type(error).__name__}: {error}"
    return Probe(name, outcome, text, time.monotonic() - start)


def _no_answer(name: str, address: Address) -> tuple[str, str]:
    if name == "cluster":
        return "failed", f"no answer from {address.url} in {_LIMIT_S:g} s; check the address and the network"
    return "unknown", _with_later(name, f"{name}: no answer in {_LIMIT_S:g} s")


def _with_later(name: str, text: str) -> str:
    return f"{text}; {_LATER[name]}" if name in _LATER else text
