"""`rayferry schedule trigger` and `run`: what speaks to clusters."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from rayferry.job.errors import RayferryError
from rayferry.submit.cli_schedule import book_of, found, name_argument, note_if_empty, store_option
from rayferry.submit.cli_shared import Flags, address_of, address_option, json_option

if TYPE_CHECKING:
    from rayferry.submit.schedule.book import Book
    from rayferry.submit.schedule.runs import RayRuns


@click.command()
@name_argument
@address_option
@store_option
@json_option
def trigger(name: str, address: Flags, store: str | None, as_json: bool) -> None:
    """Run a schedule's job now, beside its ticks; print the submission id."""
    from rayferry.submit import report
    from rayferry.submit.schedule.adding import trigger_now
    from rayferry.submit.schedule.records import BAD
    from rayferry.submit.schedule.scheduler import Scheduler
    from rayferry.submit.transport import NotKnownError

    book = book_of(store)
    made = found(book, name).value
    firing = trigger_now(Scheduler(book, runs_of(address)), made)
    if firing.state in BAD:
        msg = f"{name}: not submitted: {firing.reason}"
        raise RayferryError(msg)
    if firing.state == "submitted" and firing.submitted_at is None:
        msg = f"{name}: {firing.reason}"
        raise NotKnownError(msg)
    report.json_datum(firing.model_dump(mode="json")) if as_json else report.datum(firing.latest_submission_id)


@click.command("give-up")
@name_argument
@click.argument("submission_id", metavar="ID")
@store_option
@json_option
def give_up(name: str, submission_id: str, store: str | None, as_json: bool) -> None:
    """Take a run for lost whose cluster is gone, so that its schedule goes on."""
    from rayferry.submit import report
    from rayferry.submit.schedule import adding

    book = book_of(store)
    found(book, name)
    firing = adding.give_up(book, name, submission_id)
    report.json_datum(firing.model_dump(mode="json")) if as_json else report.datum(submission_id)


@click.command()
@click.option("--once", is_flag=True, help="Fire what is due, write down what has ended, and exit: for cron and CI.")
@click.option("--on-cluster", is_flag=True, help="Keep the scheduler on the cluster, as a Ray job.")
@click.option("--inside", is_flag=True, hidden=True, help="This is that job.")
@click.option("--every", default=10.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds to a look.")
@click.option("--allow-commands", is_flag=True, help="Run --on-failure-command of a shared store here.")
@address_option
@store_option
@json_option
def run(
    once: bool,
    on_cluster: bool,
    inside: bool,
    every: float,
    allow_commands: bool,
    address: Flags,
    store: str | None,
    as_json: bool,
) -> None:
    """Run the scheduler: in the foreground until it is ended, --once, or --on-cluster.

    Any number may run, anywhere: each tick is fired by one of them. An --address here is that of all schedules.
    """
    from rayferry.submit import s3

    book = book_of(store)
    if on_cluster:
        if once:
            msg = "--once and --on-cluster are two ways to run it; give one of them"
            raise click.UsageError(msg)
        _keep_on_cluster(book, address, allow_commands=allow_commands, as_json=as_json)
        return
    if as_json and not once:
        msg = "--json is for --once and --on-cluster; a scheduler in the foreground has no result"
        raise click.UsageError(msg)
    from rayferry.submit.schedule import loop
    from rayferry.submit.schedule.scheduler import Scheduler

    own_commands = allow_commands or not s3.is_s3(book.store.uri)
    scheduler = Scheduler(book, runs_of(address, inside=inside), own_commands=own_commands)
    if once:
        _run_once(scheduler, as_json=as_json)
    else:
        loop.until_interrupted(scheduler, every)


def _run_once(scheduler: Any, *, as_json: bool) -> None:
    from rayferry.submit import report
    from rayferry.submit.schedule import loop, telling

    loop.once(scheduler)
    rows = [telling.overview(scheduler.book, name) for name in scheduler.book.names()]
    note_if_empty(scheduler.book)
    if as_json:
        report.json_datum({"schema_version": 1, "store": scheduler.book.store.uri, "schedules": rows})
    broken = [row["name"] for row in rows if row["state"] == "broken"]
    if broken:
        msg = f"broken: {', '.join(broken)}; see: rayferry schedule list"
        raise RayferryError(msg)


def _keep_on_cluster(book: "Book", address: Flags, *, allow_commands: bool, as_json: bool) -> None:
    from rayferry.submit import report
    from rayferry.submit.schedule import remote

    place = address_of(address)
    name, started = remote.keep(book, place, allow_commands=allow_commands)
    told = "started" if started else "is there already"
    report.note(f"{told}: {name} on {place.url}; its log: {place.command(f'logs --raw -f {name}')}")
    value = {"submission_id": name, "started": started, "address": place.url}
    report.json_datum(value) if as_json else report.datum(name)


def runs_of(flags: Flags, *, inside: bool = False) -> "RayRuns":
    """The runs of schedules, by what a command line says about clusters.

    A scheduler that runs on a cluster uses that one, whatever schedules name; their address is a laptop's view.
    """
    from rayferry.submit.config import Address
    from rayferry.submit.schedule.runs import RayRuns

    if inside:
        from rayferry.submit.transport import own_url

        here = Address(own_url(), "the cluster itself")
        return RayRuns(lambda _named: here)

    tunnelled = address_of(flags) if flags.cluster else None  # one for all, as long as the command goes on

    def recorded(url: str) -> Address:
        if tunnelled is not None and url == tunnelled.url:
            return tunnelled
        return address_of(replace(flags, url=url, cluster=None))

    if tunnelled is None:
        return RayRuns(lambda named: address_of(flags, named), recorded)
    return RayRuns(lambda _named: tunnelled, recorded, is_tunnel=True)


COMMANDS = (trigger, give_up, run)
