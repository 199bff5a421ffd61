"""The questions that checks ask. Each gives a line on what was seen, or raises one on what to do."""

import importlib.metadata
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayferry.job import identity
from rayferry.job.earlier import NOTHING_EARLIER, Earlier
from rayferry.job.engine_spec import COMMON_ENGINE_KEYS
from rayferry.job.errors import RayferryError, UnseenError
from rayferry.job.layout import Layout
from rayferry.job.log import counted
from rayferry.job.pipeline import check_ray
from rayferry.job.placement import Node, plan
from rayferry.job.sample import Listing
from rayferry.job.spec import JobSpec
from rayferry.job.storage import File, children, glob_pattern, glob_root, is_data, is_glob, list_files, read_bytes
from rayferry.submit import s3
from rayferry.submit.client import Cluster

_PYTHON_FLOOR = (3, 11)  # what job/ is written for
_LISTED = 1000  # as many as one request gives
_LARGEST = 10
# Source: ray/_private/ray_constants.py, DASHBOARD_CLIENT_MAX_SIZE: the dashboard takes no larger request (Ray 2.60).
_MAX_PACKAGE_BYTES = 100 << 20


class PreflightError(RayferryError):
    """The job would fail: nothing was started."""


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


def ask_cluster(cluster: Cluster) -> str:
    """Whether it answers, and whether its Ray and its Python can run the job."""
    found = cluster.version()
    check_versions(found["ray_version"], importlib.metadata.version("ray"))
    check_python(found.get("python_version"))
    told = [cluster_versions(found) + f" at {cluster.url}", found.get("session_name")]
    return ", ".join(filter(None, told))


def cluster_versions(found: dict[str, str]) -> str:
    """Ray's version and, where the cluster tells it, Python's, for people."""
    python = found.get("python_version")
    return f"Ray {found['ray_version']}" + (f", Python {python}" if python else "")


def check_python(version: str | None) -> None:
    """Refuses a cluster whose Python cannot run the job; None where it does not tell.

    Raises:
        PreflightError: it is too old.
    """
    if version and tuple(int(part) for part in version.split(".")[:2]) < _PYTHON_FLOOR:
        floor = ".".join(map(str, _PYTHON_FLOOR))
        msg = f"the cluster runs Python {version}; Rayferry needs {floor} or newer: take an image of Ray that has it"
        raise PreflightError(msg)


def ask_capacity(spec: JobSpec, connected: Callable[[], Cluster], most: Sequence[Node] | None = None) -> str:
    """Whether its nodes can ever hold the replicas; `most` as `plan` takes it."""
    try:
        cluster = connected()
    except RayferryError as error:
        msg = "the cluster's nodes: it does not answer"
        raise UnseenError(msg) from error
    nodes, autoscaling = cluster.nodes()
    placement = plan(spec, nodes, autoscaling=autoscaling, most=most)
    said = [_nodes(nodes)]
    if placement.device == "gpu":
        num, size = spec.min_replicas, spec.engine.world_size
        needed = f"the job needs {counted(num, 'replica')} x {counted(size, 'GPU')}"
        said.append(needed + (f" ({spec.resources.accelerator_type})" if spec.resources.accelerator_type else ""))
    if autoscaling:
        which = f"no more than {_nodes(list(most))}" if most else "nobody knows which"
        said.append(f"an autoscaler can add nodes, {which}")
    text = "; ".join(filter(None, [*said, placement.note]))
    if not placement.is_certain:
        raise UnseenError(text)
    return text


def _nodes(nodes: list[Node]) -> str:
    cpus, gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
    text = f"{counted(len(nodes), 'node')}, {cpus:g} CPUs, {gpus:g} GPUs"
    if not gpus:
        return text
    kinds = sorted(set().union(*(node.accelerator_types for node in nodes)))
    most = f"at most {max(node.num_gpus for node in nodes):g} on one node"
    return f"{text} ({', '.join([most, *kinds])})"


def list_input(spec: JobSpec, is_here: Callable[[], bool]) -> Listing:
    """The input's files, as far as one listing of each URI shows them."""
    uris = spec.input.uris
    name = uris[0] if len(uris) == 1 else f"{uris[0]} and {len(uris) - 1} more"
    if not s3.is_s3(uris[0]):
        if not is_here():
            msg = f"{name}: a path on the cluster's nodes"
            raise UnseenError(msg)
        return Listing(name, list_files(uris))
    sizes: dict[str, int] = {}
    cut = False
    for uri in uris:
        found, is_cut = _s3_input(uri, anonymous=spec.input.is_anonymous)
        sizes |= found
        cut = cut or is_cut
    paths = {key: key.removeprefix("s3://") for key in sorted(sizes)}
    return Listing(name, [File(path, sizes[key], path) for key, path in paths.items()], cut)


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
        msg = f"{uri}: the first {_LISTED} objects hold no input"
        raise UnseenError(msg)
    if not data:
        msg = f"{uri}: no input there (no file that holds a byte); check input.uri"
        raise PreflightError(msg)
    return data, len(found) >= _LISTED


