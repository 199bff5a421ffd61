"""What the laptop takes from its surroundings: the cluster's address and its own folders."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rayferry.job.errors import RayferryError, SpecError
from rayferry.job.leaks import mask

if TYPE_CHECKING:
    from rayferry.job.placement import Node

# Order of Ray's own command line; see its `--address`.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class NoClusterError(SpecError):
    """No cluster is named anywhere."""


@dataclass(frozen=True)
class Address:
    """Where the Jobs API is.

    Attributes:
        url: http or https, no slash at its end.
        source: who said so.
        note: what a user should know about the choice, or "".
        verify: check the server's certificate; False for not, or the path of the certificates to trust.
        headers: sent with every request. Secrets: not shown.
        cookies: likewise.
        options: what a further command needs on its line to find the same cluster.
        most: the most nodes that its autoscaler may start; None if nobody knows.
    """

    url: str
    source: str
    note: str = ""
    verify: bool | str = True
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cookies: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: tuple[str, ...] = ()
    most: "tuple[Node, ...] | None" = None

    def command(self, words: str) -> str:
        """A command to go on with, about the same cluster, as it may be copied to a shell; see `command`."""
        return command(words, self.options)

    @property
    def is_loopback(self) -> bool:
        """True if the cluster's head is this machine, as far as its address tells."""
        return is_loopback(self.url)


def command(words: str, options: Sequence[str] = ()) -> str:
    """`rayferry` with these words, which are quoted, and these options, which are not yet."""
    return " ".join(["rayferry", words, *map(shlex.quote, options)])


def is_loopback(url: str) -> bool:
    """True if the host of `url` is this machine."""
    return urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}


def without_password(url: str) -> str:
    """`url` as it may be shown: no name and no password."""
    head, slashes, rest = url.partition("//") if "//" in url else ("", "", url)
    if "@" not in rest:
        return re.split("[?#]", url, maxsplit=1)[0]
    if "?" in rest or "#" in rest:  # where the password ends is not sure
        return f"{head}{slashes}***"
    return head + slashes + rest.rpartition("@")[2]


def resolve_address(
    flag: str | None, job_file: str | None, environ: Mapping[str, str], flag_name: str = "--address"
) -> Address:
    """Chooses the cluster: the flag, the job file, RAY_API_SERVER_ADDRESS, RAY_ADDRESS.

    Ray's SDK lets the environment override an address given to it; here what is explicit wins, and the conflict is
    said.

    Args:
        flag: what the command line names.
        job_file: what the job file names.
        environ: the variables.
        flag_name: the option that gave `flag`.

    Raises:
        NoClusterError: none is given.
        SpecError: it is not an http(s) address, or the flag is empty.
    """
    if flag is not None and not flag.strip():
        msg = f"{flag_name} is empty; give the dashboard's address, such as http://HEAD:8265, or leave it out"
        raise SpecError(msg)
    said = [(flag_name, flag), ("the job file", job_file)]
    said += [(name, environ.get(name)) for name in ADDRESS_VARIABLES]
    given = [(source, _normal(url)) for source, url in said if url]
    if not given:
        msg = (
            "no cluster: give --address http://HEAD:8265, set RAY_API_SERVER_ADDRESS, "
            "or start one on this machine: rayferry local up"
        )
        raise NoClusterError(msg)
    source, url = given[0]
    _check(source, url)
    others = [f"{name}={without_password(other)}" for name, other in given[1:] if other != url]
    note = f"{source} wins over {', '.join(others)}" if others and source in {flag_name, "the job file"} else ""
    return Address(url, source, note)


def _normal(url: str) -> str:
    """An address with a lower-case scheme, and no slash at its end."""
    scheme, sign, rest = url.strip().partition("://")
    return (scheme.lower() + sign + rest).rstrip("/")


def _check(source: str, url: str) -> None:
    """Refuses what is no address of a Jobs API.

    Raises:
        SpecError: naming who said it, and nothing of a password in it.
    """
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in {"http", "https"} and bool(parts.hostname) and not re.search(r"\s", url)
    except ValueError:  # such as a bracket that is not closed
        is_http = False
    if not is_http:
        shown = repr(mask(url))
        msg = f"{source}: {shown} is not the address of a Jobs API; write http://HEAD:8265 (the dashboard's address)"
        raise SpecError(msg)
    if "@" in parts.netloc:
        msg = f"{source}: an address has no place for a password or a token; give http://HEAD:8265 alone"
        raise SpecError(msg)
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        msg = f"{source}: an address ends before any '?' or '#'; give {without_password(url)} alone"
        raise SpecError(msg)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.netloc.endswith(":"):
        msg = f"{source}: {url!r}: a port is a number from 1 to 65535, such as in http://HEAD:8265"
        raise SpecError(msg)


def state_folder() -> Path:
    """Where Rayferry keeps what must outlive a command: RAYFERRY_STATE, or the XDG folder."""
    base = os.environ.get("XDG_STATE_HOME") or _home() / ".local" / "state"
    return Path(os.environ.get("RAYFERRY_STATE") or Path(base) / "rayferry").resolve()


def cache_folder() -> Path:
    """Where Rayferry keeps what it can make again: RAYFERRY_CACHE, or the XDG folder."""
    base = os.environ.get("XDG_CACHE_HOME") or _home() / ".cache"
    return Path(os.environ.get("RAYFERRY_CACHE") or Path(base) / "rayferry").absolute()


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        msg = "no home folder is known: set HOME, or RAYFERRY_STATE and RAYFERRY_CACHE"
        raise RayferryError(msg) from error
