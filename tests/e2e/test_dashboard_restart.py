"""The head's dashboard dies in the middle of a job, and is started again."""

import os
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rayferry.submit.client import Cluster, ClusterError
from rayferry.submit.local import processes
from rayferry.submit.local import stack as local_stack
from rayferry.submit.local.ports import free_ports

from .conftest import COMMAND, run

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def wait_until(is_so, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def answers(url):
    with suppress(ClusterError):
        return len(Cluster(url).nodes()[0]) > 0
    return False


@pytest.fixture
def own_head(stack, tmp_path):
    """A head beside the stack's, whose processes nobody watches; gives its address and the folder of its logs."""
    ports = free_ports(9)
    with tempfile.TemporaryDirectory(prefix="rayferry-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [word for word in local_stack._ray_command(ports[0], ports[1:], Path(folder)) if word != "--block"]
        environ = {name: value for name, value in os.environ.items() if name != "RAY_API_SERVER_ADDRESS"}
        environ["PATH"] = local_stack._path()
        try:
            assert processes.spawn(command, tmp_path, environ, tmp_path / "ray.log").wait(120) == 0
            url = f"http://127.0.0.1:{ports[0]}"
            wait_until(lambda: answers(url))
            yield url, Path(folder) / "ray" / "session_latest" / "logs"
        finally:
            processes.end_all(tmp_path)


def dashboard_in(folder):
    (found,) = [one for one in processes.marked(folder) if "dashboard/dashboard.py" in " ".join(one.cmdline())]
    return found


def test_a_dashboard_that_is_started_again_costs_no_line_and_not_the_true_end(own_head, job_file, tmp_path):
    url, logs = own_head
    path = job_file(
        "restart",
        input={"uri": "s3://rayferry/e2e/restart/in/", "column": "nothing"},  # an end that only the driver knows
        runtime_env={"env_vars": {"VLLM_LOGGING_LEVEL": "DEBUG"}},
    )
    said, log = tmp_path / "said.txt", logs / "job-driver-restart.log"
    words = ["submit", str(path), "--raw", "--submission-id", "restart", "--address", url, "--skip", "rows"]
    with said.open("w") as file:
        process = subprocess.Popen([COMMAND, *words], stdout=file, stderr=file, cwd="/")
    wait_until(lambda: "rayferry 0." in said.read_text())

    dashboard = dashboard_in(tmp_path)
    command, environ = dashboard.cmdline(), dashboard.environ()
    for one in [*dashboard.children(recursive=True), dashboard]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    size = log.stat().st_size
    wait_until(lambda: log.stat().st_size > size)
    assert not answers(url)  # nobody but us starts it again
    processes.spawn(command, tmp_path, environ, tmp_path / "dashboard.log")
    wait_until(lambda: answers(url))
    assert process.poll() is None
    assert "error: " not in log.read_text()

    assert process.wait(120) == 3
    whole = run("logs", "--raw", "restart", "--address", url).stdout.splitlines()
    shown = said.read_text().splitlines()
    assert any("more than max_error_rate" in line for line in whole)
    assert [line for line in shown if line in set(whole)] == whole
