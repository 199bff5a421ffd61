"""The main job through the real Jobs API, with the installed wheel, real vLLM, real weights and a real S3 server."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayferry.submit import collect, s3

pytestmark = pytest.mark.e2e

OUTPUT = "s3://rayferry/e2e/greedy/out/"
RAY = str(Path(sys.executable).parent / "ray")


def rows_of(manifest, kind):
    uris = [part["uri"] for part in manifest["parts"] if part["kind"] == kind]
    tables = [pq.read_table(io.BytesIO(s3.read_bytes(uri))) for uri in uris]
    return pa.concat_tables(tables, promote_options="default").to_pylist()


@pytest.fixture(scope="module")
def manifest(greedy_job):
    assert greedy_job.returncode == 0, greedy_job.stderr
    return collect.read_manifest(OUTPUT)


def test_submit_ends_0_and_prints_only_the_output_uri(greedy_job):
    assert (greedy_job.returncode, greedy_job.stdout) == (0, OUTPUT + "\n"), greedy_job.stderr


def test_stderr_has_our_lines_and_not_the_noise_of_ray_and_vllm(greedy_job):
    assert "1 replica ready" in greedy_job.stderr
    assert "15 rows: 12 answered" in greedy_job.stderr
    assert not [line for line in greedy_job.stderr.splitlines() if "INFO" in line or "pid=" in line]


def test_manifest_counts_every_input_row(manifest):
    assert manifest["counts"] == {"total": 15, "succeeded": 12, "failed": 3}


def test_manifest_lists_exactly_the_parts_that_are_there(manifest):
    there = {uri for kind in ("data", "errors") for uri, _ in s3.list_keys(f"{OUTPUT}{kind}/", 100)}
    assert {part["uri"] for part in manifest["parts"]} == there


def test_the_answers_are_in_many_parts(manifest):
    assert sum(part["kind"] == "data" for part in manifest["parts"]) > 1


def test_parts_have_the_sha256_size_and_rows_that_the_manifest_says(manifest):
    for part in manifest["parts"]:
        content = s3.read_bytes(part["uri"])
        assert hashlib.sha256(content).hexdigest() == part["sha256"]
        assert len(content) == part["num_bytes"]
        assert pq.read_metadata(io.BytesIO(content)).num_rows == part["num_rows"]


def test_manifest_tells_the_versions_and_the_speed(manifest):
    assert manifest["versions"]["vllm"]
    assert manifest["versions"]["ray"]
    assert manifest["tokens_per_s"] > 0
    assert manifest["tokens"]["generated"] == sum(row["num_generated_tokens"] for row in rows_of(manifest, "data"))


def test_each_row_has_one_id_over_data_and_errors(manifest):
    ids = [row["id"] for kind in ("data", "errors") for row in rows_of(manifest, kind)]
    assert len(ids) == len(set(ids)) == 15


def test_good_rows_keep_the_inputs_own_columns(manifest):
    assert {row["number"] for row in rows_of(manifest, "data")} == set(range(12))


def test_failed_rows_say_at_which_stage_and_why(manifest):
    failed = {row["id"]: (row["stage"], row["error_type"]) for row in rows_of(manifest, "errors")}
    assert failed["bad.jsonl:0"] == ("parse", "JSONDecodeError")
    assert failed["bad.jsonl:1"] == ("parse", "MissingColumn")
    assert failed["bad.jsonl:2"][0] == "length"


def test_predictor_gives_the_same_tokens_as_llm_generate(same_engine):
    tokens = {side: [answer["token_ids"] for answer in same_engine[side]] for side in ("predictor", "generate")}
    assert tokens["predictor"] == tokens["generate"]


def test_job_gives_the_same_answers_as_llm_generate(manifest, same_engine):
    rows = sorted(rows_of(manifest, "data"), key=lambda row: row["number"])
    ours = [(row["generated_text"], row["num_generated_tokens"]) for row in rows]
    assert ours == [(answer["text"], len(answer["token_ids"])) for answer in same_engine["generate"]]


def test_rays_own_command_sees_the_job_and_its_log(greedy_job, stack):
    for arguments, expected in ((["list"], "greedy-1"), (["logs", "greedy-1"], "done: 12 answers, 3 errors")):
        done = subprocess.run(
            [RAY, "job", *arguments, "--address", stack.address], capture_output=True, text=True, check=True
        )
        assert expected in done.stdout + done.stderr


def test_result_by_id_and_by_output_uri(greedy_job, rayferry):
    for name in ("greedy-1", OUTPUT):
        done = rayferry("result", name)
        assert (done.returncode, done.stdout) == (0, OUTPUT + "\n")


def test_status_and_list_tell_the_end(greedy_job, rayferry):
    assert rayferry("status", "greedy-1").stdout == "SUCCEEDED\n"
    listed = json.loads(rayferry("list", "--json").stdout)
    assert ("greedy-1", "SUCCEEDED") in [(job["submission_id"], job["status"]) for job in listed]


def test_preview_shows_answers_and_errors(greedy_job, rayferry):
    answers = json.loads(rayferry("preview", OUTPUT, "-n", "3", "--json").stdout)
    assert [set(row) >= {"id", "prompt", "generated_text"} for row in answers] == [True] * 3
    errors = json.loads(rayferry("preview", OUTPUT + "errors/", "--json").stdout)
    assert len(errors) == 3


def test_a_used_output_is_refused_before_anything_runs(greedy_job, job_file, rayferry):
    done = rayferry("submit", job_file("used", output={"uri": OUTPUT}))
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert "Traceback" not in done.stderr
