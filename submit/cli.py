"""The `rayferry` command. Bodies import what they need, so that `--help` takes no time."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayferry.job import VERSION
from rayferry.job.errors import RayferryError, SpecError

if TYPE_CHECKING:
    from rayferry.submit.client import Cluster
    from rayferry.submit.config import Address

address_option = click.option(
    "--address", metavar="URL", help="The cluster's dashboard, such as http://127.0.0.1:8265."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
set_option = click.option("--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change a value of the job file.")


class _Boundary(click.Group):
    """The one place where an error becomes a line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RayferryError as error:
            for line in str(error).splitlines():
                click.echo(f"rayferry: error: {line}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:  # a folder that cannot be written, a disk that is full
            click.echo(f"rayferry: error: {error}; see RAYFERRY_STATE and RAYFERRY_CACHE", err=True)
            ctx.exit(1)


@click.group(cls=_Boundary, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, package_name="rayferry")
def main() -> None:
    """Batch inference with vLLM on a Ray cluster, from your laptop.

    A job file says which prompts, which model and where the answers go; `rayferry submit` does the rest.
    """


@main.command()
@click.argument("job", type=click.Path(path_type=Path))
@set_option
@address_option
@click.option("--submission-id", metavar="ID", help="The job's id; by default name, time and six hex digits.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, as JSON; touch no network.")
@click.option("--no-wait", is_flag=True, help="Return once the job is submitted; print its id.")
@click.option("--raw", is_flag=True, help="Show all of the job's log, Ray's and vLLM's lines too.")
@json_option
def submit(
    job: Path,
    sets: tuple[str, ...],
    address: str | None,
    submission_id: str | None,
    dry_run: bool,
    no_wait: bool,
    raw: bool,
    as_json: bool,
) -> None:
    """Submit the job file JOB, follow it to its end, print its output URI."""
    from rayferry.submit import report, request
    from rayferry.submit.config import resolve_address
    from rayferry.submit.options import load_job

    spec = load_job(job, sets)
    if submission_id is not None and not request.is_submission_id(submission_id):
        msg = f"--submission-id {submission_id!r}: use letters, digits, '.', '_' and '-', at most 128"
        raise SpecError(msg)
    if dry_run:
        url = resolve_address(address, spec.cluster.address, {**os.environ, "RAY_ADDRESS": _nowhere()}).url
        value = request.build_request(spec, url, submission_id or f"{spec.name}-dry-run")
        report.json_datum(value.to_json())
        return
    place = _address(address, spec.cluster.address)
    from rayferry.submit import launch

    submission_id = submission_id or request.new_submission_id(spec.name)
    cluster, sent = launch.submit(spec, place, submission_id)
    if no_wait:
        report.note(f"follow it: rayferry logs -f {submission_id}")
        if as_json:
            report.json_datum({"submission_id": submission_id, "output_uri": sent.output_uri})
        else:
            report.datum(submission_id)
        return
    sys.exit(launch.wait(cluster, submission_id, raw=raw, as_json=as_json))


def _nowhere() -> str:
    """The address in a dry run where none is given."""
    return os.environ.get("RAY_ADDRESS") or "http://127.0.0.1:8265"


@main.command()
@click.argument("job", type=click.Path(path_type=Path))
@set_option
@address_option
@json_option
def check(job: Path, sets: tuple[str, ...], address: str | None, as_json: bool) -> None:
    """Check what the job file JOB needs, and start nothing."""
    from dataclasses import asdict

    from rayferry.submit import report
    from rayferry.submit.options import load_job

    spec = load_job(job, sets)
    place = _address(address, spec.cluster.address)
    from rayferry.submit.client import Cluster
    from rayferry.submit.preflight import preflight

    probes = preflight(spec, place, lambda: Cluster(place.url))
    if as_json:
        report.json_datum([asdict(probe) for probe in probes])
    else:
        rows = [(probe.name, probe.outcome, f"{probe.seconds:.2f}", probe.text) for probe in probes]
        report.table(["check", "outcome", "s", ""], rows)
    sys.exit(any(probe.outcome == "failed" for probe in probes))


@main.command()
@click.argument("submission_id")
@address_option
@json_option
def status(submission_id: str, address: str | None, as_json: bool) -> None:
    """Print the state of a job."""
    from dataclasses import asdict

    from rayferry.submit import report

    info = _cluster(address).info(submission_id)
    if as_json:
        report.json_datum(asdict(info) | {"output_uri": info.output_uri})
        return
    if info.output_uri:
        report.note(f"output: {info.output_uri}")
    if info.message and info.status != "SUCCEEDED":
        report.note(info.message.splitlines()[0].partition(", last available logs")[0])
    report.datum(info.status)


@main.command()
@click.argument("submission_id")
@address_option
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the job ends; exit as submit would.")
@click.option("--raw", is_flag=True, help="Show all lines, Ray's and vLLM's too.")
def logs(submission_id: str, address: str | None, following: bool, raw: bool) -> None:
    """Print a job's log."""
    from rayferry.submit import launch, report
    from rayferry.submit.follow import our_lines

    cluster = _cluster(address)
    if following:
        cluster.info(submission_id)
        sys.exit(launch.wait(cluster, submission_id, raw=raw))
    show = report.datum if raw else our_lines(report.datum)
    for line in cluster.logs(submission_id).splitlines():
        show(line)


@main.command()
@click.argument("submission_id")
@address_option
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for the end.")
def stop(submission_id: str, address: str | None, timeout: float) -> None:
    """Stop a job and wait until it is over."""
    import time

    from rayferry.submit import report

    cluster = _cluster(address)
    info = cluster.info(submission_id)
    if not info.is_over:
        cluster.stop(submission_id)
        deadline = time.monotonic() + timeout
        while not (info := cluster.info(submission_id)).is_over:
            if time.monotonic() > deadline:
                msg = (
                    f"{submission_id} is still {info.status} after {timeout:g} s; see: rayferry status {submission_id}"
                )
                raise RayferryError(msg)
            time.sleep(0.3)
    report.datum(info.status)


@main.command("list")
@address_option
@click.option("--all", "every", is_flag=True, help="Also jobs that others submitted.")
@json_option
def list_jobs(address: str | None, every: bool, as_json: bool) -> None:
    """List the cluster's jobs, newest first."""
    from dataclasses import asdict

    from rayferry.submit import report

    jobs = [job for job in _cluster(address).jobs() if every or job.output_uri]
    if as_json:
        report.json_datum([asdict(job) | {"output_uri": job.output_uri} for job in jobs])
        return
    rows = [(job.submission_id, job.status, report.clock(job.start_ms), job.output_uri or "") for job in jobs]
    report.table(["submission_id", "status", "started", "output"], rows)


@main.command()
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
        info = _cluster(address).info(job_or_uri)
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
            raise
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


@main.command()
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


@main.command()
def schema() -> None:
    """Print the job file's JSON Schema."""
    from rayferry.job.spec import JobSpec
    from rayferry.submit import report

    report.json_datum(JobSpec.model_json_schema())


@main.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("job.yaml"))
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def init(path: Path, force: bool) -> None:
    """Write a starter job file to PATH (default: job.yaml)."""
    from rayferry.submit import report
    from rayferry.submit.starter import starter_text

    if path.exists() and not force:
        msg = f"{path} is there already; give another path, or --force"
        raise SpecError(msg)
    try:
        path.write_text(starter_text("job.yaml"))
    except OSError as error:
        msg = f"{path}: cannot be written: {error.strerror}"
        raise SpecError(msg) from error
    report.note(f"edit it (model, input.uri, output.uri), then: rayferry check {path} && rayferry submit {path}")
    report.datum(str(path))


