"""Ctrl-C and SIGTERM, anywhere in a command: exit code 130, a line on stderr, and never a traceback."""

import os
import pty
import signal
import socket
import subprocess
import time

import pytest

from rayferry.submit import signals

from .conftest import COMMAND


@pytest.fixture
def silent():
    """A dashboard that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def url_of(server):
    return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("words", "number", "said"),
    [
        ("submit {job} --submission-id a", signal.SIGINT, "interrupted before a was submitted"),
        ("check {job}", signal.SIGTERM, "interrupted"),
        ("list", signal.SIGINT, "interrupted"),
        ("doctor", signal.SIGTERM, "interrupted"),
        ("logs -f a", signal.SIGINT, "interrupted"),
        ("resume a", signal.SIGTERM, "interrupted"),
    ],
)
def test_a_command_that_waits_for_the_cluster_ends_with_a_line_and_130(process, silent, job_file, words, number, said):
    one = process(*words.format(job=job_file).split(), "--address", url_of(silent))
    connection, _ = silent.accept()
    with connection:
        one.send_signal(number)
        datum, told = one.communicate(timeout=200)
    assert (one.returncode, datum, told.splitlines()) == (130, "", [f"rayferry: {said}"])


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, signals.Terminated)])
def test_a_signal_that_comes_while_an_object_is_cleared_away_is_not_lost(number, kind):
    class Last:
        def __del__(self):
            signal.raise_signal(number)
            time.sleep(0)  # what is raised by the handler is lost here

    with signals.handled():
        last = Last()
        del last
        with pytest.raises(kind) as raised:
            time.sleep(30)
    assert raised.type is kind


def test_while_a_job_is_sent_it_is_said_how_to_see_whether_it_was_started(process, ray_api, job_file):
    started = []
    ray_api.on_start = lambda _name: (started.append(one.send_signal(signal.SIGTERM)), one.wait(30))
    one = process("submit", job_file, "--address", ray_api.url, "--submission-id", "job-1")
    told = one.communicate(timeout=200)[1]
    see = f"rayferry status job-1 --address {ray_api.url}"
    last = f"rayferry: interrupted while submitting: see whether it was started: {see}"
    assert (one.returncode, told.splitlines()[-1], len(started)) == (130, last, 1)


def test_between_two_attempts_it_is_said_how_to_go_on(process, ray_api, job_file, job_data):
    ray_api.statuses, ray_api.error_type = ["FAILED"], "JOB_SUPERVISOR_ACTOR_DIED"
    one = process("submit", job_file, "--address", ray_api.url, "--submission-id", "job-1")
    lines = []
    for line in one.stderr:
        lines.append(line.strip())
        if line.startswith("attempt 2 of 3"):
            one.send_signal(signal.SIGINT)
    go_on = f"rayferry resume {job_data['output']['uri']}/ --address {ray_api.url}"
    last = f"rayferry: interrupted before job-1-a2 was submitted; go on with: {go_on}"
    assert (one.wait(30), lines[-1]) == (130, last)


@pytest.fixture
def sent(ray_api, job_file):
    arguments = ["submit", job_file, "--address", ray_api.url, "--submission-id", "job-1", "--no-wait"]
    subprocess.run([COMMAND, *map(str, arguments)], check=True, capture_output=True)
    ray_api.statuses[:] = ["RUNNING"]
    return ray_api


def test_ctrl_c_while_a_job_stops_tells_that_it_was_asked_to(process, sent):
    sent.faults[("POST", "/api/jobs/job-1/stop")] = [(200, {"stopped": True})]  # and it goes on
    one = process("stop", "job-1", "--address", sent.url)
    while sent.num("POST", "/api/jobs/job-1/stop") < 1 or sent.requests[-1][0] != "GET":
        assert one.poll() is None
        sent.asked.wait(1)
    one.send_signal(signal.SIGINT)
    last = f"rayferry: interrupted: job-1 was asked to stop; see: rayferry status job-1 --address {sent.url}"
    assert (one.communicate(timeout=200)[1].splitlines(), one.returncode) == ([last], 130)


def test_a_third_ctrl_c_ends_the_wait_for_the_stop(process, sent):
    sent.faults[("POST", "/api/jobs/job-1/stop")] = [(200, {"stopped": True})]
    terminal, other = pty.openpty()
    one = process("logs", "-f", "job-1", "--address", sent.url, stdin=other)
    os.close(other)
    while sent.num("GET", "/api/jobs/job-1") < 3:
        assert one.poll() is None
        sent.asked.clear()
        sent.asked.wait(1)
    said = ""
    one.send_signal(signal.SIGINT)
    for line in one.stderr:
        said = line.strip() or said
        if "Ctrl-C again" in line:
            one.send_signal(signal.SIGINT)
        if line.startswith("stopping"):
            while sent.num("POST", "/api/jobs/job-1/stop") < 1 or sent.requests[-1][0] != "GET":
                sent.asked.wait(0.1)
            one.send_signal(signal.SIGINT)
    os.close(terminal)
    last = f"rayferry: interrupted: job-1 was asked to stop; see: rayferry status job-1 --address {sent.url}"
    assert (one.wait(30), said) == (130, last)
