"""Lets vLLM's own processes begin with vllm imported, and end with the replica."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.context import (
    BaseContext,
    ForkContext,
    ForkProcess,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from typing import Any

# What the engine's process imports, which takes it as long as the replica's own process.
ENGINE_MODULES = ("vllm.v1.engine.core", "vllm.v1.worker.gpu_worker", "vllm.model_executor.models")
# How the engine's process starts its workers, where it has several GPUs.
_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


class _Worker:
    """A process that the kernel ends with the one that starts it, even if it hangs."""

    def run(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid != os.getppid():  # it ended before
            os.kill(os.getpid(), signal.SIGKILL)
        super().run()  # type: ignore[misc]


class _ForkedWorker(_Worker, ForkProcess):
    pass


class _SpawnedWorker(_Worker, SpawnProcess):
    pass


class _ForkedWorkers(ForkContext):
    Process = _ForkedWorker


class _SpawnedWorkers(SpawnContext):
    Process = _SpawnedWorker


class _Engine:
    """The engine's process, which ends with the replica's, and its workers with it.

    With several GPUs it has shared memory, too, which goes with them.
    """

    def run(self) -> None:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _start_tracker()
        _give("fork", _ForkedWorkers())
        _give("spawn", _SpawnedWorkers())
        super().run()  # type: ignore[misc]


class _SpawnedEngine(_Engine, SpawnProcess):
    pass


class _ForkedEngine(_Engine, ForkServerProcess):
    """With the environment of the process that starts it, as a spawned one has.

    But it may fork, if the server may: in an actor, where Ray has threads, vLLM forbids itself to by a variable.
    """

    _environment: dict[str, str]

    def start(self) -> None:
        self._environment = {name: value for name, value in os.environ.items() if name != _METHOD}
        super().start()

    def run(self) -> None:
        for name in {*os.environ} - {_METHOD}:
            del os.environ[name]
        os.environ.update(self._environment)
        super().run()


class _SpawnedEngines(SpawnContext):
    Process = _SpawnedEngine


class _ForkedEngines(ForkServerContext):
    Process = _ForkedEngine


def _start_tracker() -> None:
    """Starts what unlinks this process's shared memory when it and its workers are gone, however they ended.

    Python's own would be the replica's child, or in its group of processes, all of which Ray kills at an actor's end.
    """
    tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001  # no other way
    theirs, ours = os.pipe()
    code = f"from multiprocessing.resource_tracker import main; main({theirs})"
    command = [sys.executable, "-Wignore", "-c", code]
    with suppress(OSError):  # then it stays Python's own, as it only cleans up
        started = subprocess.Popen(command, pass_fds=[theirs], start_new_session=True)  # noqa: S603
        # the pipe to the other one stays open, as it unlinks what it has when that is closed
        tracker._fd, tracker._pid, tracker.started = ours, started.pid, started  # noqa: SLF001
    os.close(theirs)


def spawn() -> BaseContext:
    """The context of engines that are spawned after all, where vLLM has its own way with them."""
    return _SpawnedEngines()


def serve(modules: Sequence[str] = ENGINE_MODULES) -> BaseContext:
    """Starts a server that imports modules and then forks processes that have them; gives its context.

    In a Ray actor vLLM spawns its engine's process, which then imports vllm once more, after the actor has. The server
    imports it while the actor does. What it forks is as clean as a spawned process: it has neither Ray's threads nor
    CUDA.
    Source: `get_mp_context` in vllm/utils/system_utils.py (0.25.1 and 0.32)
    """
    from multiprocessing import forkserver  # noqa: PLC0415  # only replicas on GPUs

    context = _ForkedEngines()
    context.set_forkserver_preload(list(modules))
    forkserver.ensure_running()
    return context


@contextmanager
def in_place_of_spawn(context: BaseContext | None) -> Iterator[None]:
    """Within it, who asks for the context of spawned processes gets this one. None: its own.

    What is imported within it may keep that for good: import before.
    """
    its = multiprocessing.get_context
    if context is not None:
        _give("spawn", context)
    try:
        yield
    finally:
        multiprocessing.get_context = its


def _give(name: str, context: BaseContext) -> None:
    """From now on `multiprocessing.get_context(name)` is this one."""
    its = multiprocessing.get_context

    def get_context(method: str | None = None) -> BaseContext:
        return context if method == name else its(method)

    multiprocessing.get_context = get_context  # type: ignore[assignment]
