"""One page on this machine's set-up: versions, cluster, token, S3, local stack, folders, and a fix for each problem.

Everything is asked at once and within a time limit. No token, no secret key and no header's value is ever told.
"""

import importlib.metadata
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from rayferry.job import RAY_FLOOR, VERSION
from rayferry.job.errors import RayferryError
from rayferry.job.log import counted
from rayferry.submit import access
from rayferry.submit.config import (
    ADDRESS_VARIABLES,
    Address,
    NoClusterError,
    cache_folder,
    state_folder,
    without_password,
)

_LIMIT_S = 8.0
_S3_TIMEOUT_S = 3.0
_MODES = frozenset({"", "disabled", "token", "k8s"})
# What S3 says of an identity that does not hold. Any other refusal is an answer: not everybody may list buckets.
_BAD_IDENTITY = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
_SHOWN_KEY = 4


@dataclass(frozen=True)
class Finding:
    """One thing that was seen.

    Attributes:
        section: what it is about.
        outcome: `ok`, `hint`, or `problem` where something that is set up does not work.
        text: what was seen.
        fix: what to do; a problem has always one.
    """

    section: str
    outcome: str
    text: str
    fix: str = ""


Seen = Iterator[tuple[str, str, str]]  # outcome, text, fix
Check = tuple[str, Callable[[], Seen], str]  # section, what to ask, what to do if there is no answer


def examine(choose: Callable[[], Address], limit_s: float = _LIMIT_S) -> list[Finding]:
    """Looks at everything.

    Args:
        choose: gives the cluster's address, or raises a `RayferryError`, such as `NoClusterError`.
        limit_s: seconds after which what has not answered counts as a problem.
    """
    return _at_once(_checks(choose), limit_s)


def _checks(choose: Callable[[], Address]) -> list[Check]:
    address: Address | None = None
    unusable: RayferryError | None = None
    try:
        address = choose()
    except RayferryError as error:
        unusable = error
    return [
        ("versions", _versions, "install Rayferry again"),
        ("address", lambda: _address(address, unusable), "check the proxy's variables"),
        ("cluster", lambda: _cluster(address), "check the address, the network and a proxy on the way"),
        ("auth", lambda: _auth(address), "check RAY_AUTH_TOKEN_PATH: its file system does not answer"),
        ("S3", _storage, "check AWS_ENDPOINT_URL and the network"),
        ("local stack", lambda: _local(address), "rayferry local down, then: rayferry local up"),
        ("folders", _folders, "set RAYFERRY_STATE and RAYFERRY_CACHE to folders of this machine"),
    ]


def page(findings: Iterable[Finding]) -> Iterator[str]:
    """The findings as lines for people."""
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            yield section
        yield f"  {finding.outcome:<8} {_one_line(finding.text)}"
        if finding.fix:
            yield f"           fix: {_one_line(finding.fix)}"


