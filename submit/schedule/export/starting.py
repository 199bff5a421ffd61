"""How other systems start Rayferry: the command line, and the variables that it needs."""

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from rayferry.job.errors import SpecError
from rayferry.submit import s3
from rayferry.submit.schedule.definition import Schedule

TEND_MINUTES = 5  # under the ten by which a tick may be late
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_LOOPBACK = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}  # noqa: S104  # compared, not bound
# What the scheduler needs of its environment, where it is set.
_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_JOB_HEADERS"),
)


@dataclass(frozen=True)
class Starting:
    """How a schedule's commands are started.

    Attributes:
        store_uri: where the schedule is kept.
        program: of Rayferry; a path, or a name that is on the other system's PATH.
        set_here: the variables that are set where the export is made; only their names are of interest.
    """

    store_uri: str
    program: str = "rayferry"
    set_here: Collection[str] = ()

    @property
    def once(self) -> list[str]:
        """Fires what is due, and writes down what has ended."""
        return [self.program, "schedule", "run", "--once", "--store", self.store_uri]

    def follow(self, schedule: Schedule) -> list[str]:
        """Fires the newest tick if nobody did, and follows its run to the end."""
        return [self.program, "schedule", "follow", schedule.name, "--store", self.store_uri]

    def __post_init__(self) -> None:
        for name, value in (("--store", self.store_uri), ("--program", self.program)):
            if _CONTROL.search(value):
                raise SpecError(
                    f"{name} {value!r}: a control character would break the lines of other systems; rename it"
                )

    def notes(self, schedule: Schedule) -> tuple[str, ...]:
        """What is to be decided about the command."""
        if schedule.on_failure is None or schedule.on_failure.command is None or not s3.is_s3(self.store_uri):
            return ()
        return ("on_failure: a command of a shared store is run only if --allow-commands is added to the line",)

    def notes_elsewhere(self, schedule: Schedule) -> tuple[str, ...]:
        """What may be otherwise on other machines."""
        notes = []
        address = schedule.address or (schedule.job.get("cluster") or {}).get("address")
        if address is not None and (urlsplit(address).hostname or "") in _LOOPBACK:
            told = f"address {address} is this machine's own, and another cluster or none there; add the schedule again"
            notes.append(f"{told} with an --address that those machines reach")
        if "RAY_AUTH_TOKEN" not in self.set_here:
            if "RAY_AUTH_TOKEN_PATH" in self.set_here:
                notes.append("RAY_AUTH_TOKEN there is what is in the file of RAY_AUTH_TOKEN_PATH here")
            elif "RAY_AUTH_MODE" in self.set_here:
                notes.append("RAY_AUTH_MODE is set here, but no token: in its mode `token` add RAY_AUTH_TOKEN there")
        if "AWS_SESSION_TOKEN" in self.set_here:
            notes.append("AWS_SESSION_TOKEN is set here: such keys end after hours; take lasting ones, or a role")
        return tuple(notes)

    def variables(self, schedule: Schedule, always: Collection[str] = ()) -> list[str]:
        """Names of variables that the commands need; their values are never looked at."""
        there = {*self.set_here, *always} | ({"RAY_AUTH_TOKEN"} if "RAY_AUTH_TOKEN_PATH" in self.set_here else set())
        names = [name for name in _VARIABLES if name in there]
        if schedule.address is not None or (schedule.job.get("cluster") or {}).get("address") is not None:
            names = [name for name in names if name != "RAY_API_SERVER_ADDRESS"]
        webhook = schedule.on_failure.webhook if schedule.on_failure else None
        return [*names, webhook.removeprefix("env:")] if webhook and webhook.startswith("env:") else names


def shell(words: Collection[str]) -> str:
    """A line for a POSIX shell."""
    return shlex.join(words)


def environment_file(schedule: Schedule, home: str) -> str:
    """Where a schedule's variables are: lines `NAME='value'`, which a shell and systemd read alike."""
    return f"{home}/.config/rayferry/{schedule.name}.env"
