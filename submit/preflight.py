"""Checks before anything runs: each asks one thing, all at once, and says what to do if the answer is no."""

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rayferry.job.errors import RayferryError
from rayferry.job.layout import Layout
from rayferry.job.log import counted
from rayferry.job.pipeline import check_ray
from rayferry.job.placement import plan
from rayferry.job.spec import JobSpec
from rayferry.job.storage import children, glob_pattern, glob_root, is_data, is_glob, list_files
from rayferry.submit import s3
from rayferry.submit.client import Cluster
from rayferry.submit.config import Address

_LISTED = 1000  # as many as one request gives


class PreflightError(RayferryError):
    """The job would fail: nothing was started."""


class UnseenError(RayferryError):
    """It cannot be seen from here; the job may well find it."""


@dataclass(frozen=True)
class Probe:
    """One check's outcome.

    Attributes:
        name: what was checked.
        outcome: `ok`, `failed`, or `unknown` where it cannot be checked from here.
        text: what was seen, or what to do.
        seconds: how long it took.
    """

    name: str
    outcome: str
    text: str
    seconds: float


def preflight(spec: JobSpec, address: Address, connect: Callable[[], Cluster]) -> list[Probe]:
    """Runs every check, all at once.

    Args:
        spec: the job.
        address: the cluster's.
        connect: gives the client; called once, in a thread, as Ray takes a second to import.
    """
    with ThreadPoolExecutor() as pool:
        cluster = pool.submit(connect)
        checks: list[tuple[str, Callable[[], str]]] = [
            ("cluster", lambda: _cluster(spec, cluster.result())),
            ("input", lambda: _input(spec, lambda: _is_here(address, cluster))),
            ("output", lambda: _output(spec, lambda: _is_here(address, cluster))),
            ("model", lambda: _model(spec, lambda: _is_here(address, cluster))),
        ]
        return list(pool.map(_run, checks))


def require(probes: Sequence[Probe]) -> None:
    """Lets a job pass whose checks did not fail.

    Raises:
        PreflightError: a line for each that failed.
    """
    failed = [probe.text for probe in probes if probe.outcome == "failed"]
    if failed:
        raise PreflightError("\n".join(failed))


def _run(check: tuple[str, Callable[[], str]]) -> Probe:
    name, ask = check
    start = time.monotonic()
    try:
        outcome, text = "ok", ask()
    except s3.NoAccessError as error:
        outcome, text = "unknown", f"{error}; the job will find out"
    except UnseenError as error:
        outcome, text = "unknown", str(error)
    except RayferryError as error:
        outcome, text = "failed", str(error)
    return Probe(name, outcome, text, time.monotonic() - start)


def check_versions(cluster_version: str, own_version: str) -> None:
    """Refuses a cluster whose Ray cannot run the job.

    Raises:
        RayferryError: another major version than the laptop's, or older than the floor.
    """
    major = own_version.partition(".")[0]
    if cluster_version.partition(".")[0] != major:
        msg = (
            f"the cluster runs Ray {cluster_version}, this machine has Ray {own_version}: "
            f"install ray=={cluster_version} here, or use a cluster of Ray {major}"
        )
        raise PreflightError(msg)
    check_ray(cluster_version)


def _cluster(spec: JobSpec, cluster: Cluster) -> str:
    version = cluster.version()["ray_version"]
    check_versions(version, importlib.metadata.version("ray"))
    nodes, autoscaling = cluster.nodes()
    placement = plan(spec, nodes, autoscaling=autoscaling)
    cpus, gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
    seen = f"Ray {version} at {cluster.url}: {counted(len(nodes), 'node')}, {cpus:g} CPUs, {gpus:g} GPUs"
    return f"{seen}; {placement.note}" if placement.note else seen


def _is_here(address: Address, cluster: "Future[Cluster]") -> bool:
    """True if a path of the job file is to be looked up on this machine."""
    if not address.is_loopback:
        return False
    try:
        return cluster.result().is_here()
    except RayferryError:  # its own check tells; without an answer the address decides
        return True