@main.command()
@click.option("--keep", is_flag=True, help="Leave the local stack up afterwards.")
def demo(keep: bool) -> None:
    """Run a whole job on this machine: real Ray, real S3, real vLLM, real weights."""
    from rayferry.submit.local.demo import run_demo

    sys.exit(run_demo(keep=keep))


@main.group()
def local() -> None:
    """A Ray head and an S3 server on this machine."""


@local.command("up")
def local_up() -> None:
    """Bring the local stack up."""
    from rayferry.submit import report
    from rayferry.submit.local import stack

    found = stack.up(report.note)
    report.note(f'Ray and S3 are up (S3: {found.endpoint}). In this shell: eval "$(rayferry local env)"')
    report.datum(found.address)


@local.command("down")
def local_down() -> None:
    """End the local stack; what is in its S3 stays for the next time."""
    from rayferry.submit import report
    from rayferry.submit.local import stack

    report.note(f"ended {stack.down()} processes")


@local.command("status")
@json_option
def local_status(as_json: bool) -> None:
    """Tell what of the local stack is running."""
    from rayferry.submit import report
    from rayferry.submit.local import stack

    found, num_processes = stack.find(), stack.count()
    state = "up" if found else "broken" if num_processes else "down"
    if as_json:
        value = {"state": state, "processes": num_processes, "folder": str(stack.folder())}
        report.json_datum(value | ({"address": found.address, "endpoint": found.endpoint} if found else {}))
        return
    if found:
        report.note(
            f"Ray at {found.address}, S3 at {found.endpoint}; end its {num_processes} processes: rayferry local down"
        )
    elif num_processes:
        report.note(f"{num_processes} processes are left, but do not answer; end them: rayferry local down")
    report.datum(state)


@local.command("env")
def local_env() -> None:
    """Print export lines for a shell: eval "$(rayferry local env)"."""
    import shlex

    from rayferry.submit import report
    from rayferry.submit.local import stack

    found = stack.find()
    if found is None:
        msg = "the local stack is not up: rayferry local up"
        raise RayferryError(msg)
    report.datum(f"unset {' '.join(stack.CLEARED)}")
    for name, value in found.environ().items():
        report.datum(f"export {name}={shlex.quote(value)}")


def _address(flag: str | None, job_file: str | None = None) -> "Address":
    from rayferry.submit.config import resolve_address

    return resolve_address(flag, job_file, os.environ)


def _cluster(flag: str | None) -> "Cluster":
    address = _address(flag)
    from rayferry.submit.client import Cluster

    return Cluster(address.url)
