"""A driver that is killed, and a run that is stopped: what is done stays, and the rest is answered, once."""

import io
import json
import time

import psutil
import pyarrow.parquet as pq
import pytest

from rayferry.submit import collect, s3

from .conftest import ENGINE, end_of, follow

pytestmark = pytest.mark.e2e

ROWS = 48
SLOW = {"sampling": {"temperature": 0, "max_tokens": 48, "ignore_eos": True}}


def slow_job(job_file, name, **changes):
    """A job of several minutes' worth of small parts; gives its file."""
    path = job_file(name, **SLOW, **changes)
    for number in range(3):
        lines = [json.dumps({"text": f"The number {row} is", "number": row}) for row in range(number, ROWS, 3)]
        s3.write_bytes(f"s3://rayferry/e2e/{name}/in/{number}.jsonl", "\n".join(lines).encode())
    return path


def wait_for_records(name, count=2):
    """Until so many parts are done."""
    end = time.monotonic() + 300
    while len(s3.list_keys(f"s3://rayferry/e2e/{name}/out/_meta/checkpoint/", 10)) < count:
        assert time.monotonic() < end
        time.sleep(0.2)


def kill_driver(submission_id):
    """Kills the driver's process, as a node that runs out of memory does."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "rayferry.job" in words and submission_id in words:
            process.kill()


def numbers_of(manifest):
    """The rows' own numbers, of all parts that the manifest lists, in order."""
    tables = [pq.read_table(io.BytesIO(s3.read_bytes(part["uri"]))) for part in manifest["parts"]]
    return sorted(number for table in tables for number in table.column("number").to_pylist())


def parts_there(name):
    keys = s3.list_keys(f"s3://rayferry/e2e/{name}/out/data/", 1000)
    return {uri for uri, _ in keys if uri.endswith(".parquet")}


@pytest.mark.slow
def test_a_run_whose_driver_is_killed_is_gone_on_with_by_the_same_command(job_file):
    process = follow("submit", slow_job(job_file, "killed"), "--submission-id", "killed")
    wait_for_records("killed")
    before = parts_there("killed")
    kill_driver("killed")
    done = end_of(process, 180)
    assert (done.returncode, done.stdout) == (0, "s3://rayferry/e2e/killed/out/\n"), done.stderr
    assert "attempt 2 of 3" in done.stderr
    manifest = collect.read_manifest(done.stdout.strip())
    assert manifest["attempts"] == ["killed", "killed-a2"]
    assert numbers_of(manifest) == list(range(ROWS))
    listed = {part["uri"] for part in manifest["parts"]}
    assert parts_there("killed") == listed
    assert before & listed


@pytest.mark.chaos  # a second run of a minute
def test_a_run_that_was_stopped_is_resumed_from_its_output(job_file, rayferry):
    path = slow_job(job_file, "halted", retry={"max_attempts": 1})
    process = follow("submit", path, "--submission-id", "halted")
    wait_for_records("halted")
    assert rayferry("stop", "halted").returncode == 0
    assert end_of(process).returncode == 4
    refused = rayferry("submit", path)
    assert (refused.returncode, "--resume" in refused.stderr) == (1, True)
    other = rayferry("submit", path, "--resume", "--set", "sampling.max_tokens=47")
    assert (other.returncode, "sampling.max_tokens: 48 -> 47" in other.stderr) == (1, True), other.stderr
    done = rayferry("resume", "s3://rayferry/e2e/halted/out/")
    assert done.returncode == 0, done.stderr
    manifest = collect.read_manifest(done.stdout.strip())
    assert numbers_of(manifest) == list(range(ROWS))
    assert manifest["attempts"][0] == "halted"
    assert len(manifest["attempts"]) == 2


@pytest.mark.chaos  # two loads of the model
def test_rows_that_failed_are_tried_again_and_those_that_fail_again_stay_counted(job_file, rayferry):
    path = job_file("again", engine=ENGINE | {"max_model_len": 64}, on_error={"max_error_rate": 0.9})
    texts = ["The sky is", "word " * 100, "Grass is", "name " * 200]
    lines = [json.dumps({"text": text, "number": row}) for row, text in enumerate(texts)]
    s3.write_bytes("s3://rayferry/e2e/again/in/0.jsonl", "\n".join(lines).encode())
    first = rayferry("submit", path, "--submission-id", "again")
    before = collect.read_manifest("s3://rayferry/e2e/again/out/")
    again = rayferry("resume", "s3://rayferry/e2e/again/out/", "--retry-failed")
    after = collect.read_manifest("s3://rayferry/e2e/again/out/")
    assert (first.returncode, again.returncode) == (0, 0), again.stderr
    assert before["counts"] == after["counts"]
    assert (after["counts"]["succeeded"], after["counts"]["failed"], len(after["attempts"])) == (10, 2, 2)
    kept = [{part["uri"] for part in one["parts"] if "/data/" in part["uri"]} for one in (before, after)]
    failed = [{part["uri"] for part in one["parts"] if "/errors/" in part["uri"]} for one in (before, after)]
    assert kept[0] == kept[1]
    assert not failed[0] & failed[1]
    there = {uri for uri, _ in s3.list_keys("s3://rayferry/e2e/again/out/errors/", 9)}
    assert there - {"s3://rayferry/e2e/again/out/errors/"} == failed[1]  # Arrow leaves an empty object of that name
