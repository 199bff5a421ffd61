"""A model under an s3:// prefix, fetched once per node and kept for the next job."""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

from rayferry.job import storage
from rayferry.job.errors import EngineError, JobError
from rayferry.job.spec import JobSpec

_CHUNK_BYTES = 8 << 20


def stored(spec: JobSpec) -> list[storage.File]:
    """The files of the model and its adapters, as far as they lie under s3:// prefixes.

    Raises:
        EngineError: nothing lies under a prefix.
        JobError: it cannot be listed.
    """
    uris = [uri for uri in (spec.model, *(spec.lora.adapters.values() if spec.lora else ())) if uri.startswith("s3://")]
    stored: dict[str, storage.File] = {}
    for uri in uris:
        _, root, found = _listed(uri)
        tags = storage.etags(uri, root)
        for info in found:
            stored[info.path] = storage.File(info.path, info.size, "", tags.get(info.path) or str(info.mtime_ns))
    return list(stored.values())


def _listed(uri: str) -> tuple[pafs.FileSystem, str, list[pafs.FileInfo]]:
    """The store, the path of a prefix without a slash, and all files below it; raises as `stored`."""
    files, root = storage.filesystem(uri)
    root = root.rstrip("/")
    try:
        found = files.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    except OSError as error:
        msg = f"{uri}: cannot be listed: {error}; check the bucket's name, the credentials and the endpoint"
        raise JobError(msg) from error
    found = sorted((info for info in found if info.type == pafs.FileType.File), key=lambda info: info.path)
    if not found:
        msg = f"{uri}: no model there; check the job file's model"
        raise EngineError(msg)
    return files, root, found


def local_folder(model: str) -> str:
    """What vLLM is to load: a hub id or a folder as it is, an s3:// prefix as the folder it was copied to.

    The copy lies under RAYFERRY_CACHE (default: `~/.cache/rayferry`) and is named by the prefix and by every
    file's name, size and time, so that a changed model is fetched anew. Replicas on one node wait for the one that
    copies; a copy is seen whole or not at all.

    Raises:
        EngineError: nothing lies under the prefix.
    """
    if not model.startswith("s3://"):
        return unquote(urlsplit(model).path) if model.startswith("file://") else model
    files, root, found = _listed(model)
    identity = repr([model, [(info.path, info.size, info.mtime_ns) for info in found]])
    cache = Path(os.environ.get("RAYFERRY_CACHE") or Path.home() / ".cache" / "rayferry") / "weights"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / hashlib.sha256(identity.encode()).hexdigest()[:32]
    with (cache / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            draft = target.with_suffix(".partial")
            shutil.rmtree(draft, ignore_errors=True)
            for info in found:
                path = draft / info.path[len(root) + 1 :]
                path.parent.mkdir(parents=True, exist_ok=True)
                with files.open_input_stream(info.path, compression=None) as remote, path.open("wb") as local:
                    shutil.copyfileobj(remote, local, _CHUNK_BYTES)
            draft.rename(target)
    return str(target)
