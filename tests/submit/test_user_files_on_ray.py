"""On a real cluster: a module, a file and a secret reach the driver and the workers, and Ray learns no secret."""

import hashlib
import os
import secrets
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from rayferry.job.spec import parse
from rayferry.submit.client import Cluster
from rayferry.submit.follow import follow
from rayferry.submit.request import build_request, new_submission_id

VALUE = "canary" + secrets.token_hex(12)
PROBE = """
import hashlib, json, os, sys
import ray
from rayferry.job.secrets import settle
from rayferry.job.spec import parse

def seen():
    import plugin
    settle(parse(json.load(open("spec.json")), "spec.json").runtime_env.secrets)
    digest = hashlib.sha256(os.environ["A_SECRET"].encode()).hexdigest()
    return plugin.WORD, open("files/labels.txt").read(), digest

ray.init()
print("before", ray.get(ray.remote(lambda: "A_SECRET" in os.environ).remote()))
print("driver", *seen())
print("worker", *ray.get(ray.remote(seen).remote()))
"""


@pytest.fixture(scope="module")
def ran(stack, tmp_path_factory):
    """What a job printed that looked at its surroundings, and what Ray tells of it."""
    folder = tmp_path_factory.mktemp("user")
    files = {"plugin.py": "WORD = 'imported'", "probe.py": PROBE, "labels.txt": "labelled", "token": VALUE}
    for name, content in files.items():
        (folder / name).write_text(content)
    env = {
        "secrets": {"A_SECRET": f"file:{folder}/token"},
        "py_modules": [str(folder / "plugin.py"), str(folder / "probe.py")],
        "files": [str(folder / "labels.txt")],
    }
    uris = {"input": {"uri": "s3://rayferry/none"}, "output": {"uri": "s3://rayferry/none-out"}}
    spec = parse({"model": "m", **uris, "runtime_env": env}, "here")
    request = replace(build_request(spec, stack.address, new_submission_id("user")), entrypoint="python -m probe")
    cluster = Cluster(stack.address)
    cluster.submit(request)
    shown = []
    info = follow(cluster, request.submission_id, shown.append)
    assert info.status == "SUCCEEDED", shown
    return stack, request, shown


@pytest.mark.parametrize("process", ["driver", "worker"])
def test_a_process_of_the_job_has_module_file_and_secret(ran, process):
    _, _, shown = ran
    (line,) = [line for line in shown if line.startswith(process)]
    assert line.split() == [process, "imported", "labelled", hashlib.sha256(VALUE.encode()).hexdigest()]


def test_a_process_that_did_not_ask_has_no_secret(ran):
    assert "before False" in ran[2]


@pytest.mark.parametrize("what", ["jobs/", *(f"v0/{kind}?detail=1" for kind in ("actors", "workers", "runtime_envs"))])
def test_ray_tells_nothing_of_the_secret(ran, what):
    stack, _, _ = ran
    headers = {"Authorization": f"Bearer {Path(os.environ['RAY_AUTH_TOKEN_PATH']).read_text()}"}
    answer = requests.get(f"{stack.address}/api/{what}", headers=headers, timeout=60)
    assert (answer.status_code, VALUE in answer.text) == (200, False)


def test_the_log_holds_no_secret(ran):
    assert not any(VALUE in line for line in ran[2])