def _input(spec: JobSpec, is_here: Callable[[], bool]) -> str:
    uris = spec.input.uris
    name = uris[0] if len(uris) == 1 else f"{uris[0]} and {len(uris) - 1} more"
    if not s3.is_s3(uris[0]):
        if not is_here():
            msg = f"{name}: a path on the cluster's nodes; the job will find out"
            raise UnseenError(msg)
        files = list_files(uris)
        return f"{name}: {counted(len(files), 'file')}, {sum(file.num_bytes for file in files):,} bytes"
    sizes: dict[str, int] = {}
    cut = False
    for uri in uris:
        found, is_cut = _s3_input(uri, anonymous=spec.input.is_anonymous)
        sizes |= found
        cut = cut or is_cut
    return f"{name}: {counted(len(sizes), 'file')}{' or more' if cut else ''}, {sum(sizes.values()):,} bytes"


def _s3_input(uri: str, *, anonymous: bool) -> tuple[dict[str, int], bool]:
    """Size of each input file behind one URI, as far as one listing shows them; and whether there may be more."""
    root = "s3://" + "/".join(s3.split(uri)).rstrip("/")
    prefix, matches = root, None
    if is_glob(root):
        prefix, matches = glob_root(root) + "/", glob_pattern(root)
    found = s3.list_keys(prefix if matches else uri, _LISTED, anonymous=anonymous)
    if matches and not any(matches.match(key) for key, _ in found):
        matches = None  # a key that has such a sign in its name
        found = found + s3.list_keys(uri, 1, anonymous=anonymous)
    data = {
        key: size
        for key, size in found
        if size
        and (key == root or (key.startswith(prefix if matches else root + "/") and is_data(key[len(prefix) :])))
        and (matches is None or matches.match(key))
    }
    if not data and len(found) >= _LISTED:
        msg = f"{uri}: the first {_LISTED} objects hold no input; the job will find out"
        raise UnseenError(msg)
    if not data:
        msg = f"{uri}: no input there (no file that holds a byte); check input.uri"
        raise PreflightError(msg)
    return data, len(found) >= _LISTED


def _output(spec: JobSpec, is_here: Callable[[], bool]) -> str:
    layout = Layout(spec.output.uri)
    if not s3.is_s3(layout.output_uri):
        if not is_here():
            msg = f"{layout.output_uri}: a path on the cluster's nodes; the job will find out"
            raise UnseenError(msg)
        return _output_here(layout)
    # A console makes an empty object of the folder's own name; a run that did not end well leaves its _meta/.
    found = [
        (key, size)
        for key, size in s3.list_keys(layout.output_uri, _LISTED)
        if (key, size) != (layout.output_uri, 0) and (key == layout.manifest_uri or not key.startswith(layout.meta_uri))
    ]
    if found:
        raise _not_empty(layout, found[0][0])
    probe = f"{layout.meta_uri}.write-probe"
    s3.write_bytes(probe, b"")
    s3.delete(probe)
    return f"{layout.output_uri}: empty, and can be written"


def _output_here(layout: Layout) -> str:
    found = [name for name in children(layout.output_uri) if name != "_meta"]
    found += [name for name in children(layout.meta_uri) if layout.manifest_uri.endswith("/" + name)]
    if found:
        raise _not_empty(layout, found[0])
    return f"{layout.output_uri}: empty"


def _not_empty(layout: Layout, found: str) -> PreflightError:
    return PreflightError(
        f"{layout.output_uri} is not empty ({found} is there); choose another output.uri, or empty it first"
    )


def _model(spec: JobSpec, is_here: Callable[[], bool]) -> str:
    model = spec.model
    if s3.is_s3(model):
        if not s3.list_keys(model.rstrip("/") + "/", 1):
            msg = f"{model}: no model there; check the job file's model"
            raise PreflightError(msg)
        return f"{model}: there"
    if model.startswith(("./", "../", "~")):
        msg = f"model {model!r}: means nothing on the cluster; give an absolute folder, a hub id or an s3:// prefix"
        raise PreflightError(msg)
    if model.startswith(("/", "file://")):
        if not is_here():
            msg = f"{model}: a folder on the cluster's nodes"
            raise UnseenError(msg)
        path = Path(model.removeprefix("file://"))
        if not path.exists():
            msg = f"model {model!r}: no such folder; give a folder of the cluster's nodes, a hub id or an s3:// prefix"
            raise PreflightError(msg)
        if not (path / "config.json").exists():
            msg = f"model {model!r}: the folder holds no config.json, so it is no Hugging Face checkpoint"
            raise PreflightError(msg)
        return f"{model}: a folder on the cluster's nodes"
    msg = f"{model}: a hub id; the replicas will fetch it"
    raise UnseenError(msg)
