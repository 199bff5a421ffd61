"""The `rayferry` command. Bodies import what they need, so that `--help` takes no time."""

import io
import os
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from rayferry.job import VERSION
from rayferry.job.errors import RayferryError, SpecError
from rayferry.submit import (
    cli_doctor,
    cli_export,
    cli_jobs,
    cli_local,
    cli_schedule,
    cli_schedule_run,
    signals,
    streams,
)
from rayferry.submit.cli_shared import (
    Flags,
    address_of,
    address_option,
    earlier_option,
    job_file_argument,
    job_or_uri_argument,
    json_option,
    last_attempt,
    seconds_of,
    skip_option,
    timeout_option,
)

_UNKNOWN_ADDRESS = "http://127.0.0.1:8265"
if TYPE_CHECKING:
    from rayferry.job.earlier import Earlier

set_option = click.option("--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change a value of the job file.")


class _Boundary(click.Group):
    """The one place where an error, or an interruption, becomes a line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        streams.open_missing()
        with signals.handled():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as error:
                signals.end_at_once()
                streams.note(f"rayferry: {signals.words_of(error)}")
                ctx.exit(signals.EXIT_INTERRUPTED)
            except RayferryError as error:
                for line in (*str(error).splitlines(), *getattr(error, "__notes__", ())):
                    streams.note(f"rayferry: error: {line}")
                ctx.exit(error.exit_code)
            except click.ClickException as error:
                streams.note(_as_shown(error))
                ctx.exit(error.exit_code)
            except OSError as error:  # a folder that cannot be written, a disk that is full
                streams.note(f"rayferry: error: {error}; see RAYFERRY_STATE and RAYFERRY_CACHE")
                ctx.exit(1)


def _as_shown(error: click.ClickException) -> str:
    """What click itself would print of it."""
    said = io.StringIO()
    error.show(said)
    return said.getvalue().rstrip("\n")


@click.group(cls=_Boundary, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, package_name="rayferry")
def main() -> None:
    """Batch inference with vLLM on a Ray cluster, from your laptop.

    A job file says which prompts, which model and where the answers go; `rayferry submit` does the rest.
    """


@main.command()
@job_file_argument
@set_option
@address_option
@click.option("--submission-id", metavar="ID", help="The job's id; by default name, time and six hex digits.")
@earlier_option
@click.option("--dry-run", is_flag=True, help="Print what would be sent, as JSON; touch no network.")
@click.option("--export", "target", type=click.Choice(["kuberay"]), help="Submit nothing; print a RayJob of KubeRay.")
@cli_export.kuberay_options
@click.option("--no-wait", is_flag=True, help="Return once the job is submitted; print its id.")
@click.option("--raw", is_flag=True, help="Show all of the job's log, Ray's and vLLM's lines too.")
@timeout_option
@skip_option
@json_option
def submit(
    job: Path,
    sets: tuple[str, ...],
    address: Flags,
    submission_id: str | None,
    earlier: "Earlier",
    dry_run: bool,
    target: str | None,
    package_uri: str | None,
    image: str | None,
    pods: tuple[str, ...],
    no_wait: bool,
    raw: bool,
    timeout: str | None,
    skip: tuple[str, ...],
    as_json: bool,
) -> None:
    """Submit the job file JOB, follow it to its end, print its output URI."""
    from rayferry.submit import report, request
    from rayferry.submit.config import resolve_address
    from rayferry.submit.options import load_job

    spec = load_job(job, sets)
    if target is not None:
        if no_wait or raw or timeout or submission_id or skip or earlier.words:
            msg = "--export submits nothing: leave out what says how to submit or to follow (a RayJob always resumes)"
            raise SpecError(msg)
        cli_export.export_job(spec, package_uri, image, pods, dry_run=dry_run)
        return
    if package_uri is not None or image is not None or pods:
        msg = "--package-uri, --image and --pod say how to export: give --export kuberay, or leave them out"
        raise SpecError(msg)
    timeout_s = seconds_of(timeout)
    if no_wait and timeout is not None:
        msg = "--timeout is how long to follow, and --no-wait does not follow; leave one out (the job's own: timeout)"
        raise SpecError(msg)
    if submission_id is not None and not request.is_submission_id(submission_id):
        msg = f"--submission-id {submission_id!r}: use letters, digits, '.', '_' and '-', at most 128"
        raise SpecError(msg)
    if dry_run:
        named = address.url
        if address.cluster:
            from rayferry.submit.tunnel import read_cluster_file

            read_cluster_file(address.cluster)
            named = _UNKNOWN_ADDRESS  # a tunnel's port is chosen when it opens
        url = resolve_address(named, spec.cluster.address, {**os.environ, "RAY_ADDRESS": _nowhere()}).url
        value = request.build_request(spec, url, submission_id or f"{spec.name}-dry-run", earlier)
        report.left_out(value.package)
        report.json_datum(value.to_json())
        return
    place = address_of(address, spec.cluster.address)
    from dataclasses import replace

    from rayferry.job.earlier import new_run
    from rayferry.submit import collect, launch, retry

    submission_id = submission_id or request.new_submission_id(spec.name)
    instead = collect.run_there(spec.output.uri) if earlier.overwrite else None
    earlier = replace(earlier, run=new_run(submission_id), instead=instead)
    cluster, sent = launch.submit(spec, place, submission_id, skip, earlier)
    if no_wait:
        report.note(f"follow it: {place.command(f'logs -f {submission_id}')}")
        if as_json:
            report.json_datum({"submission_id": submission_id, "output_uri": sent.output_uri})
        else:
            report.datum(submission_id)
        return
    watch = launch.Watch(raw=raw, as_json=as_json, timeout_s=timeout_s)
    sys.exit(retry.run(spec, place, submission_id, watch, cluster=cluster, skip=skip, earlier=earlier))


def _nowhere() -> str:
    """The address in a dry run where none is given."""
    return os.environ.get("RAY_ADDRESS") or _UNKNOWN_ADDRESS


@main.command()
@job_file_argument
@set_option
@address_option
@earlier_option
@skip_option
@json_option
def check(
    job: Path,
    sets: tuple[str, ...],
    address: Flags,
    earlier: "Earlier",
    skip: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check what the job file JOB needs, and start nothing of it.

    What cannot be seen from here (no credentials, paths on the nodes) a small job looks at from the cluster.
    """
    from rayferry.submit import report, request
    from rayferry.submit.options import load_job

    spec = load_job(job, sets)
    place = address_of(address, spec.cluster.address)
    if place.note:
        report.note(place.note)
    from rayferry.submit.client import Cluster
    from rayferry.submit.preflight import ask_from_cluster, preflight

    package = request.build_request(spec, place.url, f"{spec.name}-check").package
    report.left_out(package)
    probes = preflight(spec, place, lambda: Cluster(place), package, skip, earlier)
    probes = ask_from_cluster(spec, lambda: Cluster(place), probes, skip, earlier)
    if as_json:
        report.json_datum([probe.to_json() for probe in probes])
    else:
        rows = [(probe.name, probe.outcome, f"{probe.seconds:.2f}", probe.text) for probe in probes]
        report.table(["check", "outcome", "s", ""], rows)
    sys.exit(any(probe.outcome == "failed" for probe in probes))


