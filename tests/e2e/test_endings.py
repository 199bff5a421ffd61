"""How jobs end that do not end well: exit codes and what is said, through the real Jobs API."""

import signal
import subprocess

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture
def running(job_file, command):
    """Starts `rayferry submit` of a long job; gives the process once the job runs."""
    started = []

    def start(name):
        path = job_file(name, sampling={"max_tokens": 100000, "ignore_eos": True}, engine={"max_model_len": 8192})
        process = subprocess.Popen(
            [command, "submit", str(path), "--submission-id", name],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        for line in process.stderr:
            if line.strip().endswith("RUNNING"):
                return process
        raise AssertionError(process.wait())

    yield start
    for process in started:
        process.kill()


def test_ctrl_c_detaches_and_stop_ends_the_job_with_4(running, rayferry):
    process = running("detached")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "rayferry logs -f detached" in said
    assert "rayferry stop detached" in said
    assert rayferry("status", "detached").stdout == "RUNNING\n"
    assert rayferry("stop", "detached").stdout == "STOPPED\n"
    assert rayferry("logs", "-f", "detached").returncode == 4
    assert rayferry("status", "s3://rayferry/e2e/detached/out/").stdout == "STOPPED\n"


def test_submit_ends_4_when_somebody_else_stops_the_job(running, rayferry):
    process = running("stopped")
    assert rayferry("stop", "stopped").returncode == 0
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (4, "")


def test_a_job_out_of_time_ends_with_6_and_says_so(job_file, rayferry):
    done = rayferry("submit", job_file("late", timeout="4s"))
    assert done.returncode == 6
    assert "timed out: not done after 4s" in done.stderr


def test_the_status_and_the_log_of_a_job_that_is_over_are_in_s3_too(job_file, rayferry):
    name, uri = "later", "s3://rayferry/e2e/later/out/"
    assert rayferry("submit", job_file(name, timeout="4s"), "--submission-id", name).returncode == 6
    copy = rayferry("logs", "--raw", uri).stdout
    assert rayferry("status", uri).stdout == "TIMED_OUT\n"
    assert "error: timed out" in copy
    assert rayferry("logs", "--raw", name).stdout.startswith(copy)


def test_an_engine_that_cannot_start_is_quoted_in_a_line(job_file, rayferry):
    done = rayferry("submit", job_file("toolong", engine={"max_model_len": 1000000}))
    assert done.returncode == 1
    assert "max_model_len" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 25


def test_more_errors_than_allowed_end_with_3_and_the_output_is_there(job_file, rayferry, model):
    path = job_file("errors", input={"uri": "s3://rayferry/e2e/errors/in/", "column": "nothing"})
    done = rayferry("submit", path, "--skip", "rows")  # which would refuse it
    assert (done.returncode, done.stdout) == (3, "s3://rayferry/e2e/errors/out/\n"), done.stderr
    assert "more than max_error_rate" in done.stderr
