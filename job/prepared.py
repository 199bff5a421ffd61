"""Lets vLLM's own processes begin with vllm imported, and end with the replica."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import BaseContext, ForkContext, ForkProcess, ForkServerContext, ForkServerProcess

# What the engine's process imports, which takes it as long as the replica's own process.
ENGINE_MODULES = ("vllm.v1.engine.core", "vllm.v1.worker.gpu_worker", "vllm.model_executor.models")
# How the engine's process starts its workers, where it has several GPUs.
_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


class _Worker(ForkProcess):
    """A forked process that does not outlive the one that forks it."""

    def run(self) -> None:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().run()


class _WorkerContext(ForkContext):
    Process = _Worker


class _Process(ForkServerProcess):
    """A process that has the environment of the one that starts it, as a spawned one has, and does not outlive it.

    What it forks does not outlive it either. In a Ray actor, where Ray has threads, vLLM forbids itself to fork by a
    variable that this process would inherit; it is no actor.
    """

    _environment: dict[str, str]

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        method = os.environ.get(_METHOD)  # of the server, which started before vLLM put its own there
        os.environ.clear()
        os.environ.update(self._environment)
        os.environ.pop(_METHOD, None)
        if method is not None:
            os.environ[_METHOD] = method
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _give("fork", _WorkerContext())
        super().run()


class _Context(ForkServerContext):
    Process = _Process


def serve(modules: Sequence[str] = ENGINE_MODULES) -> BaseContext:
    """Starts a server that imports modules and then forks processes that have them; gives its context.

    In a Ray actor vLLM spawns its engine's process, which then imports vllm once more, after the actor has. The server
    imports it while the actor does. What it forks is as clean as a spawned process: it has neither Ray's threads nor
    CUDA.
    Source: `get_mp_context` in vllm/utils/system_utils.py (0.25.1 and 0.32)
    """
    from multiprocessing import forkserver  # noqa: PLC0415  # only replicas on GPUs

    context = _Context()
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