def _one_line(text: str) -> str:
    """Servers have a say in some texts: nothing that a terminal would take for a command."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in " ".join(text.split()))


def _at_once(checks: Sequence[Check], limit_s: float) -> list[Finding]:
    found: dict[str, list[Finding]] = {section: [] for section, _, _ in checks}

    def run(section: str, ask: Callable[[], Seen], default: str) -> None:
        try:
            for outcome, text, fix in ask():
                found[section].append(Finding(section, outcome, text, fix))
        except RayferryError as error:
            found[section].append(Finding(section, "problem", *_split(str(error), default)))
        except Exception as error:  # noqa: BLE001  # whatever is broken here, the rest of the page is shown
            text = f"{type(error).__name__} {error}"
            found[section].append(Finding(section, "problem", text, "install Rayferry again, or report this"))

    threads = [threading.Thread(target=run, args=check, daemon=True) for check in checks]
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.start()
    seen: list[Finding] = []
    for thread, (section, _, fix) in zip(threads, checks, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        seen += found[section]
        if thread.is_alive():
            seen.append(Finding(section, "problem", f"no answer within {limit_s:g} s", fix))
    return seen


def _split(text: str, default: str) -> tuple[str, str]:
    """What failed, and what to do: most of our errors are written so, with a semicolon between."""
    what, _, fix = text.partition("; ")
    return what, fix or default


def _versions() -> Seen:
    from rayferry.job.pipeline import check_ray

    yield "ok", f"rayferry {VERSION}, Python {platform.python_version()}, {platform.system()}", ""
    for name in ("ray", "boto3", "pyarrow"):
        try:
            version = importlib.metadata.version(name)
            if name == "ray":
                check_ray(version)
        except importlib.metadata.PackageNotFoundError:
            yield "problem", f"{name} is not installed here", "pip install --force-reinstall rayferry"
        except RayferryError:
            fix = f"pip install -U 'ray[data,default]>={RAY_FLOOR}'"
            yield "problem", f"ray {version} is too old: {RAY_FLOOR} or newer is needed", fix
        else:
            yield "ok", f"{name} {version}" + (f" ({RAY_FLOOR} or newer is needed)" if name == "ray" else ""), ""


def _address(address: Address | None, unusable: RayferryError | None) -> Seen:
    if isinstance(unusable, NoClusterError):
        yield "hint", "no cluster is named", str(unusable).partition(": ")[2]
    elif unusable:
        yield "problem", *_split(str(unusable), "give --address http://HEAD:8265")
    if address is None:
        return
    yield "ok", f"{address.url} (from {address.source})", ""
    first, second = (os.environ.get(name, "").rstrip("/") for name in ADDRESS_VARIABLES)
    if address.note:
        yield "hint", address.note, "unset the variable, if the other cluster is not meant any more"
    elif address.source == ADDRESS_VARIABLES[0] and second not in {"", first}:
        conflict = f"{ADDRESS_VARIABLES[0]} wins over {ADDRESS_VARIABLES[1]}={without_password(second)}"
        yield "hint", conflict, f"unset {ADDRESS_VARIABLES[1]}, if that cluster is not meant any more"
    if access.proxy_of(address.url):
        yield "ok", f"goes through the proxy {access.proxy_name(address.url)}", ""


def _cluster(address: Address | None) -> Seen:
    if address is None:
        return
    from rayferry.submit.client import Cluster
    from rayferry.submit.probes import check_python, check_versions, cluster_versions

    cluster = Cluster(address)
    version = cluster.version()
    yield "ok", f"answers: {cluster_versions(version)}, session {version.get('session_name') or 'unknown'}", ""
    try:
        check_versions(version["ray_version"], importlib.metadata.version("ray"))
        check_python(version.get("python_version"))
    except RayferryError as error:
        what, _, fix = str(error).replace("; ", ": ", 1).partition(": ")
        yield "problem", what, fix
    nodes, autoscaling = cluster.nodes()
    cpus, gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
    more = "; it can start more" if autoscaling else ""
    yield "ok", f"{counted(len(nodes), 'node')}, {cpus:g} CPUs, {gpus:g} GPUs{more}", ""


def _auth(address: Address | None) -> Seen:
    mode, token = os.environ.get("RAY_AUTH_MODE", ""), access.token(os.environ)
    if mode.lower() not in _MODES:
        yield "problem", f"RAY_AUTH_MODE={mode} is none of Ray's modes", "set it to token, or unset it"
    elif token.is_on and token.problem:
        yield "problem", *_split(token.problem, "set RAY_AUTH_TOKEN")
    elif token.is_on:
        yield "ok", f"RAY_AUTH_MODE=token, the token from {token.source}", ""
    elif token.source:
        fix = "set RAY_AUTH_MODE=token, if the cluster asks for one"
        yield "hint", f"there is a token ({token.source}), but it is not sent", fix
    else:
        yield "ok", f"no token is sent (RAY_AUTH_MODE is {mode or 'not set'})", ""
    if address is not None:
        yield from _sent(address, is_secret=bool(token.is_on or address.headers or address.cookies))


def _sent(address: Address, *, is_secret: bool) -> Seen:
    for kind, names in (("headers", address.headers), ("cookies", address.cookies)):
        if names:
            yield "ok", f"{kind} sent: {', '.join(names)} (values not shown)", ""
    if urlsplit(address.url).scheme == "http":
        if is_secret and not address.is_loopback:
            fix = "use https, or a tunnel to the dashboard, where you do not trust the network"
            yield "hint", "http to another machine: what lets you in goes there unencrypted", fix
        return
    trusted, said = access.certificates(address.verify, os.environ)
    if trusted is False:
        yield "hint", "the server's certificate is not checked (--verify false)", "--verify /path/to/ca.pem"
    elif isinstance(trusted, str):
        yield "ok", f"trusts the certificates of {trusted} ({said})", ""


def _storage() -> Seen:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError

    from rayferry.submit import s3

    config = Config(
        connect_timeout=_S3_TIMEOUT_S, read_timeout=_S3_TIMEOUT_S, retries={"total_max_attempts": 1, "mode": "standard"}
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    with s3.explained("S3"):
        session = boto3.Session(region_name=region)
        client = session.client("s3", config=config)
        found = session.get_credentials()
        keys = found.get_frozen_credentials() if found else None
    yield "ok", f"endpoint {without_password(client.meta.endpoint_url)}, region {client.meta.region_name}", ""
    if found is None or keys is None or not keys.access_key:
        fix = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (the cluster's nodes have their own)"
        yield "hint", "no credentials here: input, output and results cannot be seen from this machine", fix
        return
    profile = "" if session.profile_name == "default" else f", profile {session.profile_name}"
    yield "ok", f"credentials by {found.method}{profile}, access key {_shortened(keys.access_key)}", ""
    with s3.explained("S3"):
        try:
            client.list_buckets()
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in _BAD_IDENTITY:
                raise
    yield "ok", "the endpoint answers, and knows these credentials", ""


def _shortened(key: str) -> str:
    """An access key id as far as it tells which it is."""
    return f"{key[:_SHOWN_KEY]}...{key[-_SHOWN_KEY:]}" if len(key) >= 4 * _SHOWN_KEY else f"{key[:2]}..."


def _local(address: Address | None) -> Seen:
    try:
        from rayferry.submit.local import stack
    except RayferryError:
        yield "ok", "not installed (pip install 'rayferry[local]')", ""
        return
    found, num_processes = stack.find(), stack.count()
    if found:
        yield "ok", f"up: Ray at {found.address}, S3 at {found.endpoint}", ""
        if address is None:
            yield "hint", "this shell does not use it", 'eval "$(rayferry local env)"'
    elif num_processes:
        fix = "rayferry local down, then: rayferry local up"
        yield "problem", f"broken: {num_processes} of its processes are left, but do not answer", fix
    else:
        yield "ok", "down", ""


def _folders() -> Seen:
    for name, variable, ask in (
        ("state", "RAYFERRY_STATE", state_folder),
        ("cache", "RAYFERRY_CACHE", cache_folder),
    ):
        try:
            path = ask()
        except RayferryError as error:
            yield "problem", *_split(str(error), f"set {variable}")
            continue
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            fix = f"set {variable} to a folder that you may write to, with room on its disk"
            yield "problem", f"{name}: {path} cannot be written ({error.strerror}: {there})", fix
        else:
            yield "ok", f"{name}: {path}" + ("" if there == path else " (not made yet)"), ""
