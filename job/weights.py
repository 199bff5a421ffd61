"""A model under an s3:// prefix, fetched once per node and kept for the next job."""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rayferry.job import storage
from rayferry.job.errors import EngineError
from rayferry.job.spec import JobSpec

_CHUNK_BYTES = 8 << 20


def stored(spec: JobSpec) -> list[storage.File]:
    """The files of the model and its adapters, each once, as far as they lie under s3:// prefixes.

    Raises:
        EngineError: nothing lies under a prefix.
        JobError: it cannot be listed.
    """
    return list({file.path: file for uri in spec.weights_uris for file in _files(uri)}.values())


def _files(uri: str) -> list[storage.File]:
    found = storage.files_below(uri)
    if not found:
        msg = f"{uri}: no model there; check the job file's model"
        raise EngineError(msg)
    return found


def local_folder(model: str) -> str:
    """What vLLM is to load: a hub id or a folder as it is, an s3:// prefix as the folder it was copied to.

    The copy lies under RAYFERRY_CACHE (default: `~/.cache/rayferry`) and is named by the prefix and by every
    file's name, size and ETag, so that a changed model is fetched anew. Replicas on one node wait for the one that
    copies; a copy is seen whole or not at all.

    Raises:
        EngineError: nothing lies under the prefix.
        JobError: it cannot be listed.
    """
    if not model.startswith("s3://"):
        return unquote(urlsplit(model).path) if model.startswith("file://") else model
    found = _files(model)
    files, _ = storage.filesystem(model)
    identity = repr([model, [(file.path, file.num_bytes, file.version) for file in found]])
    cache = Path(os.environ.get("RAYFERRY_CACHE") or Path.home() / ".cache" / "rayferry") / "weights"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / hashlib.sha256(identity.encode()).hexdigest()[:32]
    with (cache / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            draft = target.with_suffix(".partial")
            shutil.rmtree(draft, ignore_errors=True)
            for file in found:
                path = draft / file.label
                path.parent.mkdir(parents=True, exist_ok=True)
                with files.open_input_stream(file.path, compression=None) as remote, path.open("wb") as local:
                    shutil.copyfileobj(remote, local, _CHUNK_BYTES)
            draft.rename(target)
    return str(target)
