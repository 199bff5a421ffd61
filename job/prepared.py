"""Lets vLLM's own process begin with vllm imported."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from typing import Any

# What the engine's process imports, which takes it as long as the replica's own process.
ENGINE_MODULES = ("vllm.v1.engine.core", "vllm.v1.worker.gpu_worker", "vllm.model_executor.models")


class _Process(ForkServerProcess):
    """A process that has the environment of the one that starts it, as a spawned one has, and does not outlive it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().run()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


class _Context(ForkServerContext):
    Process = _Process


@contextmanager
def spawned_processes(modules: Sequence[str] = ENGINE_MODULES) -> Iterator[None]:
    """Within it, who asks for spawned processes gets such as have imported modules already.

    In a Ray actor vLLM spawns its engine's process, which then imports vllm once more, after the actor has. Here a
    server imports it while the actor does, and forks that process. It is as clean as a spawned one: the server has
    neither Ray's threads nor CUDA.
    Source: `get_mp_context` in vllm/utils/system_utils.py (0.25.1 and 0.32)
    """
    from multiprocessing import forkserver  # noqa: PLC0415  # only replicas on GPUs

    context = _Context()
    context.set_forkserver_preload(list(modules))
    forkserver.ensure_running()
    its = multiprocessing.get_context

    def get_context(method: str | None = None) -> BaseContext:
        return context if method == "spawn" else its(method)

    multiprocessing.get_context = get_context  # type: ignore[assignment]
    try:
        yield
    finally:
        multiprocessing.get_context = its
