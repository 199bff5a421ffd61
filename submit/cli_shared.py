"""What commands share: their options, and the way to the cluster."""

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rayferry.submit.client import Cluster
    from rayferry.submit.config import Address

address_option = click.option(
    "--address", metavar="URL", help="The cluster's dashboard, such as http://127.0.0.1:8265."
)
CHECKS = ("cluster", "capacity", "input", "rows", "output", "model", "package")
skip_option = click.option(
    "--skip", multiple=True, type=click.Choice(CHECKS), metavar="CHECK", help="Leave a check out; may be given again."
)
timeout_option = click.option(
    "--timeout", metavar="TIME", help="Follow no longer than this, such as 90s or 2h; the job goes on (exit code 6)."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def address_of(flag: str | None, job_file: str | None = None) -> "Address":
    """The cluster that a command is to use; see `resolve_address`."""
    from rayferry.submit.config import resolve_address

    return resolve_address(flag, job_file, os.environ)


def cluster_of(flag: str | None) -> "Cluster":
    """Its Jobs API, for a command that has no job file."""
    address = address_of(flag)
    from rayferry.submit.client import Cluster

    return Cluster(address.url)


def seconds_of(timeout: str | None) -> float | None:
    """What `--timeout` says, in seconds."""
    if timeout is None:
        return None
    from rayferry.job.errors import SpecError
    from rayferry.job.spec import seconds

    try:
        return seconds(timeout)
    except ValueError as error:
        msg = f"--timeout {timeout!r}: {error}"
        raise SpecError(msg) from error