@main.command()
@job_or_uri_argument
@address_option
@click.option("--new-input", is_flag=True, help="Answer files that came since, too.")
@click.option("--retry-failed", is_flag=True, help="Try the rows in errors/ again, too.")
@click.option("--raw", is_flag=True, help="Show all of the job's log, Ray's and vLLM's lines too.")
@timeout_option
@skip_option
@json_option
def resume(
    job_or_uri: str,
    address: Flags,
    new_input: bool,
    retry_failed: bool,
    raw: bool,
    timeout: str | None,
    skip: tuple[str, ...],
    as_json: bool,
) -> None:
    """Go on with a run that did not end, from any machine; ID may be its output URI.

    What is done stays. The job file is the one that lies with the output.
    """
    from rayferry.job.earlier import Earlier, new_run
    from rayferry.submit import collect, launch, request, retry

    timeout_s = seconds_of(timeout)
    place = address_of(address, None)
    uri = job_or_uri
    over: tuple[str, ...] = ()
    if "/" not in job_or_uri:
        from rayferry.submit.client import Cluster

        job = last_attempt(Cluster(place), job_or_uri)
        if not job.is_over:
            follow_it = place.command(f"logs -f {quote(job.submission_id)}")
            msg = f"{job.submission_id} is {job.status}: nothing is to be resumed; follow it: {follow_it}"
            raise RayferryError(msg)
        over, found = (job.submission_id,), job.output_uri
        if found is None:
            msg = f"{job_or_uri} is no run of Rayferry's: it has no output URI"
            raise SpecError(msg)
        uri = found
    spec = collect.read_spec(uri, place.command)
    submission_id = request.new_submission_id(spec.name)
    run = new_run(submission_id)
    earlier = Earlier(resume=True, new_input=new_input, retry_failed=retry_failed, over=over, run=run)
    cluster, _ = launch.submit(spec, place, submission_id, skip, earlier)
    watch = launch.Watch(raw=raw, as_json=as_json, timeout_s=timeout_s)
    sys.exit(retry.run(spec, place, submission_id, watch, cluster=cluster, skip=skip, earlier=earlier))


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


for _command in (*cli_schedule_run.COMMANDS, *cli_export.COMMANDS):
    cli_schedule.schedule.add_command(_command)
for _command in (*cli_jobs.COMMANDS, *cli_schedule.COMMANDS, *cli_local.COMMANDS, *cli_doctor.COMMANDS):
    main.add_command(_command)
