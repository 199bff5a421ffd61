"""`rayferry local` and `rayferry demo`: everything on this machine."""

import sys

import click

from rayferry.job.errors import RayferryError
from rayferry.submit.cli_shared import json_option


@click.command()
@click.option("--keep", is_flag=True, help="Leave the local stack up afterwards.")
def demo(keep: bool) -> None:
    """Run a whole job on this machine: real Ray, real S3, real vLLM, real weights."""
    from rayferry.submit.local.demo import run_demo

    sys.exit(run_demo(keep=keep))


@click.group()
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


COMMANDS = (demo, local)
