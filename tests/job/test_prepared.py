import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from rayferry.job.prepared import in_place_of_spawn

WAIT_S = 30
METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
PARENT = """
import multiprocessing, os, sys, time
from multiprocessing import shared_memory
from rayferry.job.prepared import in_place_of_spawn, serve, spawn

def work(up):
    up.send(os.getpid())
    time.sleep(600)

def child(pipe):
    memory = shared_memory.SharedMemory(create=True, size=4096)
    contexts = [multiprocessing.get_context(way) for way in ("fork", "spawn", "fork")]
    pipes = [context.Pipe() for context in contexts]
    workers = [
        context.Process(target=work, args=(there,), daemon=True)
        for context, (_here, there) in zip(contexts, pipes, strict=True)
    ]
    for worker in workers:
        worker.start()
    said = [os.getpid(), *(here.recv() for here, _there in pipes)]
    method = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD")
    pipe.send(("decimal" in sys.modules, os.environ.get("SET_LATER"), method, memory.name, *said))
    time.sleep(600)

if __name__ == "__main__":
    context = serve(["decimal"]) if sys.argv[1] == "serve" else spawn()
    with in_place_of_spawn(context):
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=child, args=(there,), name="EngineCore")
        os.environ |= {"SET_LATER": "yes", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
        process.start()
        print(process in multiprocessing.active_children(), *here.recv(), flush=True)
        time.sleep(600)
"""


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Started:
    """A process by `serve` or `spawn`, with three workers; and its parent."""

    def __init__(self, folder, way, **env):
        script = folder / "parent.py"
        script.write_text(PARENT)
        env |= {name: value for name, value in os.environ.items() if name != METHOD}
        words = [sys.executable, str(script), way]
        self.parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)
        active, imported, set_later, method, memory, *pids = self.parent.stdout.readline().split()
        self.said = {"active": active, "imported": imported, "set_later": set_later, "method": method}
        self.memory, self.pids = Path("/dev/shm", memory), [int(pid) for pid in pids]

    def end(self):
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.parent.kill()
        self.parent.wait()


@pytest.fixture
def start(tmp_path):
    begun = []

    def start(way="serve", **env):
        begun.append(Started(tmp_path, way, **env))
        return begun[-1]

    yield start
    for one in begun:
        one.end()


def wait_until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_prepared_process_has_the_modules_and_the_environment(start):
    # what vLLM sets in a Ray actor, to spawn, does not count in a process that is none
    assert start().said == {"active": "True", "imported": "True", "set_later": "yes", "method": "None"}


def test_a_way_to_start_workers_that_was_set_before_stays(start):
    assert start(**{METHOD: "forkserver"}).said["method"] == "forkserver"


@pytest.mark.parametrize("way", ["serve", "spawn"])
def test_it_and_its_workers_end_with_a_killed_parent(start, way):
    started = start(way)
    assert all(map(is_alive, started.pids))
    started.parent.kill()
    started.parent.wait()
    assert wait_until(lambda: not any(map(is_alive, started.pids)))


def test_no_worker_waits_for_another_that_hangs(start):
    started = start()
    os.kill(started.pids[-1], signal.SIGSTOP)
    os.kill(started.pids[0], signal.SIGKILL)
    assert wait_until(lambda: not any(map(is_alive, started.pids[1:])))


@pytest.mark.parametrize("way", ["serve", "spawn"])
def test_its_shared_memory_goes_with_it_though_all_processes_of_the_group_are_killed(start, way):
    started = start(way)
    assert started.memory.exists()
    os.killpg(started.parent.pid, signal.SIGKILL)
    started.parent.wait()
    assert wait_until(lambda: not started.memory.exists())


def test_outside_of_it_processes_are_spawned_as_ever():
    before = multiprocessing.get_context
    with in_place_of_spawn(None):
        assert multiprocessing.get_context("spawn").get_start_method() == "spawn"
    assert multiprocessing.get_context is before
