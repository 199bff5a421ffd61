"""What is said, and what stays, of jobs that do not end well. Their exit codes are in test_exit_codes.py."""

import json

import pytest

from rayferry.job import arguments
from rayferry.submit import s3

from .conftest import run

pytestmark = pytest.mark.e2e


def test_a_job_out_of_time_says_so(late_job):
    assert "timed out: not done after 25s" in late_job.stderr


def test_the_status_and_the_log_of_a_job_that_is_over_are_in_s3_too(late_job, rayferry):
    uri = "s3://rayferry/e2e/late/out/"
    copy = rayferry("logs", "--raw", uri).stdout
    assert rayferry("status", uri).stdout == "TIMED_OUT\n"
    assert "error: timed out" in copy
    assert rayferry("logs", "--raw", "late").stdout.startswith(copy)


@pytest.mark.slow
def test_an_engine_that_cannot_start_is_quoted_in_a_line(job_file, rayferry):
    done = rayferry("submit", job_file("toolong", engine={"max_model_len": 1000000}))
    assert done.returncode == 1
    assert "max_model_len" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 25


VLLM = arguments.known()
UNKNOWN = f"engine.max_num_sequences: vLLM {VLLM.version} has no such argument; did you mean 'max_num_seqs'?"


def test_an_engine_argument_that_vllm_does_not_have_is_refused_before_anything_starts(job_file, rayferry):
    path = job_file("unknown-argument", engine={"max_num_sequences": 4})
    done = rayferry("submit", path)
    assert (done.returncode, "submitted" in done.stderr) == (1, False)
    assert f"{UNKNOWN} (the head's vLLM;" in done.stderr


@pytest.mark.slow
def test_an_engine_argument_that_vllm_does_not_have_ends_the_job_in_a_line(job_file, rayferry):
    done = rayferry("submit", job_file("unknown-later", engine={"max_num_sequences": 4}), "--skip", "engine")
    assert done.returncode == 1
    assert f"error: {UNKNOWN}" in [line.partition(" ")[2] for line in done.stderr.splitlines()]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_value_that_vllm_refuses_ends_the_job_in_a_line(job_file, rayferry):
    done = rayferry("submit", job_file("bad-value", engine={"kv_cache_dtype": "fp9"}))
    assert done.returncode == 1
    assert f"vLLM {VLLM.version} refuses engine.kv_cache_dtype: 'fp9': Input should be 'auto'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("outcome", ["ok", "failed"])
def test_what_a_laptop_without_credentials_cannot_see_the_cluster_looks_at(job_file, monkeypatch, outcome):
    path = job_file(f"unseen-{outcome}")
    if outcome == "failed":
        s3.write_bytes(f"s3://rayferry/e2e/unseen-{outcome}/out/data/a.parquet", b"somebody's")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    done = run("check", path, "--json")
    found = {probe["name"]: (probe["outcome"], probe["text"]) for probe in json.loads(done.stdout)}
    assert found["input"][0] == "ok"
    assert "3 files" in found["input"][1]
    assert (found["output"][0], done.returncode) == (outcome, int(outcome == "failed"))
    assert "(seen from the cluster)" in found["output"][1]
    assert (found["rows"][0], "(seen from the cluster)" in found["rows"][1]) == ("ok", True)
    assert "-check-" not in run("list").stdout
    if outcome == "failed":
        sent = run("submit", path)
        assert (sent.returncode, "is not empty" in sent.stderr, "submitted" in sent.stderr) == (1, True, False)
    without = json.loads(run("check", path, "--skip", "probe-job", "--json").stdout)
    assert {probe["outcome"] for probe in without if probe["name"] in {"input", "output"}} == {"unknown"}
