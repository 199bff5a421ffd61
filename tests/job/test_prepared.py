import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from rayferry.job.prepared import in_place_of_spawn

WAIT_S = 30
PARENT = """
import multiprocessing, os, sys, time
from rayferry.job.prepared import in_place_of_spawn, serve

def child(pipe):
    method = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD")
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
    worker.start()
    pipe.send(("decimal" in sys.modules, os.environ.get("SET_LATER"), method, os.getpid(), worker.pid))
    time.sleep(600)

if __name__ == "__main__":
    with in_place_of_spawn(serve(["decimal"])):
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=child, args=(there,), name="EngineCore")
        os.environ |= {"SET_LATER": "yes", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
        process.start()
        print(*here.recv(), process in multiprocessing.active_children(), flush=True)
        time.sleep(600)
"""


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def started(tmp_path):
    """What a prepared process says of itself, and its parent."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    env = {name: value for name, value in os.environ.items() if name != "VLLM_WORKER_MULTIPROC_METHOD"}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env)
    yield parent.stdout.readline().split(), parent
    parent.kill()
    parent.wait()


def test_a_prepared_process_has_the_modules_and_the_environment(started):
    (imported, set_later, method, *_pids, is_active), _parent = started
    assert (imported, set_later, is_active) == ("True", "yes", "True")
    assert method == "None"  # what vLLM sets in a Ray actor does not count in a process that is none


def test_a_prepared_process_and_its_worker_end_with_a_killed_parent(started):
    (_imported, _set_later, _method, pid, worker, _is_active), parent = started
    assert is_alive(int(pid))
    assert is_alive(int(worker))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + WAIT_S
    while (is_alive(int(pid)) or is_alive(int(worker))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(pid))
    assert not is_alive(int(worker))


def test_outside_of_it_processes_are_spawned_as_ever():
    before = multiprocessing.get_context
    with in_place_of_spawn(None):
        assert multiprocessing.get_context("spawn").get_start_method() == "spawn"
    assert multiprocessing.get_context is before
