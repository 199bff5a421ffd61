"""Secrets on a laptop, each of its own value, and a whole run from there: none is in anything that the run leaves."""

import io
import json
import os
import secrets
import subprocess
import zipfile
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
import requests
import yaml
from ray._raylet import GcsClient

from rayferry.submit import s3
from rayferry.submit.local import stack as local_stack

from .conftest import COMMAND, ENGINE, PROMPTS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = "s3://rayferry/e2e/canary/"
HARMLESS = "harmless-" + secrets.token_hex(8)  # a search that finds this is not blind


def plain():
    return "canary" + secrets.token_hex(12)


def token():
    return "hf_Canary" + secrets.token_hex(12)


# What a file holds. {} is its canary, which only the file's name or its place tells to be secret.
FILES = {
    ".env": "HF_TOKEN={}",
    ".aws/credentials": "[other]\naws_access_key_id = me\naws_secret_access_key = {}\n",
    ".netrc": "machine 127.0.0.1 login me password {}\n",
    ".cache/huggingface/token": "{}",
    ".ray/auth_token": "{}",
    "data/.env": "HF_TOKEN={}",
    "data/id_ed25519": "{}",
    "data/tls/server.key": "{}",
    "data/.git/config": "url = https://me:{}@host/x",
    "data/pip.conf": "index-url = https://me:{}@host/simple",
    "plugin/.aws/credentials": "aws_secret_access_key = {}",
    "nodes/secret": "{}\n",
    "nodes/broken": "{}\0",
}
# These are told by what they hold.
FILES_WITH_TOKENS = {
    "data/notebook.ipynb": '{{"cells": [{{"source": ["login({})"]}}]}}',
    "plugin/settings.py": "TOKEN = '{}'",
    "job.yaml": "# my token is {}\n",
}
VARIABLES = ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SESSION_NAME_TOKEN", "MY_PASSWORD")


def job(model, home, name, secret_references):
    return {
        "name": name,
        "model": model,
        "input": {"uri": f"{ROOT}in/"},
        "output": {"uri": f"{ROOT}{name}/"},
        "sampling": {"temperature": 0, "max_tokens": 2},
        "engine": ENGINE,
        "runtime_env": {
            "secrets": secret_references,
            "env_vars": {"VLLM_LOGGING_LEVEL": "DEBUG"},
            "py_modules": ["plugin"],
            "files": ["data"],
        },
    }


@pytest.fixture(scope="module")
def ran(stack, model, tmp_path_factory):
    """The canaries by their places, and what commands said in a home full of them: one after the other."""
    home = tmp_path_factory.mktemp("home")
    canaries = {name: plain() for name in FILES} | {name: token() for name in FILES_WITH_TOKENS}
    for name, text in (FILES | FILES_WITH_TOKENS).items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text.format(canaries[name]))
    (home / "plugin/__init__.py").write_text(f"WORD = '{HARMLESS}'")
    variables = {f"${name}": plain() for name in VARIABLES}
    sent = {name: plain() for name in ("--headers", "--cookies", "--set", "$HTTPS_PROXY")}
    environ = os.environ | {name[1:]: value for name, value in variables.items()} | {"HOME": str(home)}
    environ |= {"HTTPS_PROXY": f"http://me:{sent['$HTTPS_PROXY']}@proxy.test:3128"}
    environ |= {"RAY_JOB_HEADERS": json.dumps({"X-Key": sent["--headers"]})}

    runs = job(model, home, "whole", {"A_SECRET": f"file:{home}/nodes/secret", "S3_KEY": "env:AWS_SECRET_ACCESS_KEY"})
    fails = job(model, home, "broken", {"A_SECRET": f"file:{home}/nodes/broken"})
    for name, data in {"job.yaml": runs, "broken.yaml": fails}.items():
        with (home / name).open("a") as file:
            yaml.safe_dump(data, file)
    s3.write_bytes(f"{ROOT}in/0.txt", f"{PROMPTS[0]}\n{HARMLESS}\n".encode())

    def command(code, *arguments):
        words = [COMMAND, *arguments]
        done = subprocess.run(words, capture_output=True, check=False, env=environ, cwd=home)
        assert done.returncode == code, done.stderr[-3000:]
        return " ".join(arguments[:2]), done.stdout + done.stderr

    cookies = ["--cookies", json.dumps({"session": sent["--cookies"]})]
    said = [
        command(2, "submit", "job.yaml", "--set", f"runtime_env.env_vars.DB_PASSWORD={sent['--set']}"),
        command(0, "submit", "job.yaml", "--dry-run"),
        command(0, "submit", "job.yaml", "--raw", "--submission-id", "canary-1", *cookies),
        command(1, "submit", "broken.yaml", "--raw", "--submission-id", "canary-2", *cookies),
        command(0, "logs", "canary-1", "--raw"),
        command(0, "list", "--json"),
        command(0, "result", "canary-1", "--json"),
        command(0, "doctor", "--json"),
    ]
    nodes = {"the S3 server's key": stack.secret_key, "Ray's token": Path(stack.token_path).read_text()}
    return canaries | variables | sent | nodes, said


