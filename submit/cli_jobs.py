"""Commands about a job that was submitted, and about its answers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from shlex import quote
from typing import TYPE_CHECKING

import click

from rayferry.job.errors import RayferryError
from rayferry.submit.cli_shared import (
    Flags,
    address_option,
    cluster_of,
    job_id_argument,
    job_or_uri_argument,
    json_option,
    last_attempt,
    seconds_of,
    seconds_to_wait,
    timeout_option,
)

if TYPE_CHECKING:
    from rayferry.submit.client import Cluster


@contextmanager
def _or_by_uri(command: str) -> Iterator[None]:
    """Where the cluster does not tell of a job, says that its output may."""
    try:
        yield
    except RayferryError as error:
        error.add_note(f"the output URI in place of the id needs no cluster: rayferry {command} URI")
        raise


@click.command()
@job_or_uri_argument
@address_option
@json_option
def status(job_or_uri: str, address: Flags, as_json: bool) -> None:
    """Print the state of a job; ID may be its output URI."""
    from dataclasses import asdict

    from rayferry.submit import report

    if "/" in job_or_uri:
        _status_by_uri(job_or_uri, address, as_json=as_json)
        return
    with _or_by_uri("status"):
        info = last_attempt(cluster_of(address), job_or_uri)
    if as_json:
        report.json_datum(asdict(info) | {"output_uri": info.output_uri})
        return
    if info.output_uri:
        report.note(f"output: {info.output_uri}")
    if info.message and info.status != "SUCCEEDED":
        report.note(info.message.splitlines()[0])
    report.datum(info.status)


def _status_by_uri(uri: str, address: Flags, *, as_json: bool) -> None:
    from rayferry.submit import collect, report

    run = collect.ended(uri, address.command)
    if as_json:
        report.json_datum(run)
        return
    report.note(f"job: {run['submission_id']}")
    if run["error"]:
        report.note(run["error"])
    report.datum(run["status"])


@click.command()
@job_or_uri_argument
@address_option
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the job ends; exit as submit would.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Of the lines that are there already, the last N.")
@click.option("--raw", is_flag=True, help="Show all lines, Ray's and vLLM's too.")
@timeout_option
def logs(job_or_uri: str, address: Flags, following: bool, tail: int | None, raw: bool, timeout: str | None) -> None:
    """Print a job's log; ID may be its output URI."""
    from rayferry.submit import report
    from rayferry.submit.follow import our_lines

    timeout_s = seconds_of(timeout)
    if "/" in job_or_uri:
        log = _log_by_uri(job_or_uri, address, following=following)
    else:
        with _or_by_uri("logs"):
            cluster = cluster_of(address)
            if not following:
                log = _own_log(cluster, job_or_uri)
            else:
                job_or_uri = last_attempt(cluster, job_or_uri).submission_id
        if following:
            from rayferry.submit import launch

            sys.exit(launch.wait(cluster, job_or_uri, launch.Watch(raw=raw, timeout_s=timeout_s, tail=tail)))
    lines: list[str] = []
    show = lines.append if raw else our_lines(lines.append)
    for line in log.splitlines():
        show(line)
    for line in lines if tail is None else lines[max(0, len(lines) - tail) :]:
        report.datum(line)


def _own_log(cluster: "Cluster", submission_id: str) -> str:
    """The log of an attempt, or of the last one if the cluster has forgotten it."""
    from rayferry.submit import report
    from rayferry.submit.transport import ClusterError, NoSuchJobError

    try:
        log = cluster.logs(submission_id)
    except NoSuchJobError:
        last = cluster.last_attempt(submission_id).submission_id
        report.note(f"the cluster has forgotten {submission_id}; this is the log of {last}")
        return cluster.logs(last)
    with suppress(ClusterError):
        last_attempt(cluster, submission_id)
    return log


def _log_by_uri(uri: str, address: Flags, *, following: bool) -> str:
    from rayferry.submit import collect

    if following:
        msg = "-f needs the cluster, and so the job's id: what lies under an output URI is a copy of the log"
        raise click.UsageError(msg)
    return collect.read_log(uri, address.command)


