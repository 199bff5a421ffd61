"""What other systems need of a schedule or of a job: `schedule export`, `schedule follow`, `submit --export`."""

import os
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from rayferry.job.errors import SpecError
from rayferry.submit.cli_schedule import book_of, found, name_argument, store_option
from rayferry.submit.cli_schedule_run import runs_of
from rayferry.submit.cli_shared import Flags, address_option, json_option

if TYPE_CHECKING:
    from rayferry.job.spec import JobSpec
    from rayferry.submit.schedule.definition import Schedule
    from rayferry.submit.schedule.export.document import Export
    from rayferry.submit.schedule.export.kuberay import Packed

P = ParamSpec("P")
R = TypeVar("R")

_KUBERAY_OPTIONS = (
    click.option("--package-uri", metavar="URI", help="kuberay: an s3:// prefix to put the job's package under."),
    click.option("--image", metavar="IMAGE", help="kuberay: of all pods; by default Ray's own with vLLM."),
    click.option(
        "--pod",
        "pods",
        multiple=True,
        metavar="NAME=VALUE",
        help="kuberay: namespace, service_account, secret, env_from, cpus, memory, node_selector.LABEL.",
    ),
)


def kuberay_options(command: Callable[P, R]) -> Callable[P, R]:
    """Gives a command what an export for KubeRay asks for."""
    for option in reversed(_KUBERAY_OPTIONS):
        command = option(command)
    return command


@click.command("export")
@name_argument
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Choice(["kuberay", "cron", "systemd", "github-actions", "airflow"]),
    help="The system that is to start the runs.",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="FOLDER", help="Write files there; print paths.")
@click.option("--program", metavar="PATH", help="Where that system finds rayferry; for cron and systemd this one.")
@kuberay_options
@click.option("--dry-run", is_flag=True, help="kuberay: put no package into S3.")
@store_option
def export_schedule(
    name: str,
    target: str,
    output: Path | None,
    program: str | None,
    package_uri: str | None,
    image: str | None,
    pods: tuple[str, ...],
    dry_run: bool,
    store: str | None,
) -> None:
    """Print what another system needs to start a schedule's runs."""
    from rayferry.submit.schedule.export import airflow, crontab, github_actions, systemd
    from rayferry.submit.schedule.export.starting import Starting

    book = book_of(store)
    schedule = found(book, name).value
    if target == "kuberay":
        _show(_ray_cron_job(schedule, package_uri, image, pods, dry_run=dry_run), output)
        return
    if package_uri is not None or image is not None or pods or dry_run:
        msg = f"--package-uri, --image, --pod and --dry-run are for --to kuberay, not for {target}; leave them out"
        raise SpecError(msg)
    builders = {"cron": crontab, "systemd": systemd, "github-actions": github_actions, "airflow": airflow}
    starting = Starting(book.store.uri, _program(target, program), tuple(os.environ))
    _show(builders[target].export(schedule, starting), output)


def _program(target: str, given: str | None) -> str:
    """What was given, or this program, for what runs on this machine."""
    if given is not None:
        if "/" not in given or given.startswith("/"):
            return given
        if target in {"cron", "systemd"}:
            return str(Path(given).absolute())
        msg = (
            f"--program {given!r}: where {target} starts it is not known; give an absolute path, or a name on its PATH"
        )
        raise SpecError(msg)
    this = shutil.which(sys.argv[0])
    return str(Path(this).absolute()) if this and target in {"cron", "systemd"} else "rayferry"


def _ray_cron_job(
    schedule: "Schedule", package_uri: str | None, image: str | None, pods: tuple[str, ...], *, dry_run: bool
) -> "Export":
    from rayferry.submit.schedule.export import kuberay
    from rayferry.submit.schedule.export.pods import read_pods

    chosen = read_pods(pods, image)
    packed = kuberay.pack_schedule(schedule, _prefix(package_uri), datetime.now(UTC))
    made = kuberay.ray_cron_job(schedule, packed, chosen)
    _put(packed, dry_run=dry_run)
    return made


