"""What is sent, as a value: exact, the same twice, and free of what stays on the laptop."""

import json
import re

import pytest

from rayferry.job import VERSION
from rayferry.job.spec import parse
from rayferry.runtime_env.staging import stage
from rayferry.submit.request import build_request, is_submission_id, new_submission_id

DATA = {
    "name": "reviews",
    "model": "org/model",
    "input": {"uri": "s3://bucket/prompts/"},
    "output": {"uri": "s3://bucket/out/reviews"},
    "runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "1"}},
    "cluster": {"address": "http://file:8265"},
}


@pytest.fixture
def spec():
    return parse(DATA, "job.yaml")


def test_a_request_is_exactly_this(spec):
    package = stage(spec)
    assert build_request(spec, "http://head:8265", "job-1").to_json() == {
        "address": "http://head:8265",
        "submission_id": "job-1",
        "entrypoint": "python -m rayferry.job spec.json --submission-id job-1",
        "runtime_env": {
            "working_dir": package.name,
            "env_vars": {
                "PYTHONUNBUFFERED": "1",
                "RAY_JOB_STOP_WAIT_TIME_S": "20",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            },
            "config": {"setup_timeout_seconds": 1800},
        },
        "metadata": {
            "rayferry_version": VERSION,
            "rayferry_name": "reviews",
            "rayferry_run": "job-1",
            "rayferry_output_uri": "s3://bucket/out/reviews/",
        },
        "output_uri": "s3://bucket/out/reviews/",
        "manifest_uri": "s3://bucket/out/reviews/_meta/manifest.json",
        "package": {
            "name": package.name,
            "sha256": package.sha256,
            "num_bytes": len(package.content),
            "files": [{"name": name, "num_bytes": size} for name, size in package.files],
            "left_out": [],
        },
        "schema_version": 1,
    }


def test_the_same_arguments_give_the_same_request_to_the_byte(spec):
    assert build_request(spec, "http://head:8265", "job-1") == build_request(spec, "http://head:8265", "job-1")


def test_a_request_goes_through_json_unchanged(spec):
    value = build_request(spec, "http://head:8265", "job-1").to_json()
    assert json.loads(json.dumps(value)) == value


def test_the_zip_itself_is_neither_printed_nor_shown(spec):
    request = build_request(spec, "http://head:8265", "job-1")
    assert ("content" in request.to_json(), "content" in repr(request)) == (False, False)


def test_a_request_says_where_the_answers_will_be_before_the_job_exists(spec):
    request = build_request(spec, "http://head:8265", "job-1")
    assert request.metadata["rayferry_output_uri"] == request.output_uri


def test_metadata_are_strings_as_ray_asks(spec):
    metadata = build_request(spec, "http://head:8265", "job-1").metadata
    assert all(isinstance(value, str) for value in metadata.values())


@pytest.mark.parametrize("name", ["a", "my.job_1-x", "N" * 63])
def test_a_new_id_says_what_and_when_and_can_be_an_id(name):
    submission_id = new_submission_id(name)
    assert re.fullmatch(re.escape(name) + r"-\d{8}-\d{6}-[0-9a-f]{6}", submission_id)
    assert is_submission_id(submission_id)


def test_two_new_ids_differ():
    assert len({new_submission_id("a") for _ in range(100)}) == 100


@pytest.mark.parametrize("text", ["a", "A.b_c-1", "0", "x" * 128])
def test_what_fits_a_file_name_and_a_url_can_be_an_id(text):
    assert is_submission_id(text)


@pytest.mark.parametrize("text", ["", ".", "..", "-a", "a/b", "a b", "a\n", "é", "a?b", "a%2f", "$(x)", "x" * 129])
def test_what_does_not_cannot(text):
    assert not is_submission_id(text)
