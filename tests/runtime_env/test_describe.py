"""Ray's runtime_env of a job, exactly."""

import json
import shlex

import pytest
from ray.runtime_env import RuntimeEnv

from rayferry.job.spec import parse
from rayferry.runtime_env.describe import describe, entrypoint

OURS = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": "20", "VLLM_NO_USAGE_STATS": "1"}
URIS = {"input": {"uri": "s3://bucket/in"}, "output": {"uri": "s3://bucket/out"}}


def job(**runtime_env):
    return parse({"model": "m", **URIS, "runtime_env": runtime_env}, "job.yaml")


@pytest.mark.parametrize(
    ("runtime_env", "env_vars", "further"),
    [
        ({}, OURS, {}),
        ({"env_vars": {"A": "1"}}, {**OURS, "A": "1"}, {}),
        ({"env_vars": {"PYTHONUNBUFFERED": "0"}}, {**OURS, "PYTHONUNBUFFERED": "0"}, {}),
        ({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90"}}, {**OURS, "RAY_JOB_STOP_WAIT_TIME_S": "90"}, {}),
        ({"pip": ["a==1", "b"]}, OURS, {"pip": ["a==1", "b"]}),
        ({"pip": []}, OURS, {}),
    ],
)
def test_a_runtime_env_is_exactly_this(runtime_env, env_vars, further):
    assert describe(job(**runtime_env), "p.zip") == {
        "working_dir": "p.zip",
        "env_vars": env_vars,
        "config": {"setup_timeout_seconds": 1800},
        **further,
    }


@pytest.mark.parametrize("runtime_env", [{}, {"env_vars": {"A": "1"}}, {"pip": ["a==1"]}], ids=str)
def test_ray_accepts_it(runtime_env):
    value = describe(job(**runtime_env), "gcs://p.zip")
    assert RuntimeEnv(**value).to_dict()["env_vars"] == value["env_vars"]


def test_it_goes_through_json_unchanged():
    value = describe(job(pip=["a"], env_vars={"A": "é"}), "p.zip")
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("further", [{"secrets": {"HF_TOKEN": "env:HF_TOKEN"}}, {"files": ["/a"]}], ids=str)
def test_ray_is_told_nothing_of_secrets_and_files(further):
    assert describe(job(**further), "p.zip") == describe(job(), "p.zip")


def test_changing_the_value_does_not_change_the_job():
    spec = job(pip=["a"], env_vars={"A": "1"})
    value = describe(spec, "p.zip")
    value["pip"].append("b")
    value["env_vars"]["A"] = "2"
    assert (spec.runtime_env.pip, spec.runtime_env.env_vars) == (["a"], {"A": "1"})


def test_the_entrypoint_is_exactly_this():
    assert entrypoint("reviews-1") == "python -m rayferry.job spec.json --submission-id reviews-1"


@pytest.mark.parametrize("submission_id", ["a b", "$(reboot)", "a;b", "it's"])
def test_a_shell_reads_the_id_as_one_word(submission_id):
    assert shlex.split(entrypoint(submission_id))[-1] == submission_id
