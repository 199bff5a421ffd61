"""What is exported for KubeRay, carried out as its operator does: the package is in S3, and a laptop sends nothing."""

import time

import pytest
import yaml
from click.testing import CliRunner

from rayferry.submit.cli import main

TICK = "2027-05-06T02:00:00Z"
LIMIT_S = 120


@pytest.fixture
def rayferry(tmp_path):
    """Runs the command on a store of its own."""

    def run(*words):
        result = CliRunner().invoke(
            main, [str(word) for word in words], env={"RAYFERRY_SCHEDULES": str(tmp_path / "s")}
        )
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture
def job_path(tmp_path, bucket_uri):
    """A job whose input is not there, so that it ends before it needs a model."""
    job = {
        "name": "reviews",
        "model": "org/model",
        "input": {"uri": bucket_uri + "/in/{{ scheduled_time | date('%Y-%m-%d') }}/"},
        "output": {"uri": bucket_uri + "/out/{{ scheduled_time | date('%Y-%m-%dT%H%M') }}/"},
        "resources": {"device": "cpu"},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def carried_out(stack, spec, more=""):
    """Sends the job of a RayJob's spec as the operator does in HTTPMode; gives its id, end and log."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(stack.environ()["RAY_API_SERVER_ADDRESS"])
    name = client.submit_job(
        entrypoint=spec["entrypoint"] + more,
        runtime_env=yaml.safe_load(spec["runtimeEnvYAML"]),
        metadata=spec["metadata"],
    )
    deadline = time.monotonic() + LIMIT_S
    while not client.get_job_status(name).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(name)
        time.sleep(0.2)
    assert client.get_job_status(name) == JobStatus.FAILED
    return name, client.get_job_info(name), client.get_job_logs(name)


def test_a_schedules_job_fills_in_its_templates_on_the_cluster_under_the_id_that_ray_gave_it(
    stack, rayferry, job_path, bucket_uri
):
    rayferry("schedule", "add", "nightly", job_path, "--cron", "0 2 * * *", "--timezone", "Asia/Shanghai")
    words = ("schedule", "export", "nightly", "--to", "kuberay", "--package-uri", f"{bucket_uri}/packages/")
    first, second = rayferry(*words), rayferry(*words)
    assert first.stdout == second.stdout
    assert f"put there: {bucket_uri}/packages/rayferry-" in first.stderr
    assert f"there already: {bucket_uri}/packages/rayferry-" in second.stderr
    spec = yaml.safe_load(first.stdout)["spec"]["jobTemplate"]
    name, info, log = carried_out(stack, spec, f" --scheduled-time {TICK}")
    assert f": {name}" in log
    assert f"{bucket_uri}/in/2027-05-06/" in log
    assert (info.driver_exit_code, info.metadata["rayferry_name"]) == (1, "nightly")


def test_a_plain_job_runs_from_its_package_in_s3(stack, rayferry, job_path, bucket_uri):
    sets = [word for part in ("in", "out") for word in ("--set", f"{part}put.uri={bucket_uri}/{part}/")]
    made = rayferry("submit", job_path, *sets, "--export", "kuberay", "--package-uri", bucket_uri)
    _, info, log = carried_out(stack, yaml.safe_load(made.stdout)["spec"])
    assert f"{bucket_uri}/in/" in log
    assert info.metadata["rayferry_output_uri"] == f"{bucket_uri}/out/"