def export_job(
    spec: "JobSpec", package_uri: str | None, image: str | None, pods: tuple[str, ...], *, dry_run: bool
) -> None:
    """Prints a job as a RayJob, once its package is in S3."""
    from rayferry.submit.schedule.export import kuberay
    from rayferry.submit.schedule.export.pods import read_pods

    chosen = read_pods(pods, image)
    packed = kuberay.pack_job(spec, _prefix(package_uri))
    made = kuberay.ray_job(packed, chosen)
    _put(packed, dry_run=dry_run)
    _show(made, None)


def _prefix(package_uri: str | None) -> str:
    if package_uri is None:
        msg = "--package-uri: no laptop is there when the job starts, so its package lies in S3: s3://bucket/packages/"
        raise SpecError(msg)
    return package_uri


def _put(packed: "Packed", *, dry_run: bool) -> None:
    """Puts the package to its place, unless it is there: its name tells its content."""
    from rayferry.submit import report, s3

    left_out = [{"name": name, "reason": reason} for name, reason in packed.package.left_out]
    report.left_out({"left_out": left_out})
    size = len(packed.package.content)
    if dry_run:
        report.note(f"not put there: {packed.uri} ({size:,} bytes)")
    elif (packed.uri, size) in s3.list_keys(packed.uri, 1):
        report.note(f"there already: {packed.uri}")
    else:
        s3.write_bytes(packed.uri, packed.package.content)
        report.note(f"put there: {packed.uri} ({size:,} bytes)")


def _show(made: "Export", output: Path | None) -> None:
    from rayferry.submit import report

    for name, text in made.files.items():
        if output is None:
            several = len(made.files) > 1
            report.datum(f"# --- {name}\n{text}" if several else text.rstrip("\n"))
            continue
        path = output / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            msg = f"--output {output}: {name} cannot be written: {error.strerror}"
            raise SpecError(msg) from error
        report.datum(str(path))
    for note in made.notes:
        report.note(note)


@click.command()
@name_argument
@click.option(
    "--scheduled-time", metavar="TIME", help="The newest tick not later than this, such as 2027-01-31T02:00:00Z."
)
@click.option("--allow-commands", is_flag=True, help="Run --on-failure-command of a shared store here.")
@address_option
@store_option
@json_option
def follow(
    name: str, scheduled_time: str | None, allow_commands: bool, address: Flags, store: str | None, as_json: bool
) -> None:
    """Fire a schedule's newest tick, if nobody did, and wait for the end of its run.

    For a system with a clock of its own. Ends as `submit` does; with 0 if the tick has no run.
    """
    from rayferry.submit import report, s3
    from rayferry.submit.schedule import one_tick
    from rayferry.submit.schedule.scheduler import Scheduler

    book = book_of(store)
    schedule = found(book, name).value
    tick = one_tick.newest_tick(schedule, _time(scheduled_time))
    if tick is None:
        msg = f"{name}: there was no tick yet; see: rayferry schedule show {name}"
        raise SpecError(msg)
    scheduler = Scheduler(book, runs_of(address), own_commands=allow_commands or not s3.is_s3(book.store.uri))
    end = one_tick.follow(scheduler, name, tick)
    if end.firing is None:
        report.note(f"no run: {end.reason}")
    elif end.firing.reason:
        report.note(f"{end.firing.scheduled_time}: {end.firing.state}: {end.firing.reason}")
    if as_json:
        report.json_datum(end.firing.model_dump(mode="json") if end.firing else None)
    elif end.firing is not None and end.firing.state == "succeeded" and end.firing.output_uri:
        report.datum(end.firing.output_uri)
    sys.exit(end.exit_code)


def _time(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        found_time = datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"--scheduled-time {text!r}: no time; write it so: 2027-01-31T02:00:00Z"
        raise SpecError(msg) from error
    return found_time.replace(tzinfo=found_time.tzinfo or UTC)


COMMANDS = (export_schedule, follow)
