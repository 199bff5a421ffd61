"""What is said, and what stays, of jobs that do not end well. Their exit codes are in test_exit_codes.py."""

import pytest

pytestmark = pytest.mark.e2e


def test_a_job_out_of_time_says_so(late_job):
    assert "timed out: not done after 8s" in late_job.stderr


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
