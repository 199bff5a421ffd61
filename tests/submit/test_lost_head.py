"""The real command when the head is gone for good."""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from rayferry.submit.local import processes

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

COMMAND = str(Path(sysconfig.get_path("scripts")) / "rayferry")
SEND = """
import sys
from dataclasses import replace
from rayferry.job.spec import parse
from rayferry.submit.client import Cluster
from rayferry.submit.request import build_request
url, name, seconds = sys.argv[1:]
uris = {"input": {"uri": "s3://rayferry/none"}, "output": {"uri": "s3://rayferry/none-" + name}}
loop = f"for n in range({seconds} * 10): print('line', n, flush=True); time.sleep(0.1)"
program = f"import time\\n{loop}\\nraise SystemExit(3)"
request = build_request(parse({"name": "lost", "model": "m"} | uris, "here"), url, name)
Cluster(url).submit(replace(request, entrypoint=f'python -c "{program}"'))
"""


@pytest.fixture
def own_stack(tmp_path):
    """A local stack of this test's own, as the environment of a command."""
    environ = os.environ | {"RAYFERRY_STATE": str(tmp_path / "state")}
    subprocess.run([COMMAND, "local", "up"], env=environ, check=True, capture_output=True)
    try:
        done = subprocess.run([COMMAND, "local", "env"], env=environ, check=True, capture_output=True, text=True)
        exports = [line.removeprefix("export ") for line in done.stdout.splitlines() if line.startswith("export ")]
        yield environ | {name: value.strip("'") for name, _, value in (line.partition("=") for line in exports)}
    finally:
        subprocess.run([COMMAND, "local", "down"], env=environ, check=True, capture_output=True)


@pytest.fixture
def follow(own_stack, tmp_path):
    """Starts a job of some seconds and a command that follows it; gives the command and what it says, in a file."""

    def start(name, seconds):
        url = own_stack["RAY_API_SERVER_ADDRESS"]
        subprocess.run([sys.executable, "-c", SEND, url, name, str(seconds)], env=own_stack, check=True)
        command = [COMMAND, "logs", "-f", "--raw", name]
        said = tmp_path / f"{name}.log"
        with said.open("w") as out:
            process = subprocess.Popen(command, env=own_stack, stdout=out, stderr=out, cwd="/")
        while "line 3" not in said.read_text():
            assert process.poll() is None, said.read_text()
            time.sleep(0.2)
        return process, said

    return start


def of_stack(environ, words):
    """The stack's processes whose command line has these words."""
    folder = Path(environ["RAYFERRY_STATE"]) / "local"
    return [one for one in processes.marked(folder) if words in " ".join(one.cmdline())]


def test_a_head_that_is_gone_for_good_is_exit_code_5_within_three_minutes(own_stack, follow):
    process, said = follow("gone", 600)
    start = time.monotonic()
    for words in ("gcs_server", "dashboard/dashboard.py"):
        for one in of_stack(own_stack, words):
            one.kill()
    assert process.wait(400) == 5
    assert "lost contact with gone" in said.read_text()
    assert "rayferry logs -f gone" in said.read_text()
    assert time.monotonic() - start < 180
