"""The scheduler as a Ray job: it lives on the cluster, so that the laptop can be shut."""

import hashlib
import shlex
from importlib.util import find_spec
from pathlib import Path

import rayferry.job
import rayferry.runtime_env
import rayferry.submit
from rayferry.job import VERSION
from rayferry.job.errors import RayferryError, SpecError
from rayferry.runtime_env.staging import zipped
from rayferry.submit import report, s3
from rayferry.submit.client import Cluster
from rayferry.submit.config import Address
from rayferry.submit.request import METADATA_PREFIX, SubmitRequest
from rayferry.submit.schedule.book import Book
from rayferry.submit.transport import ClusterError, NoSuchJobError

# Pure Python, and small: they travel along, so that nothing has to be installed there. See `rayferry.submit.__main__`.
_CARRIED = ("click", "cronsim", "jinja2", "markupsafe")
_SUFFIXES = {".py", ".typed"}
_STOP_WAIT_S = 30


def scheduler_id(store_uri: str) -> str:
    """The submission id of a store's scheduler: a store has one, and Ray refuses a second."""
    return f"rayferry-schedules-{hashlib.sha256(store_uri.encode()).hexdigest()[:10]}"


def build(store_uri: str, address: str, *, allow_commands: bool = False) -> SubmitRequest:
    """The scheduler as a request; the same for the same arguments."""
    content = zipped(_contents())
    name = f"rayferry-scheduler-{hashlib.sha256(content).hexdigest()[:16]}.zip"
    words = ["python", "-m", "rayferry.submit", "schedule", "run", "--store", store_uri, "--inside"]
    words += ["--allow-commands"] if allow_commands else []
    env_vars = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
    return SubmitRequest(
        address=address,
        submission_id=scheduler_id(store_uri),
        entrypoint=shlex.join(words),
        runtime_env={"working_dir": name, "env_vars": env_vars},
        metadata={METADATA_PREFIX + "version": VERSION, METADATA_PREFIX + "name": f"scheduler of {store_uri}"}
        | ({METADATA_PREFIX + "allow_commands": "true"} if allow_commands else {}),
        output_uri="",
        manifest_uri="",
        package={"name": name, "num_bytes": len(content)},
        content=content,
    )


def keep(book: Book, address: Address, *, allow_commands: bool = False) -> tuple[str, bool]:
    """Sees that the store's scheduler runs on the cluster.

    Returns:
        Its submission id, and whether it was started now.

    Raises:
        SpecError: the store is a folder of this machine.
        RayferryError: the cluster does not answer, or refuses.
    """
    uri = book.store.uri
    if not s3.is_s3(uri):
        msg = f"--on-cluster: the cluster does not see {uri}; keep the schedules in S3: --store s3://BUCKET/PREFIX/"
        raise SpecError(msg)
    cluster = Cluster(address)
    name = scheduler_id(uri)
    started = False
    try:
        info = cluster.info(name)
        if info.is_over:  # Ray takes an id again once it has forgotten it
            cluster.forget(name)
            started = True
    except NoSuchJobError:
        started = True
    request = build(uri, address.url, allow_commands=allow_commands)
    if started:
        _refuse_second(book, address)
        cluster.submit(request)
    elif info.metadata != request.metadata:
        stop = address.command(f"stop {name}")
        report.note(f"{name} runs with another --allow-commands, or of another version; to change that: {stop}")
    book.put_remote(address.url, name)
    return name, started


def _refuse_second(book: Book, address: Address) -> None:
    """Refuses to start a scheduler while the store's runs on another cluster.

    Raises:
        RayferryError: naming that one.
    """
    there = state(book)
    if there is not None and there["address"] != address.url and there["status"] in {"RUNNING", "PENDING"}:
        stop = f"rayferry stop {there['submission_id']} --address {there['address']}"
        msg = f"the scheduler of {book.store.uri} runs on {there['address']}; stop it there first: {stop}"
        raise RayferryError(msg)


def state(book: Book) -> dict[str, str] | None:
    """Of the scheduler on a cluster: `address`, `submission_id` and `status`; None if there never was one."""
    found = book.remote()
    if found is None:
        return None
    try:
        status = Cluster(found["address"]).info(found["submission_id"]).status
    except NoSuchJobError:
        status = "GONE"
    except ClusterError:
        status = "UNKNOWN"
    return {**found, "status": status}


def _contents() -> dict[str, bytes]:
    roots = {
        f"rayferry/{module.__name__.rpartition('.')[2]}": Path(module.__file__ or "").parent
        for module in (rayferry.job, rayferry.runtime_env, rayferry.submit)
    }
    for name in _CARRIED:
        found = find_spec(name)
        if found is not None and found.submodule_search_locations:
            roots[f"carried/{name}"] = Path(found.submodule_search_locations[0])
    return {
        f"{prefix}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for prefix, root in roots.items()
        for path in root.rglob("*")
        if path.is_file() and path.suffix in _SUFFIXES
    }
