"""`rayferry schedule`: runs that start by themselves. Its commands that need a cluster are in `cli_schedule_run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayferry.job.errors import RayferryError, SpecError
from rayferry.submit.cli_shared import job_file_argument, json_option

if TYPE_CHECKING:
    from rayferry.submit.schedule.book import Book, Entry
    from rayferry.submit.schedule.definition import Schedule

store_option = click.option(
    "--store",
    metavar="URI",
    envvar="RAYFERRY_SCHEDULES",
    help="Where schedules are kept: a folder, or an s3:// prefix for a team; or RAYFERRY_SCHEDULES.",
)
name_argument = click.argument("name", metavar="NAME")


def book_of(store: str | None) -> "Book":
    """The store that is named, or the user's own."""
    from rayferry.submit.config import state_folder
    from rayferry.submit.schedule.book import Book
    from rayferry.submit.schedule.store import open_store

    if store is not None and not store.strip():
        msg = "--store (or RAYFERRY_SCHEDULES) is empty; give a folder or an s3:// prefix, or leave it out"
        raise SpecError(msg)
    return Book(open_store(store or str(state_folder() / "schedules")))


def found(book: "Book", name: str) -> "Entry[Schedule]":
    """A schedule that must be there.

    Raises:
        RayferryError: it is not.
    """
    from rayferry.submit.schedule.definition import is_name

    entry = book.schedule(name) if is_name(name) else None
    if entry is None and name in book.names():
        book.schedule(name)  # says what is wrong with it
    if entry is None:
        there = ", ".join(book.names()) or "none"
        msg = f"no schedule {name!r} in {book.store.uri}; there: {there}"
        raise RayferryError(msg)
    return entry


def note_if_empty(book: "Book") -> None:
    """Says so if a store has no schedules: it may be mistyped."""
    from rayferry.submit import report

    if not book.names():
        uri = book.store.uri
        report.note(f"there are no schedules in {uri} (--store, RAYFERRY_SCHEDULES); to make one: schedule add")


@click.group()
def schedule() -> None:
    """Runs on a schedule: from this machine, from a container, or on the cluster itself."""


