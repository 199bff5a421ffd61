"""What commands share: their options, and the way to the cluster."""

import functools
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from rayferry.submit.client import Cluster, JobInfo
    from rayferry.submit.config import Address

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110: token
_VALUE = re.compile(r"[\x21-\x7e\xa0-\xff]([\t\x20-\x7e\xa0-\xff]*[\x21-\x7e\xa0-\xff])?|")
_COOKIE_VALUE = re.compile(
    r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
)  # RFC 6265: no blank, quote, comma, semicolon
# What HTTP itself says with each request; a second one makes it hang, or go astray.
_OF_HTTP = {
    *("connection", "content-encoding", "content-length", "content-type", "expect", "host", "keep-alive"),
    *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
}
_SHOWS_IDS = "the command `list` shows those there are"
_MAX_ID = 240  # with what Ray puts around it, a file's name of 255
P = ParamSpec("P")
R = TypeVar("R")


class _Verify(click.ParamType):  # type: ignore[type-arg]  # older clicks take none
    """`true`, `false`, or the path of certificates, as Ray spells it."""

    name = "BOOL|PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool | str:
        import ssl

        if isinstance(value, bool) or value.lower() in {"true", "1", "false", "0"}:
            return value if isinstance(value, bool) else value.lower() in {"true", "1"}
        path = Path(os.path.expanduser(value))  # noqa: PTH111  # Path raises where there is no home
        if not path.exists():
            self.fail(f"{value!r}: say true or false, or give the path of certificates that is there", param, ctx)
        try:
            ssl.create_default_context(**{"capath" if path.is_dir() else "cafile": str(path)})  # type: ignore[arg-type]
        except OSError:  # ssl's errors among them
            self.fail(f"{value!r} has no certificates to read; give a file in PEM form", param, ctx)
        return str(path)


class _TwiceError(ValueError):
    """The number of an entry whose name came before."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, if no name is in it twice, in whatever case."""
    seen: set[str] = set()
    for number, (name, _) in enumerate(pairs, 1):
        if name.lower() in seen:
            raise _TwiceError(number)
        seen.add(name.lower())
    return dict(pairs)


class _Secrets(click.ParamType):  # type: ignore[type-arg]
    """A JSON object of strings. What is wrong with it is told without showing it."""

    name = "JSON"

    def __init__(self, value: "re.Pattern[str]", reserved: Collection[str] = ()) -> None:
        self._value = value
        self._reserved = reserved

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Mapping[str, str]:
        if isinstance(value, Mapping):
            return value
        variable = getattr(param, "envvar", None)
        place = f" (here or in {variable})" if variable else ""
        try:
            found = json.loads(value, object_pairs_hook=_pairs)
        except _TwiceError as error:
            self.fail(f"entry {error}{place} has the name of one before it", param, ctx)
        except ValueError:
            self.fail(f'not JSON{place}; write an object of strings: \'{{"NAME": "VALUE"}}\'', param, ctx)
        if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
            self.fail(f'not an object of strings{place}; write it so: \'{{"NAME": "VALUE"}}\'', param, ctx)
        for number, (name, secret) in enumerate(found.items(), 1):
            if not _NAME.fullmatch(name) or not self._value.fullmatch(secret):
                self.fail(f"entry {number}{place} has a character that HTTP does not allow there", param, ctx)
            if name.lower() in self._reserved or (self._reserved and name.lower().startswith("sec-websocket-")):
                self.fail(f"{name}{place} is set by HTTP itself, request by request; leave it out", param, ctx)
        return found


class _JobId(click.ParamType):  # type: ignore[type-arg]
    """A job's id, whoever chose it. Ray takes nearly everything, and makes a file's name of it."""

    name = "ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if "://" in text or text.startswith("/"):
            self.fail(f"{text!r} is a URI, and this needs the job's id; {_SHOWS_IDS}", param, ctx)
        if text.strip() in {"", ".", ".."} or "/" in text or not text.isprintable() or len(text) > _MAX_ID:
            self.fail(f"{text!r} cannot be the id of a job; {_SHOWS_IDS}", param, ctx)
        return text


class _JobIdOrUri(_JobId):
    """A job's id, or what has a slash: its output URI."""

    name = "ID|URI"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value) if "/" in str(value) else super().convert(value, param, ctx)


class _JobFile(click.Path):
    """A path of this machine."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value!r} is a URI; the job file is one of this machine: fetch it first", param, ctx)
        return super().convert(value, param, ctx)


job_file_argument = click.argument("job", type=_JobFile(path_type=Path))
job_id_argument = click.argument("submission_id", type=_JobId())
job_or_uri_argument = click.argument("job_or_uri", metavar="ID|URI", type=_JobIdOrUri())


@dataclass(frozen=True)
class Flags:
    """What a command line says about the way to the cluster.

    Attributes:
        url: the address, if one is given.
        verify: see `Address`, as the rest.
        headers: secrets.
        cookies: secrets.
        cluster: the cluster launcher's file that stands in the address's place, if one is given.
    """

    url: str | None = None
    verify: bool | str = True
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cookies: Mapping[str, str] = field(default_factory=dict, repr=False)
    cluster: Path | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The same on a further command's line, without the secrets."""
        said: list[str] = []
        if self.url is not None:
            said += ["--address", self.url]
        if self.cluster is not None:
            said += ["--cluster", str(self.cluster)]
        if self.verify is not True:
            said += ["--verify", str(self.verify) if self.verify else "false"]
        return tuple(said)

    def command(self, words: str) -> str:
        """A command to go on with, about the same cluster, as it may be copied to a shell."""
        from rayferry.submit.config import command

        return command(words, self.options)