def unzipped(name, content):
    """What a package holds; or the content itself."""
    yield name, content
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for one in archive.namelist():
                yield f"{name}/{one}", archive.read(one)


def terminal(_stack, said):
    """What the commands said."""
    yield from said


def gcs(stack, _said):
    """All that Ray keeps: packages, job info, functions."""
    client = GcsClient(address=stack.gcs_address)
    for space in (None, b"job", b"fun", b"session", b"dashboard", b"cluster", b"usage_stats"):
        for key in client.internal_kv_keys(b"", space):
            yield from unzipped(key.decode(errors="replace"), client.internal_kv_get(key, space) or b"")
            yield f"a key of {space}", key


def apis(stack, _said):
    """What Ray tells of its jobs and their processes."""
    headers = {"Authorization": f"Bearer {Path(stack.token_path).read_text()}"}
    kinds = ("jobs", "actors", "workers", "tasks", "runtime_envs", "placement_groups", "nodes")
    for path in ("jobs/", "cluster_status", *(f"v0/{kind}?detail=1&limit=10000" for kind in kinds)):
        answer = requests.get(f"{stack.address}/api/{path}", headers=headers, timeout=60)
        answer.raise_for_status()
        yield path, answer.content


def session(_stack, _said):
    """All files of Ray's session: logs, unpacked packages, and what else it wrote."""
    for path in (local_stack.folder() / "run" / "ray").resolve().rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield from unzipped(str(path), path.read_bytes())


def output(_stack, _said):
    """The answers, and all of `_meta/`."""
    for found in boto3.client("s3").list_objects_v2(Bucket="rayferry", Prefix="e2e/canary/")["Contents"]:
        content = s3.read_bytes(f"s3://rayferry/{found['Key']}")
        yield found["Key"], content
        if found["Key"].endswith(".parquet"):
            yield found["Key"], str(pq.read_table(io.BytesIO(content)).to_pylist()).encode()


@pytest.mark.parametrize(
    ("place", "known"),
    [(terminal, "canary-1"), (gcs, HARMLESS), (apis, "canary-1"), (session, HARMLESS), (output, HARMLESS)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_secret_is_in(stack, ran, place, known):
    canaries, said = ran
    contents = list(place(stack, said))
    assert any(known.encode() in content for _, content in contents)
    assert [
        (canary, name) for canary, value in canaries.items() for name, content in contents if value.encode() in content
    ] == []


def test_the_log_and_the_outcome_of_both_jobs_were_searched(stack, ran):
    names = {name.removeprefix("e2e/canary/") for name, _ in output(stack, [])}
    assert {"whole/_meta/driver.log", "whole/_meta/manifest.json", "whole/_meta/outcome.json"} <= names


def test_the_job_that_could_not_use_its_secret_did_read_it(ran):
    said = dict(ran[1])["submit broken.yaml"].decode()
    assert "secret A_SECRET: " in said
    assert "what is there cannot be a variable's value; is it text?" in said


def test_what_was_left_out_is_told(ran):
    said = dict(ran[1])["submit job.yaml"].decode()
    assert "left out: files/data/id_ed25519: a key, by its name" in said