@schedule.command()
@name_argument
@job_file_argument
@click.option("--cron", required=True, metavar="EXPR", help="Five fields, such as '0 2 * * *': each day at 02:00.")
@click.option("--timezone", default="UTC", show_default=True, metavar="ZONE", help="An IANA name.")
@click.option(
    "--overlap",
    type=click.Choice(["forbid", "allow", "replace"]),
    default="forbid",
    show_default=True,
    help="While the run before goes on.",
)
@click.option(
    "--catch-up",
    type=click.Choice(["none", "latest", "all"]),
    default="none",
    show_default=True,
    help="Of ticks that could not be fired on time.",
)
@click.option("--jitter", metavar="TIME", help="Start up to so much later, such as 5m.")
@click.option("--track", is_flag=True, help="Read JOB again at each tick, rather than keep it as it is now.")
@click.option("--on-failure-webhook", metavar="URL", help="Post to it when a firing fails; env:NAME for a secret one.")
@click.option("--on-failure-command", metavar="CMD", help="Run it when a firing fails; JSON comes on its stdin.")
@click.option("--address", metavar="URL", help="The cluster's dashboard; by default what the scheduler is told.")
@store_option
@json_option
def add(
    name: str,
    job: Path,
    cron: str,
    timezone: str,
    overlap: str,
    catch_up: str,
    jitter: str | None,
    track: bool,
    on_failure_webhook: str | None,
    on_failure_command: str | None,
    address: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Add the schedule NAME, which runs JOB; one of the same name is changed.

    In JOB, name, input.uri and output.uri may have {{ scheduled_time | date('%Y-%m-%d') }}.
    """
    from rayferry.submit import report
    from rayferry.submit.schedule.adding import add_schedule, local_time, next_of

    book = book_of(store)
    on_failure = None
    if on_failure_webhook is not None or on_failure_command is not None:
        on_failure = {"webhook": on_failure_webhook, "command": on_failure_command}
    values: dict[str, Any] = {
        "name": name,
        "cron": " ".join(cron.split()),
        "timezone": timezone,
        "overlap": overlap,
        "catch_up": catch_up,
        "jitter": jitter,
        "track": track,
        "on_failure": on_failure,
        "address": address,
    }
    made = add_schedule(book, values, job)
    for tick in next_of(made, 3):
        report.note(f"next: {local_time(made, tick)}")
    if made.paused:
        report.note(f"it is paused; to go on: rayferry schedule unpause {name}")
    report.json_datum(made.to_json()) if as_json else report.datum(name)


@schedule.command("list")
@store_option
@json_option
def list_schedules(store: str | None, as_json: bool) -> None:
    """List schedules: their state, next tick and last result."""
    from rayferry.submit import report
    from rayferry.submit.schedule import telling

    book = book_of(store)
    rows = [telling.overview(book, name) for name in book.names()]
    scheduler = telling.scheduler(book)
    if as_json:
        report.json_datum({"schema_version": 1, "store": book.store.uri, "schedules": rows, "scheduler": scheduler})
        return
    note_if_empty(book)
    columns = ["name", "cron", "timezone", "state", "next", "last", "result", "error"]
    report.table(columns, [[row[column] for column in columns] for row in rows])
    if scheduler and "error" in scheduler:
        report.note(f"the scheduler on a cluster: {scheduler['error']}")
    elif scheduler:
        told = f"scheduler {scheduler['submission_id']} on {scheduler['address']}: {scheduler['status']}"
        again = "" if scheduler["status"] in {"RUNNING", "PENDING"} else "; rayferry schedule run --on-cluster"
        report.note(told + again)


@schedule.command()
@name_argument
@click.option("--next", "num", default=3, show_default=True, type=click.IntRange(0, 1000), help="Ticks to preview.")
@store_option
@json_option
def show(name: str, num: int, store: str | None, as_json: bool) -> None:
    """Show a schedule, and what its next ticks will run."""
    from rayferry.submit import report
    from rayferry.submit.schedule import telling

    book = book_of(store)
    made = found(book, name).value
    value = telling.details(book, made, num)
    if as_json:
        report.json_datum(value)
        return
    for key, one in value.items():
        if key not in {"next", "job", "schema_version"} and one is not None:
            report.datum(f"{key}: {one}")
    columns = ["tick", *(["start"] if made.jitter_s else []), "submission_id", "name", "input", "output"]
    report.table(columns, [[tick[column] for column in columns] for tick in value["next"]])


def _set_paused(name: str, store: str | None, *, paused: bool, as_json: bool) -> None:
    from rayferry.submit import report
    from rayferry.submit.schedule.adding import set_paused

    book = book_of(store)
    made = set_paused(book, found(book, name), paused=paused)
    report.json_datum(made.to_json()) if as_json else report.datum(name)


@schedule.command()
@name_argument
@store_option
@json_option
def pause(name: str, store: str | None, as_json: bool) -> None:
    """Fire no more ticks of a schedule; what runs goes on."""
    _set_paused(name, store, paused=True, as_json=as_json)


@schedule.command()
@name_argument
@store_option
@json_option
def unpause(name: str, store: str | None, as_json: bool) -> None:
    """Fire its ticks again, from now on; those of the pause stay unfired."""
    _set_paused(name, store, paused=False, as_json=as_json)


@schedule.command()
@name_argument
@store_option
@json_option
def remove(name: str, store: str | None, as_json: bool) -> None:
    """Remove a schedule; what runs goes on, and its history stays."""
    from rayferry.submit import report
    from rayferry.submit.schedule import telling

    book = book_of(store)
    if name not in book.names():
        found(book, name)
    book.remove_schedule(name)
    for line in telling.left_open(book, name):
        report.note(line)
    report.json_datum({"name": name, "removed": True}) if as_json else report.datum(name)


@schedule.command()
@name_argument
@click.option("-n", "--rows", default=20, show_default=True, type=click.IntRange(1), help="The last N firings.")
@store_option
@json_option
def history(name: str, rows: int, store: str | None, as_json: bool) -> None:
    """Show what became of a schedule's ticks, oldest first."""
    from rayferry.submit import report
    from rayferry.submit.schedule import telling
    from rayferry.submit.schedule.definition import is_name

    book = book_of(store)
    firings, wrong = book.last_firings(name, rows) if is_name(name) else ([], [])
    if not firings and not wrong:
        found(book, name)
    if as_json:
        report.json_datum([firing.model_dump(mode="json") for firing in firings])
    else:
        columns = ["tick", "state", "submission_id", "attempts", "output", "reason"]
        report.table(columns, map(telling.history_row, firings))
    if wrong:
        raise RayferryError("\n".join(map(str, wrong)))


COMMANDS = (schedule,)
