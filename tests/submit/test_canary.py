"""A secret in many places of a laptop: it is in nothing that leaves, and in nothing that is printed."""

import io
import json
import secrets
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from rayferry.runtime_env.staging import stage
from rayferry.submit.cli import main
from rayferry.submit.options import load_job
from rayferry.submit.request import build_request

PLAIN = "canary" + secrets.token_hex(12)  # looks like nothing: only the name of its place tells
TOKEN = "hf_" + "Canary" + secrets.token_hex(12)  # tells by itself
COMMAND = [sys.executable, str(Path(sysconfig.get_path("scripts")) / "rayferry")]
JOB = f"""
# the token is {TOKEN}, the password {PLAIN}
name: reviews
model: org/model
input: {{uri: s3://bucket/in/}}
output: {{uri: s3://bucket/out/}}
runtime_env:
  secrets: {{HF_TOKEN: env:HF_TOKEN}}
  env_vars: {{HF_HOME: /data/hf}}
  py_modules: [plugin]
  files: [data]
cluster: {{address: http://127.0.0.1:9}}
"""
PLANTED = {
    ".env": f"HF_TOKEN={PLAIN}",
    "notes.txt": TOKEN,
    ".aws/credentials": f"aws_secret_access_key = {PLAIN}",
    ".cache/huggingface/token": TOKEN,
    ".netrc": f"machine host password {PLAIN}",
    "data/.env": f"HF_TOKEN={PLAIN}",
    "data/.env.production": f"HF_TOKEN={PLAIN}",
    "data/id_rsa": PLAIN,
    "data/.git/config": f"url = https://me:{PLAIN}@host/x",
    "data/.netrc": f"machine host password {PLAIN}",
    "data/.aws/credentials": f"aws_secret_access_key = {PLAIN}",
    "data/.ssh/config": PLAIN,
    "data/notebook.ipynb": json.dumps({"cells": [{"source": [f"login(token='{TOKEN}')"]}]}),
    "data/gcp.json": json.dumps({"type": "service_account", "private_key": PLAIN}),
    "data/tls/server.key": PLAIN,
    "data/pip.conf": f"index-url = https://me:{PLAIN}@host/simple",
    "data/script.sh": f"export HF_TOKEN={TOKEN}",
    "plugin/credentials.json": PLAIN,
    "plugin/.venv/lib/site.py": PLAIN,
    "plugin/__pycache__/settings.pyc": PLAIN,
    "plugin/settings.py": f"TOKEN = '{TOKEN}'",
}
HARMLESS = {"plugin/__init__.py": "import os\nTOKEN = os.environ['HF_TOKEN']\n", "data/labels.txt": "yes\nno\n"}
VARIABLES = {"HF_TOKEN": TOKEN, "AWS_SECRET_ACCESS_KEY": PLAIN, "OPENAI_API_KEY": PLAIN, "RAY_AUTH_TOKEN": PLAIN}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder full of secrets, which is home and holds the job file; and an environment full of them."""
    for name, content in (PLANTED | HARMLESS | {"job.yaml": JOB}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "data/link.txt").symlink_to(tmp_path / "notes.txt")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def holds_canary(content):
    content = content.encode() if isinstance(content, str) else content
    return PLAIN.encode() in content or TOKEN.encode() in content or b"Canary" in content


def unzipped(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_check_for_a_canary_finds_one(home):
    assert all(holds_canary((home / name).read_bytes()) for name in PLANTED)


def test_no_secret_is_in_the_package(home):
    contents = unzipped(stage(load_job(home / "job.yaml")).content)
    assert [name for name, content in contents.items() if holds_canary(content) or holds_canary(name)] == []


def test_what_is_no_secret_is_in_the_package(home):
    assert set(HARMLESS) <= {
        name.removeprefix("files/") for name in unzipped(stage(load_job(home / "job.yaml")).content)
    }


def test_every_file_of_the_users_that_holds_a_secret_is_told_by_its_name(home):
    left_out = tuple(name.removeprefix("files/") for name, _ in stage(load_job(home / "job.yaml")).left_out)
    users = [name for name in PLANTED if name.startswith(("data/", "plugin/"))]
    assert [name for name in [*users, "data/link.txt"] if not name.startswith(left_out)] == []


def test_no_secret_is_in_the_request(home):
    request = build_request(load_job(home / "job.yaml"), "http://head:8265", "job-1")
    assert not holds_canary(json.dumps(request.to_json()) + repr(request) + request.entrypoint)


def test_the_request_carries_the_reference(home):
    request = build_request(load_job(home / "job.yaml"), "http://head:8265", "job-1")
    told = json.loads(unzipped(request.content)["spec.json"])["runtime_env"]["secrets"]
    assert (told, "HF_TOKEN" in request.runtime_env["env_vars"]) == ({"HF_TOKEN": "env:HF_TOKEN"}, False)


def test_no_secret_is_in_what_a_dry_run_prints(home):
    done = subprocess.run([*COMMAND, "submit", "job.yaml", "--dry-run"], capture_output=True, check=True)
    assert not holds_canary(done.stdout + done.stderr)


def test_a_dry_run_tells_what_is_left_out_and_why(home):
    done = subprocess.run([*COMMAND, "submit", "job.yaml", "--dry-run"], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert "left out: files/data/.env: an environment file, by its name" in lines
    assert "left out: files/data/notebook.ipynb: it holds what looks like a Hugging Face token" in lines


def test_check_tells_what_is_left_out_and_no_secret(home):
    done = subprocess.run([*COMMAND, "check", "job.yaml"], capture_output=True, text=True, check=False)
    assert "left out: files/data/id_rsa: a key, by its name\n" in done.stderr
    assert not holds_canary(done.stdout + done.stderr)


@pytest.mark.parametrize(
    "assignment",
    [
        f"runtime_env.env_vars.HF_TOKEN={TOKEN}",
        f"runtime_env.env_vars.DB_PASSWORD={PLAIN}",
        f"runtime_env.secrets.HF_TOKEN={PLAIN}",
        f"engine.hf_token={PLAIN}",
        f"name={TOKEN}",
        f"runtime_env.pip=['-i https://me:{PLAIN}@host/simple']",
        f"input.uri=s3://me:{PLAIN}@bucket/in",
    ],
)
@pytest.mark.parametrize("flags", [[], ["--dry-run"]], ids=str)
def test_a_secret_that_is_given_to_submit_is_refused_and_not_printed(home, assignment, flags):
    done = CliRunner().invoke(main, ["submit", "job.yaml", *flags, "--set", assignment])
    assert (done.exit_code, done.stdout, holds_canary(done.stderr)) == (2, "", False)