_ADDRESS_OPTIONS = (
    click.option("--address", metavar="URL", help="The cluster's dashboard, such as http://127.0.0.1:8265."),
    click.option(
        "--cluster",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="In its place, the file given to `ray up`: tunnels to the head by SSH.",
    ),
    click.option(
        "--verify",
        type=_Verify(),
        default=True,
        help="Check its TLS certificate: true, false, or the path of the certificates to trust.",
    ),
    click.option(
        "--headers",
        type=_Secrets(_VALUE, _OF_HTTP),
        envvar="RAY_JOB_HEADERS",
        help="HTTP headers to send, a JSON object; or RAY_JOB_HEADERS.",
    ),
    click.option("--cookies", type=_Secrets(_COOKIE_VALUE), help="Cookies to send, a JSON object."),
)
CHECKS = ("cluster", "capacity", "input", "rows", "output", "model", "engine", "package")
skip_option = click.option(
    "--skip",
    multiple=True,
    type=click.Choice((*CHECKS, "probe-job")),
    metavar="CHECK",
    help="Leave a check out, or probe-job; may be given again.",
)
timeout_option = click.option(
    "--timeout", metavar="TIME", help="Follow no longer than this, such as 90s or 2h; the job goes on (exit code 6)."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def address_option(command: Callable[P, R]) -> Callable[..., R]:
    """Gives a command the options about the cluster; it takes them as one value, `address`."""

    @functools.wraps(command)
    def taking(*args: Any, **options: Any) -> R:
        flags = Flags(
            options.pop("address"),
            options.pop("verify"),
            options.pop("headers") or {},
            options.pop("cookies") or {},
            options.pop("cluster"),
        )
        if flags.url is not None and flags.cluster is not None:
            msg = "--address and --cluster both name the cluster; give one of them"
            raise click.UsageError(msg)
        return command(*args, **options, address=flags)  # type: ignore[arg-type]

    result: Callable[..., R] = taking
    for option in reversed(_ADDRESS_OPTIONS):
        result = option(result)
    return result


def address_of(flags: Flags, job_file: str | None = None) -> "Address":
    """The cluster that a command is to use, and how; see `resolve_address`.

    Where `--cluster` names it, a tunnel is opened, which the command's end closes.
    """
    from rayferry.submit.config import resolve_address

    if flags.cluster is None:
        chosen = resolve_address(flags.url, job_file, os.environ)
    else:
        from rayferry.submit import tunnel

        head = tunnel.find_head(flags.cluster)
        url = click.get_current_context().with_resource(tunnel.tunnel(head))
        chosen = replace(resolve_address(url, job_file, os.environ, "--cluster"), most=head.most)
    options = flags.options
    if chosen.source == "the job file":  # which a further command does not know
        options = ("--address", chosen.url, *options)
    return replace(chosen, verify=flags.verify, headers=flags.headers, cookies=flags.cookies, options=options)


def cluster_of(flags: Flags) -> "Cluster":
    """Its Jobs API, for a command that has no job file."""
    from rayferry.submit import report

    address = address_of(flags)
    if address.note:
        report.note(address.note)
    from rayferry.submit.client import Cluster

    return Cluster(address)


def last_attempt(cluster: "Cluster", submission_id: str) -> "JobInfo":
    """The last attempt of a run, told where its id is another than the one that was asked for."""
    from rayferry.submit import report

    info = cluster.last_attempt(submission_id)
    if info.submission_id != submission_id:
        report.note(f"{submission_id} was followed by {info.submission_id}")
    return info


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


def seconds_to_wait(timeout: str) -> float:
    """The same where a number alone means seconds, and none at all means not to wait."""
    is_number = re.fullmatch(r"\d+(\.\d+)?", timeout) is not None
    return 0.0 if is_number and not float(timeout) else seconds_of(f"{timeout}s" if is_number else timeout) or 0.0


def earlier_option(command: Callable[P, R]) -> Callable[..., R]:
    """Adds --resume, --new-input, --retry-failed and --overwrite, as one argument `earlier`."""

    @click.option("--resume", is_flag=True, help="Go on with the run that the output holds; what is done stays.")
    @click.option("--new-input", is_flag=True, help="With --resume: answer files that came since, too.")
    @click.option("--retry-failed", is_flag=True, help="Go on with it, and try the rows in errors/ again.")
    @click.option("--overwrite", is_flag=True, help="Remove the run that the output holds, and start anew.")
    @functools.wraps(command)
    def with_earlier(
        *args: Any, resume: bool, new_input: bool, retry_failed: bool, overwrite: bool, **options: Any
    ) -> R:
        from rayferry.job.earlier import Earlier

        earlier = Earlier(resume=resume, new_input=new_input, retry_failed=retry_failed, overwrite=overwrite)
        return command(*args, **{**options, "earlier": earlier})

    return with_earlier