@click.command()
@job_id_argument
@address_option
@click.option(
    "--timeout",
    metavar="TIME",
    default="60s",
    show_default=True,
    help="Wait no longer than this for the end, such as 90s or 2m; 0: not at all.",
)
def stop(submission_id: str, address: Flags, timeout: str) -> None:
    """Stop a job and wait until it is over."""
    from rayferry.submit import failure, launch, report, retry

    timeout_s = seconds_to_wait(timeout)
    cluster = cluster_of(address)
    ended = launch.stop(cluster, last_attempt(cluster, submission_id).submission_id, timeout_s)
    report.datum(ended.status)
    found = failure.sort(ended)
    if found and found.name in retry.CLASSES:
        report.note(f"{ended.submission_id} had failed by itself; a submit that still follows it may try again: end it")


@click.command("list")
@address_option
@click.option("--all", "every", is_flag=True, help="Also jobs that others submitted.")
@json_option
def list_jobs(address: Flags, every: bool, as_json: bool) -> None:
    """List the cluster's jobs, newest first."""
    from dataclasses import asdict

    from rayferry.submit import report

    jobs = [job for job in cluster_of(address).jobs() if every or job.output_uri]
    if as_json:
        report.json_datum([asdict(job) | {"output_uri": job.output_uri} for job in jobs])
        return
    rows = [(job.submission_id, job.status, report.clock(job.start_ms), job.output_uri or "") for job in jobs]
    report.table(["submission_id", "status", "started", "output"], rows)


@click.command()
@job_or_uri_argument
@address_option
@json_option
def result(job_or_uri: str, address: Flags, as_json: bool) -> None:
    """Print where the answers of a finished job are; ID may be its output URI."""
    from rayferry.submit import collect, report
    from rayferry.submit.s3 import NotThereError

    uri: str | None = job_or_uri
    info = None
    if "/" not in job_or_uri:
        with _or_by_uri("result"):
            info = last_attempt(cluster_of(address), job_or_uri)
        job_or_uri = info.submission_id
        if not info.is_over:
            msg = f"{job_or_uri} is {info.status}; wait for it: {address.command(f'logs -f {quote(job_or_uri)}')}"
            raise RayferryError(msg)
        uri = info.output_uri
    if uri is None:
        msg = f"{job_or_uri} was not submitted by rayferry, so it has no output URI"
        raise RayferryError(msg)
    try:
        manifest = collect.read_manifest(uri)
    except NotThereError as error:
        if info is None:
            raise RayferryError(_why_no_result(uri, error, address)) from error
        see = address.command(f"logs {quote(job_or_uri)}")
        msg = f"{job_or_uri} is {info.status}, and there is no result; see: {see}"
        raise RayferryError(msg) from error
    if "/" not in job_or_uri and job_or_uri not in manifest["attempts"]:
        msg = f"{uri} holds the answers of {manifest['submission_id']}, not of {job_or_uri}"
        raise RayferryError(msg)
    report.note(report.summary(manifest))
    if as_json:
        report.json_datum(manifest)
    else:
        report.datum(uri)


def _why_no_result(uri: str, error: RayferryError, address: Flags) -> str:
    from rayferry.submit import collect
    from rayferry.submit.s3 import NotThereError

    try:
        run = collect.read_outcome(uri)
    except NotThereError:
        run = {"status": "RUNNING"}
    if run["status"] == "RUNNING":
        return f"{error}; the job is not done (see: {address.command('list')}), or its output URI is another"
    return f"{run['submission_id']} is {run['status']}, and there is no result; see: rayferry logs {quote(uri)}"


@click.command()
@click.argument("uri")
@click.option("-n", "--rows", default=10, show_default=True, type=click.IntRange(1, 1000), help="Rows to show.")
@json_option
def preview(uri: str, rows: int, as_json: bool) -> None:
    """Show the first rows of an output URI, or of any Parquet prefix or file."""
    from rayferry.submit import collect, report

    found = collect.preview(uri, rows)
    if as_json:
        report.json_datum(found.to_pylist())
    else:
        names = collect.shown_columns(found.column_names)
        report.table(names, [list(row.values()) for row in found.select(names).to_pylist()])


COMMANDS = (status, logs, stop, list_jobs, result, preview)
