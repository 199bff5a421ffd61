"""The table of exit codes, cell by cell: real processes of the installed command, and real jobs."""

import signal

import pytest

from .conftest import LONG, end_of, follow, run

pytestmark = pytest.mark.e2e


def out_of(name):
    return f"s3://rayferry/e2e/{name}/out/"


@pytest.fixture(scope="module")
def failed(job_file):
    """A job that finds no input: no engine starts."""
    path = job_file("failed", input={"uri": "s3://rayferry/e2e/failed/none/"})
    return run("submit", path, "--submission-id", "failed", "--skip", "input", "--skip", "rows")


@pytest.fixture(scope="module")
def around_a_stop(job_file):
    """How three commands ended: a `submit`, a `stop` that did not wait for the end, and one that did."""
    process = follow("submit", job_file("stopped", **LONG), "--submission-id", "stopped")
    stops = run("stop", "stopped", "--timeout", "0"), run("stop", "stopped")
    return end_of(process), *stops


@pytest.fixture(scope="module")
def stopped(around_a_stop):
    return around_a_stop[0]


@pytest.mark.parametrize(
    ("code", "job", "output"),
    [
        (0, "greedy_job", "greedy"),
        (1, "failed", None),
        (3, "too_many_errors", "errors"),
        (4, "stopped", None),
        (6, "late_job", None),
    ],
)
def test_submit_ends_as_its_job_does(request, code, job, output):
    done = request.getfixturevalue(job)
    assert (done.returncode, done.stdout) == (code, f"{out_of(output)}\n" if output else ""), done.stderr


@pytest.mark.parametrize(
    ("code", "job", "name", "status"),
    [
        (0, "greedy_job", "greedy-1", "SUCCEEDED"),
        (1, "failed", "failed", "FAILED"),
        (3, "too_many_errors", "errors", "FAILED"),
        (4, "stopped", "stopped", "STOPPED"),
        (6, "late_job", "late", "FAILED"),
    ],
)
def test_of_a_job_that_is_over_logs_f_ends_as_submit_and_status_with_0(request, code, job, name, status):
    request.getfixturevalue(job)
    assert run("logs", "-f", name).returncode == code
    told = run("status", name)
    assert (told.returncode, told.stdout) == (0, f"{status}\n")


@pytest.mark.parametrize(
    ("code", "job", "name"),
    [
        (0, "greedy_job", "greedy-1"),
        (0, "too_many_errors", "errors"),
        (1, "failed", "failed"),
        (1, "stopped", out_of("stopped")),
    ],
)
def test_result_is_0_where_there_is_a_manifest_and_else_1(request, code, job, name):
    request.getfixturevalue(job)
    assert run("result", name).returncode == code


def test_stop_is_1_if_the_job_outlives_its_timeout_and_0_once_it_is_over(around_a_stop):
    _, hasty, patient = around_a_stop
    assert (hasty.returncode, hasty.stdout) == (1, "")
    assert (patient.returncode, patient.stdout) == (0, "STOPPED\n")
    assert run("stop", "stopped").returncode == 0


def test_too_many_errors_are_told(too_many_errors):
    assert "more than max_error_rate" in too_many_errors.stderr


@pytest.mark.parametrize("words", ["status", "logs -f", "stop", "result"])
def test_an_id_that_the_cluster_does_not_know_is_1(rayferry, words):
    done = rayferry(*words.split(), "nothing-1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "knows no such job" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "submit nowhere/job.yaml",
        "submit {job} --set sampling.max_tokns=1",
        "submit {job} --timeout soon",
        "status",
        "logs -f s3://rayferry/e2e/greedy/out/",
        "logs -f greedy-1 --timeout soon",
        "stop greedy-1 --timeout soon",
        "stop s3://rayferry/e2e/greedy/out/",
        "list --address http://h:99999",
        "result greedy-1 --no-such-flag",
    ],
)
def test_wrong_usage_is_2_and_starts_nothing(job_file, words):
    done = run(*words.format(job=job_file("mistaken")).split())
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["submit", "logs -f"])
def test_contact_that_is_lost_for_good_is_5_whatever_the_job_does(lost, command):
    done = lost[command]
    assert (done.returncode, done.stdout) == (5, "")
    assert "go on with: rayferry logs -f lost" in done.stderr


@pytest.fixture(scope="module")
def detached(job_file):
    """A `submit` that Ctrl-C ended. Its job takes the CPUs until this module is done: its tests come last."""
    process = follow("submit", job_file("detached", **LONG), "--submission-id", "detached")
    process.send_signal(signal.SIGINT)
    yield end_of(process)
    run("stop", "detached")


def test_submit_that_ctrl_c_ends_is_130_says_how_to_go_on_and_leaves_the_job_alone(detached):
    assert (detached.returncode, detached.stdout) == (130, "")
    assert "rayferry logs -f detached" in detached.stderr
    assert "rayferry stop detached" in detached.stderr
    assert run("status", "detached").stdout == "RUNNING\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_logs_f_that_a_signal_ends_is_130(detached, number):
    process = follow("logs", "-f", "detached")
    process.send_signal(number)
    assert end_of(process).returncode == 130


def test_logs_f_that_waited_long_enough_is_6(detached):
    done = run("logs", "-f", "detached", "--timeout", "1s")
    assert (done.returncode, "rayferry logs -f detached" in done.stderr) == (6, True)


def test_result_of_a_job_that_goes_on_is_1(detached):
    assert run("result", "detached").returncode == 1