def ask_input(listing: Listing) -> str:
    """How much input is there."""
    num = f"{counted(len(listing.files), 'file')}{' or more' if listing.is_cut else ''}"
    return f"{listing.name}: {num}, {sum(file.num_bytes for file in listing.files):,} bytes"


def ask_output(spec: JobSpec, is_here: Callable[[], bool], earlier: Earlier = NOTHING_EARLIER) -> str:
    """Whether the output is empty or can be gone on with, and on S3 whether it can be written and deleted."""
    layout = Layout(spec.output.uri)
    if not s3.is_s3(layout.output_uri):
        if not is_here():
            msg = f"{layout.output_uri}: a path on the cluster's nodes"
            raise UnseenError(msg)
        if earlier.resume:
            with suppress(OSError):
                identity.require_same(spec, layout, read_bytes(layout.run_uri))
        return f"{layout.output_uri}: may hold an earlier attempt" if earlier.may_hold else _output_here(layout)
    # A console makes an empty object of the folder's own name; a run that did not end well leaves its _meta/.
    found = [
        (key, size)
        for key, size in s3.list_keys(layout.output_uri, _LISTED)
        if (key, size) != (layout.output_uri, 0) and (key == layout.manifest_uri or not key.startswith(layout.meta_uri))
    ]
    if found and not earlier.may_hold:
        raise _not_empty(layout, found[0][0])
    if earlier.resume:
        with suppress(s3.StorageError):  # who may not read it can still write, and the job compares too
            identity.require_same(spec, layout, s3.read_bytes(layout.run_uri))
    probe = f"{layout.meta_uri}.write-probe"
    s3.write_bytes(probe, b"")
    s3.delete(probe)
    return f"{layout.output_uri}: {'holds an earlier attempt' if found else 'empty'}, and can be written"


def _output_here(layout: Layout) -> str:
    found = [name for name in children(layout.output_uri) if name != "_meta"]
    found += [name for name in children(layout.meta_uri) if layout.manifest_uri.endswith("/" + name)]
    if found:
        raise _not_empty(layout, found[0])
    return f"{layout.output_uri}: empty"


def _not_empty(layout: Layout, found: str) -> PreflightError:
    return PreflightError(
        f"{layout.output_uri} is not empty ({found} is there); go on with it: --resume; start anew and remove it: "
        "--overwrite; or choose another output.uri"
    )


def ask_model(spec: JobSpec, is_here: Callable[[], bool]) -> str:
    """Whether the model is there, as far as can be known."""
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
    msg = f"{model}: a hub id"
    raise UnseenError(msg, elsewhere=False)  # not all nodes need to reach the hub


def ask_engine(spec: JobSpec) -> str:
    """Whether vLLM has the arguments that the job gives its engine: those written most are known here."""
    rare = spec.engine.to_kwargs().keys() - {*COMMON_ENGINE_KEYS, *type(spec.engine).model_fields}
    if rare:
        msg = f"engine.{', engine.'.join(sorted(rare))}: arguments that the cluster's vLLM knows, or not"
        raise UnseenError(msg)
    return "engine: arguments of vLLM's, by their names"


def ask_package(package: dict[str, Any]) -> str:
    """Whether the cluster takes what is to be sent; `package` as a request describes it."""
    files, num_bytes = package["files"], package["num_bytes"]
    size = f"{counted(len(files), 'file')}, {num_bytes:,} bytes as they travel"
    if num_bytes >= _MAX_PACKAGE_BYTES:
        largest = sorted(files, key=lambda file: int(file["num_bytes"]), reverse=True)[:_LARGEST]
        names = ", ".join(f"{file['name']} ({file['num_bytes']:,} bytes)" for file in largest)
        msg = (
            f"the package ({size}) is too large: Ray takes less than {_MAX_PACKAGE_BYTES:,} bytes; "
            f"put what is large on S3 or into the image. The largest: {names}"
        )
        raise PreflightError(msg)
    return size
