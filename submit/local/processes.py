"""The processes of a local stack: found by a mark in their environment, ended by their ids."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rayferry.job.errors import RayferryError

try:
    import psutil
except ImportError as error:
    raise RayferryError("rayferry local is not installed here; it needs: pip install 'rayferry[local]'") from error

MARK = "RAYFERRY_STACK"
_GRACE_S = 4.0  # the S3 server needs two; Ray's own do not end when asked


def spawn(command: Sequence[str], folder: Path, environ: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    """Starts a server that outlives this command, marked as part of the stack in `folder`."""
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603  # our own command lines
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environ, MARK: str(folder), "SPT_NOENV": "1"},  # Ray's titles would overwrite the environment
            start_new_session=True,
        )


def marked(folder: Path) -> list[psutil.Process]:
    """All processes of the stack in `folder`, their children of any depth included; never this one."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(folder):
                found.append(process)
    return found


def end_all(folder: Path) -> int:
    """Ends them: asks first, then kills. Looks again until none is left, as dying servers start helpers.

    Returns:
        How many there were at first.
    """
    first = marked(folder)
    left = first
    deadline = time.monotonic() + 3 * _GRACE_S
    while left and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.Error):
                process.terminate()
        _, alive = psutil.wait_procs(left, timeout=_GRACE_S)
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=_GRACE_S)
        left = [process for process in marked(folder) if process.status() != psutil.STATUS_ZOMBIE]
    return len(first)
