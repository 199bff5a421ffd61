"""A run over several attempts: what the cluster spoilt is tried again, what the job spoilt is not."""

import functools
import shlex
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from rayferry.job.earlier import NOTHING_EARLIER, Earlier, attempt_id
from rayferry.job.layout import Layout
from rayferry.job.spec import JobSpec
from rayferry.submit import failure, launch, report
from rayferry.submit.client import Cluster
from rayferry.submit.config import Address
from rayferry.submit.follow import LostContactError
from rayferry.submit.pauses import growing_pauses
from rayferry.submit.preflight import PROBE_JOB
from rayferry.submit.probes import PreflightError
from rayferry.submit.request import SubmitRequest
from rayferry.submit.signals import EXIT_INTERRUPTED, if_interrupted
from rayferry.submit.transport import ClusterError, NoSuchJobError, UnreachableError

_FIRST_PAUSE_S = 10.0
_PATIENCE_S = 600.0  # with a cluster that comes back, and nodes that join it
CLASSES = {"cluster", "capacity"}  # of failures, that are tried again


def run(  # noqa: PLR0913  # all that the command line says
    spec: JobSpec,
    address: Address,
    submission_id: str,
    watch: launch.Watch,
    *,
    cluster: Cluster,
    skip: Collection[str] = (),
    earlier: Earlier = NOTHING_EARLIER,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Follows a run that was submitted to its end, over as many attempts as the job file allows.

    An attempt that failed by the cluster or for want of capacity, or that the cluster has forgotten, is followed by
    one that goes on where it was.

    Args:
        spec: the job.
        address: the cluster's.
        submission_id: the run's first attempt, which was submitted.
        watch: how it is followed.
        cluster: the client.
        skip: names of checks to leave out of later attempts.
        earlier: as the first attempt was sent; a later one does the same if none before began.
        sleep: waits so many seconds.

    Returns:
        The exit code.

    Raises:
        LostContactError: the cluster stopped answering.
        RayferryError: a later attempt could not be submitted.
    """
    breaks = growing_pauses(_FIRST_PAUSE_S)
    number = 1
    while True:
        name = attempt_id(submission_id, number)
        is_last = number == spec.retry.max_attempts
        try:
            info = launch.to_its_end(cluster, name, watch)
        except (LostContactError, NoSuchJobError) as error:  # the cluster had it, so it has forgotten it
            if is_last or not _has_forgotten(address, name):
                raise
            report.note(str(error))
            over: tuple[str, ...] = ()  # what it started on other nodes may live a little longer
        else:
            if info is None:
                return EXIT_INTERRUPTED
            sort = failure.sort(info)
            if is_last or sort is None or sort.name not in CLASSES:
                return launch.conclude(cluster, info, as_json=watch.as_json)
            launch.explain(cluster, info, goes_on=True)
            over = (name,)
        number += 1
        pause = next(breaks)
        following = attempt_id(submission_id, number)
        go_on = address.command(f"resume {shlex.quote(Layout(spec.output.uri).output_uri)}")
        if earlier.overwrite:
            go_on += "; if it had not begun to write, submit it again with --overwrite"
        with if_interrupted(f"go on with: {go_on}"):
            with if_interrupted(f"interrupted before {following} was submitted"):
                report.note(f"attempt {number} of {spec.retry.max_attempts} in {pause:.0f} s: {following}")
                sleep(pause)
            left_out = {*skip, PROBE_JOB}  # the first one was told
            following_up = replace(earlier, later=True, over=(*earlier.over, *over))
            send = functools.partial(launch.submit, spec, address, following, left_out, following_up)
            cluster = _patiently(send, breaks, sleep)


def _patiently(
    submit: Callable[[], tuple[Cluster, SubmitRequest]], breaks: Iterator[float], sleep: Callable[[float], None]
) -> Cluster:
    """Submits a later attempt; what refuses it was well at the first one, so it is waited for.

    Raises:
        RayferryError: it is not well after ten minutes; or it is not known whether the cluster got the attempt.
    """
    waited = 0.0
    while True:
        try:
            return submit()[0]
        except (UnreachableError, PreflightError) as error:
            if waited >= _PATIENCE_S:
                raise
            pause = next(breaks)
            report.note(f"{error}; trying again in {pause:.0f} s")
            sleep(pause)
            waited += pause


def _has_forgotten(address: Address, name: str) -> bool:
    """True if the cluster answers and has no such job: it was restarted, so the job runs no more."""
    try:
        Cluster(address).info(name)
    except NoSuchJobError:
        return True
    except ClusterError:
        return False
    return False
