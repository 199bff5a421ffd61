"""On a real cluster: an unchanged job that is submitted again is not uploaded again."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rayferry.submit import s3

from .fault_proxy import FaultProxy

COMMAND = [sys.executable, str(Path(sysconfig.get_path("scripts")) / "rayferry")]


@pytest.fixture
def uploads(stack, tmp_path, bucket_uri):
    """Submits a job to the cluster and stops it; gives how many packages were sent and started meanwhile."""
    place = urlsplit(stack.address)
    proxy = FaultProxy((place.hostname, place.port), 0, num_faults=0)
    s3.write_bytes(f"{bucket_uri}/in/prompts.txt", b"hello\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    job = {"model": str(tmp_path / "model"), "input": {"uri": f"{bucket_uri}/in/"}}
    (tmp_path / "job.json").write_text(json.dumps(job | {"output": {"uri": f"{bucket_uri}/out/"}}))

    def run(*command):
        done = subprocess.run(
            [*COMMAND, *command, "--address", proxy.url], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(*flags):
        before = len(proxy.requests)
        run("stop", run("submit", str(tmp_path / "job.json"), "--no-wait", *flags))
        sent = [(method, path.split("/")[2]) for method, path in proxy.requests[before:]]
        return sent.count(("PUT", "packages")), sent.count(("POST", "jobs"))

    yield submit
    proxy.close()


@pytest.mark.slow
def test_only_a_changed_job_is_uploaded_again(uploads):
    found = [uploads(), uploads(), uploads("--set", "sampling.max_tokens=7")]
    assert found == [(1, 2), (0, 2), (1, 2)]  # the second POST is what stops the job
