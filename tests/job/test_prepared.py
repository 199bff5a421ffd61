import multiprocessing
import os
import signal
import subprocess
import sys
import time

from rayferry.job.prepared import in_place_of_spawn

WAIT_S = 30
PARENT = """
import multiprocessing, os, sys, time
from rayferry.job.prepared import in_place_of_spawn, serve

def child(pipe):
    pipe.send(("decimal" in sys.modules, os.environ.get("SET_LATER"), os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    with in_place_of_spawn(serve(["decimal"])):
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=child, args=(there,), name="EngineCore")
        os.environ["SET_LATER"] = "yes"
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


def test_a_spawned_process_has_the_modules_and_the_environment_and_ends_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    imported, set_later, pid, is_active = parent.stdout.readline().split()
    assert (imported, set_later, is_active) == ("True", "yes", "True")
    assert is_alive(int(pid))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + WAIT_S
    while is_alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(pid))


def test_outside_of_it_processes_are_spawned_as_ever():
    before = multiprocessing.get_context
    with in_place_of_spawn(None):
        assert multiprocessing.get_context("spawn").get_start_method() == "spawn"
    assert multiprocessing.get_context is before
