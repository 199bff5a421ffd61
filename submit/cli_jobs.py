"""Commands about a job that was submitted, and about its answers."""

import sys

import click

from rayferry.job.errors import RayferryError
from rayferry.submit.cli_shared import address_option, cluster_of, json_option, seconds_of, timeout_option


@click.command()
@click.argument("submission_id")
@address_option
@json_option
def status(submission_id: str, address: str | None, as_json: bool) -> None:
    """Print the state of a job."""
    from dataclasses import asdict

    from rayferry.submit import report

    info = cluster_of(address).info(submission_id)
    if as_json:
        report.json_datum(asdict(info) | {"output_uri": info.output_uri})
        return
    if info.output_uri:
        report.note(f"output: {info.output_uri}")
    if info.message and info.status != "SUCCEEDED":
        report.note(info.message.splitlines()[0])
    report.datum(info.status)


@click.command()
@click.argument("submission_id")
@address_option
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the job ends; exit as submit would.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Of the lines that are there already, the last N.")
@click.option("--raw", is_flag=True, help="Show all lines, Ray's and vLLM's too.")
@timeout_option
def logs(
    submission_id: str, address: str | None, following: bool, tail: int | None, raw: bool, timeout: str | None
) -> None:
    """Print a job's log."""
    from rayferry.submit import launch, report
    from rayferry.submit.follow import our_lines

    timeout_s = seconds_of(timeout)
    cluster = cluster_of(address)
    if following:
        cluster.info(submission_id)
        sys.exit(launch.wait(cluster, submission_id, launch.Watch(raw=raw, timeout_s=timeout_s, tail=tail)))
    lines: list[str] = []
    show = lines.append if raw else our_lines(lines.append)
    for line in cluster.logs(submission_id).splitlines():
        show(line)
    for line in lines if tail is None else lines[max(0, len(lines) - tail) :]:
        report.datum(line)


@click.command()
@click.argument("submission_id")
@address_option
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for the end.")
def stop(submission_id: str, address: str | None, timeout: float) -> None:
    """Stop a job and wait until it is over."""
    from rayferry.submit import launch, report

    report.datum(launch.stop(cluster_of(address), submission_id, timeout).status)


@click.command("list")
@address_option
@click.option("--all", "every", is_flag=True, help="Also jobs that others submitted.")
@json_option
def list_jobs(address: str | None, every: bool, as_json: bool) -> None:
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
@click.argument("job_or_uri", metavar="ID|URI")
@address_option
@json_option
def result(job_or_uri: str, address: str | None, as_json: bool) -> None:
    """Print where the answers of a finished job are; ID may be its output URI."""
    from rayferry.submit import collect, report
    from rayferry.submit.s3 import NotThereError

    uri: str | None = job_or_uri
    info = None
    if "/" not in job_or_uri:
        try:
            info = cluster_of(address).info(job_or_uri)
        except RayferryError as error:
            error.add_note("the output URI in place of the id needs no cluster: rayferry result URI")
            raise
        if not info.is_over:
            msg = f"{job_or_uri} is {info.status}; wait for it: rayferry logs -f {job_or_uri}"
            raise RayferryError(msg)
        uri = info.output_uri
    if uri is None:
        msg = f"{job_or_uri} was not submitted by rayferry, so it has no output URI"
        raise RayferryError(msg)
    try:
        manifest = collect.read_manifest(uri)
    except NotThereError as error:
        if info is None:
            msg = f"{error}; the job is not done (see: rayferry list), or its output URI is another"
            raise RayferryError(msg) from error
        msg = f"{job_or_uri} is {info.status}, and there is no result; see: rayferry logs {job_or_uri}"
        raise RayferryError(msg) from error
    if "/" not in job_or_uri and manifest["submission_id"] != job_or_uri:
        msg = f"{uri} holds the answers of {manifest['submission_id']}, not of {job_or_uri}"
        raise RayferryError(msg)
    report.note(report.summary(manifest))
    if as_json:
        report.json_datum(manifest)
    else:
        report.datum(uri)


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
