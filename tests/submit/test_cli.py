"""The `rayferry` command: what it prints where, and how it ends."""

import json
import os
import signal
import subprocess
import sys

import click
import pytest
import yaml
from click.testing import CliRunner

from rayferry.job import VERSION, storage
from rayferry.submit.cli import main
from rayferry.submit.cli_shared import CHECKS
from rayferry.submit.client import JobInfo
from rayferry.submit.local.ports import free_ports
from rayferry.submit.preflight import PROBE_JOB

SKIPS = (*CHECKS, PROBE_JOB)


HEAVY = {"ray", "boto3", "botocore", "pyarrow", "numpy", "pandas", "torch", "vllm", "pydantic", "requests", "rich"}


def paths(group=main, path=()):
    """Every command, as its words."""
    yield path
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from paths(command, (*path, name))
        else:
            yield (*path, name)


@pytest.fixture
def rayferry():
    """Runs the command in this process; no error may come out of it but its exit code."""

    def run(*arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    return run


@pytest.fixture
def sent(ray_api, job_file, rayferry):
    """A job that was sent to the cluster."""
    assert (
        rayferry("submit", job_file, "--address", ray_api.url, "--submission-id", "job-1", "--no-wait").exit_code == 0
    )
    return ray_api


@pytest.mark.parametrize("words", list(paths()), ids=" ".join)
def test_help_is_given_without_importing_ray_or_anything_heavy(words):
    program = "import sys; from rayferry.submit.cli import main; main(sys.argv[1:], standalone_mode=False)"
    program += f"; print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program, *words, "--help"], capture_output=True, text=True, check=True)
    assert (done.stdout.startswith("Usage: "), done.stderr) == (True, "[]\n")


@pytest.mark.parametrize("words", list(paths()), ids=" ".join)
def test_every_command_and_option_says_what_it_is_for(words):
    command = main
    for word in words:
        command = command.commands[word]
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert command.help
    assert all(option.help for option in options)


def test_the_version_is_the_packages(process):
    assert process("--version").communicate()[0].strip().endswith(VERSION)


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["submit"], ["submit", "a", "b"], ["submit", "--nonsense"], ["preview", "x", "-n", "0"]]
)
def test_wrong_usage_is_exit_code_2(rayferry, arguments):
    assert rayferry(*arguments).exit_code == 2


BAD_JOBS = {
    "empty": "",
    "a list": "- a",
    "a text": "hello",
    "broken YAML": "a: [1",
    "tabs": "a:\n\t- b",
    "a bad date": "name: 2024-02-30",
    "unknown key": "modl: m",
    "wrong type": "model: [m]",
    "no values": "model:\ninput:\noutput:\n",
    "keys that are no texts": "1: 2",
    "no text at all": "\x00",
    "too deep": "[" * 1000,
    "itself": "a: &a [*a]",
}


@pytest.mark.parametrize("content", BAD_JOBS.values(), ids=BAD_JOBS)
@pytest.mark.parametrize("command", [["submit"], ["submit", "--dry-run"], ["check"]], ids=" ".join)
def test_a_bad_job_file_is_exit_code_2_and_a_line_on_stderr(rayferry, tmp_path, content, command):
    path = tmp_path / "job.yaml"
    path.write_text(content)
    result = rayferry(*command, path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert all(line.startswith(f"rayferry: error: {path}: ") for line in result.stderr.splitlines())


@pytest.mark.parametrize("command", ["submit", "check"])
def test_a_job_file_that_is_not_there_is_exit_code_2(rayferry, tmp_path, command):
    result = rayferry(command, tmp_path / "none.yaml")
    assert (result.exit_code, "to make a job file: rayferry init" in result.stderr) == (2, True)


def test_a_job_file_that_is_no_text_is_exit_code_2(rayferry, tmp_path):
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    assert rayferry("submit", tmp_path / "job.yaml").exit_code == 2


def test_a_bad_job_file_shows_no_traceback_in_a_real_terminal(process, tmp_path):
    (tmp_path / "job.yaml").write_text("modl: m\n")
    one = process("submit", tmp_path / "job.yaml")
    datum, words = one.communicate()
    assert (one.returncode, datum, "Traceback" in words) == (2, "", False)
    assert "modl: unknown key; did you mean 'model'?" in words


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("sampling.max_token=5", "sampling.max_token: unknown key; did you mean 'max_tokens'?"),
        ("temperature=5", "temperature: unknown key; did you mean 'sampling.temperature'?"),
        ("engine.max_modle_len=5", "unknown key 'max_modle_len'; did you mean 'max_model_len'?"),
        ("outptu=5", "outptu: unknown key; did you mean 'output'?"),
        ("name", "write it as path=value"),
        ("name=2024-02-30", "--set name=2024-02-30"),
    ],
)
def test_a_wrong_set_is_exit_code_2_and_names_what_is_near(rayferry, job_file, assignment, said):
    result = rayferry("submit", job_file, "--dry-run", "--set", assignment)
    assert (result.exit_code, said in result.stderr) == (2, True)


@pytest.mark.parametrize("text", ["a b", "../a", "", "-a", "x" * 129])
def test_what_cannot_be_an_id_is_exit_code_2(rayferry, job_file, text):
    result = rayferry("submit", job_file, "--dry-run", f"--submission-id={text}")
    assert (result.exit_code, "--submission-id" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("2m", 120), ("0", 0), ("0.0", 0), ("1.5", 1.5), ("60.0", 60), (None, 60), ("1h", 3600)],
)
def test_stop_takes_a_duration_or_a_number_of_seconds(rayferry, sent, monkeypatch, text, expected):
    waited = []

    def stop(_cluster, name, timeout_s):
        waited.append(timeout_s)
        return JobInfo(name, "STOPPED")

    monkeypatch.setattr("rayferry.submit.launch.stop", stop)
    options = [] if text is None else ["--timeout", text]
    assert rayferry("stop", "job-1", "--address", sent.url, *options).exit_code == 0
    assert waited == [expected]


@pytest.mark.parametrize("text", ["soon", "", "-1", "inf", "nan", "1e400", "9" * 400, "1000000000000d"])
@pytest.mark.parametrize("words", [["stop", "job-1"], ["logs", "-f", "job-1"]], ids=" ".join)
def test_a_timeout_that_is_none_is_exit_code_2_before_anything_is_asked(rayferry, ray_api, words, text):
    result = rayferry(*words, "--address", ray_api.url, f"--timeout={text}")
    assert (result.exit_code, result.stderr.startswith("rayferry: error: --timeout"), ray_api.requests) == (2, True, [])


@pytest.mark.parametrize("arguments", [["submit", "JOB"], ["check", "JOB"], ["status", "x"], ["logs", "x"], ["list"]])
def test_no_address_is_exit_code_2_and_says_how_to_get_a_cluster(rayferry, job_file, arguments):
    result = rayferry(*[job_file if word == "JOB" else word for word in arguments])
    assert (result.exit_code, "rayferry local up" in result.stderr) == (2, True)


@pytest.mark.parametrize("address", ["auto", "head:8265", "ray://head:10001", "http://[::1"])
def test_an_address_of_another_kind_is_exit_code_2(rayferry, job_file, address):
    assert rayferry("submit", job_file, "--address", address).exit_code == 2


def test_a_dry_run_prints_the_same_bytes_twice(process, job_file):
    first, second = (process("submit", job_file, "--dry-run").communicate() for _ in range(2))
    assert (first[0], first[1]) == (second[0], "")


def test_a_dry_run_prints_the_request_as_json_and_nothing_else(rayferry, job_file, job_data):
    result = rayferry("submit", job_file, "--dry-run")
    value = json.loads(result.stdout)
    assert (result.exit_code, result.stderr, value["output_uri"]) == (0, "", job_data["output"]["uri"] + "/")


def test_a_dry_run_does_not_import_ray(job_file):
    program = "import sys; from rayferry.submit.cli import main; main(sys.argv[1:], standalone_mode=False)"
    program += "; print('ray' in sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", program, "submit", str(job_file), "--dry-run"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == "False\n"


def test_a_dry_run_touches_no_cluster(rayferry, job_file, ray_api):
    rayferry("submit", job_file, "--dry-run", "--address", ray_api.url)
    assert ray_api.requests == []


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ([], {}, "http://127.0.0.1:8265"),
        (["--address", "http://flag:1/"], {"RAY_ADDRESS": "http://ray:4"}, "http://flag:1"),
        ([], {"RAY_ADDRESS": "http://ray:4"}, "http://ray:4"),
        ([], {"RAY_ADDRESS": "http://ray:4", "RAY_API_SERVER_ADDRESS": "http://api:3"}, "http://api:3"),
        (["--set", "cluster.address=http://file:2"], {"RAY_ADDRESS": "http://ray:4"}, "http://file:2"),
    ],
)
def test_a_dry_run_tells_the_address_that_would_be_used(rayferry, job_file, monkeypatch, arguments, environ, expected):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert json.loads(rayferry("submit", job_file, "--dry-run", *arguments).stdout)["address"] == expected


def test_set_changes_what_is_sent(rayferry, job_file):
    value = json.loads(rayferry("submit", job_file, "--dry-run", "--set", "name=other").stdout)
    assert (value["submission_id"], value["metadata"]["rayferry_name"]) == ("other-dry-run", "other")


def test_submit_follows_to_the_end_and_prints_the_output_uri_alone(
    rayferry, job_file, job_data, ray_api, write_manifest
):
    uri = job_data["output"]["uri"] + "/"
    ray_api.on_start = lambda name: write_manifest(uri, name)
    ray_api.statuses = ["PENDING", "RUNNING", "SUCCEEDED"]
    result = rayferry("submit", job_file, "--address", ray_api.url, "--submission-id", "job-1")
    assert (result.exit_code, result.stdout) == (0, f"{uri}\n")


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [("SUCCEEDED", 0, 1), ("FAILED", 1, 1), ("FAILED", 3, 3), ("FAILED", 6, 6), ("STOPPED", None, 4)],
)
@pytest.mark.parametrize("command", ["submit", "logs"])
def test_the_exit_code_is_that_of_the_job(rayferry, job_file, sent, status, driver, code, command):
    sent.statuses, sent.driver_exit_code = ["RUNNING", status], driver
    if command == "logs":
        result = rayferry("logs", "-f", "job-1", "--address", sent.url)
    else:
        sent.jobs.clear()
        result = rayferry("submit", job_file, "--address", sent.url)
    assert (result.exit_code, result.stdout) == (code, "")


def test_an_output_that_a_job_is_still_writing_is_refused_with_that_jobs_id(rayferry, job_file, sent):
    sent.statuses = ["RUNNING"]
    result = rayferry("submit", job_file, "--address", sent.url)
    assert (result.exit_code, result.stdout, list(sent.jobs)) == (1, "", ["job-1"])
    assert "job-1 is writing there" in result.stderr


def test_submit_without_waiting_prints_the_id_alone(rayferry, job_file, ray_api):
    result = rayferry("submit", job_file, "--address", ray_api.url, "--no-wait")
    assert (result.exit_code, [result.stdout.strip()]) == (0, list(ray_api.jobs))


def test_submit_without_waiting_prints_json_where_asked(rayferry, job_file, job_data, ray_api):
    result = rayferry("submit", job_file, "--address", ray_api.url, "--no-wait", "--json")
    (submission_id,) = ray_api.jobs
    expected = {"submission_id": submission_id, "output_uri": job_data["output"]["uri"] + "/"}
    assert json.loads(result.stdout) == expected


def test_a_job_whose_answer_is_lost_is_submitted_once(rayferry, job_file, ray_api):
    ray_api.faults[("POST", "/api/jobs/")] = ["after"]
    result = rayferry("submit", job_file, "--address", ray_api.url, "--no-wait")
    assert (result.exit_code, len(ray_api.jobs)) == (0, 1)


def test_submit_where_nothing_listens_is_exit_code_1_and_names_the_address(rayferry, job_file):
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    result = rayferry("submit", job_file, "--address", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"rayferry: error: no cluster answers at {url}" in result.stderr


def test_submit_to_an_id_that_is_taken_is_exit_code_1(rayferry, job_file, sent):
    result = rayferry("submit", job_file, "--address", sent.url, "--submission-id", "job-1")
    assert (result.exit_code, "has a job of this submission_id already" in result.stderr) == (1, True)


def test_check_passes_with_exit_code_0_and_starts_nothing(rayferry, job_file, ray_api):
    result = rayferry("check", job_file, "--address", ray_api.url)
    assert (result.exit_code, ray_api.jobs) == (0, {})


def test_no_wait_with_a_time_to_follow_is_exit_code_2(rayferry, job_file, ray_api):
    result = rayferry("submit", job_file, "--address", ray_api.url, "--no-wait", "--timeout", "5m")
    assert (result.exit_code, "--no-wait does not follow" in result.stderr, ray_api.jobs) == (2, True, {})


def test_a_uri_without_a_bucket_is_told_in_plain_words(rayferry):
    result = rayferry("preview", "s3://")
    assert (result.exit_code, result.stderr.strip()) == (
        1,
        "rayferry: error: s3://: names no bucket; write it so: s3://bucket/prefix/",
    )


def test_check_fails_with_exit_code_1(rayferry, job_file, ray_api):
    result = rayferry("check", job_file, "--address", ray_api.url, "--set", "resources.device=gpu", "--json")
    outcomes = {probe["name"]: probe["outcome"] for probe in json.loads(result.stdout)}
    assert (result.exit_code, outcomes["cluster"], outcomes["capacity"]) == (1, "ok", "failed")


def test_check_where_nothing_listens_still_tells_the_rest(rayferry, job_file):
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    result = rayferry("check", job_file, "--address", url, "--json")
    outcomes = [probe["outcome"] for probe in json.loads(result.stdout)]
    assert outcomes == ["failed", "unknown", "ok", "ok", "ok", "unknown", "ok", "ok"]


def test_check_lists_what_it_leaves_out(rayferry, job_file, ray_api):
    result = rayferry("check", job_file, "--address", ray_api.url, "--skip", "rows", "--skip", "model", "--json")
    skipped = [probe["name"] for probe in json.loads(result.stdout) if probe["outcome"] == "skipped"]
    assert (result.exit_code, skipped) == (0, ["rows", "model"])


@pytest.mark.parametrize("command", ["submit", "check"])
def test_to_leave_out_a_check_that_does_not_exist_is_exit_code_2_and_names_those_that_do(rayferry, job_file, command):
    result = rayferry(command, job_file, "--skip", "rose")
    assert (result.exit_code, [name for name in SKIPS if f"'{name}'" in result.stderr]) == (2, list(SKIPS))


def test_submit_goes_on_where_the_check_that_would_fail_is_left_out(rayferry, job_file, ray_api):
    options = ["--address", ray_api.url, "--set", "input.column=nothing", "--no-wait"]
    assert rayferry("submit", job_file, *options).exit_code == 1
    assert rayferry("submit", job_file, *options, "--skip", "rows").exit_code == 0
    assert len(ray_api.jobs) == 1


def test_submit_says_nothing_of_a_check_that_is_left_out(rayferry, job_file, ray_api):
    result = rayferry("submit", job_file, "--address", ray_api.url, "--no-wait", "--skip", "model")
    assert "not checked" not in result.stderr


def test_submit_without_any_check_still_submits(rayferry, job_file, ray_api):
    skips = [word for name in CHECKS for word in ("--skip", name)]
    result = rayferry("submit", job_file, "--address", ray_api.url, "--no-wait", *skips)
    assert (result.exit_code, len(ray_api.jobs)) == (0, 1)


def test_status_prints_the_status_alone(rayferry, sent):
    sent.statuses = ["RUNNING"]
    result = rayferry("status", "job-1", "--address", sent.url)
    assert (result.exit_code, result.stdout) == (0, "RUNNING\n")


def test_status_as_json_has_the_output_uri(rayferry, sent, job_data):
    value = json.loads(rayferry("status", "job-1", "--address", sent.url, "--json").stdout)
    assert (value["status"], value["output_uri"]) == ("SUCCEEDED", job_data["output"]["uri"] + "/")


@pytest.mark.parametrize("words", [["status"], ["logs"], ["logs", "-f"], ["stop"], ["result"]], ids=" ".join)
def test_an_id_that_the_cluster_does_not_know_is_exit_code_1(rayferry, ray_api, words):
    result = rayferry(*words, "nope", "--address", ray_api.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nope: " in result.stderr


def test_logs_print_our_lines_on_stdout(rayferry, sent):
    assert rayferry("logs", "job-1", "--address", sent.url).stdout == "10:00:00 hello\n"


def test_raw_logs_print_all(rayferry, sent):
    assert rayferry("logs", "--raw", "job-1", "--address", sent.url).stdout == sent.log


def test_stop_waits_for_the_end_and_prints_it(rayferry, sent):
    sent.statuses = ["RUNNING"]
    result = rayferry("stop", "job-1", "--address", sent.url)
    assert (result.exit_code, result.stdout) == (0, "STOPPED\n")


def test_stop_goes_on_waiting_until_the_job_is_over(rayferry, sent):
    sent.statuses = ["RUNNING", "RUNNING", "RUNNING", "RUNNING", "STOPPED"]
    sent.faults[("POST", "/api/jobs/job-1/stop")] = [(200, '{"stopped": true}')]
    result = rayferry("stop", "job-1", "--address", sent.url)
    assert (result.exit_code, result.stdout, sent.num("GET", "/api/jobs/job-1")) == (0, "STOPPED\n", 5)


def test_stop_of_a_job_that_is_over_asks_for_nothing(rayferry, sent):
    result = rayferry("stop", "job-1", "--address", sent.url)
    assert (result.stdout, sent.num("POST", "/api/jobs/job-1/stop")) == ("SUCCEEDED\n", 0)


def test_stop_of_a_job_that_goes_on_is_exit_code_1(rayferry, sent):
    sent.statuses = ["RUNNING"]
    sent.faults[("POST", "/api/jobs/job-1/stop")] = [(200, '{"stopped": true}')]
    result = rayferry("stop", "job-1", "--address", sent.url, "--timeout", "0")
    assert (result.exit_code, "is still RUNNING" in result.stderr) == (1, True)


@pytest.fixture
def followed(sent):
    """A cluster whose job-1 failed and was followed by job-1-a2, which runs."""
    first = sent.jobs["job-1"]
    sent.jobs["job-1-a2"] = {**first, "sent": {**first["sent"], "submission_id": "job-1-a2"}, "status": "RUNNING"}
    first["status"] = "FAILED"
    return sent


TOLD = "job-1 was followed by job-1-a2"


def test_the_state_of_a_run_is_its_last_attempts(rayferry, followed):
    result = rayferry("status", "job-1", "--address", followed.url)
    assert (result.stdout, result.stderr.splitlines()[0]) == ("RUNNING\n", TOLD)


def test_stop_stops_the_last_attempt(rayferry, followed):
    result = rayferry("stop", "job-1", "--address", followed.url)
    assert (result.exit_code, result.stdout, TOLD in result.stderr) == (0, "STOPPED\n", True)
    assert [name for name, job in followed.jobs.items() if job["status"] == "STOPPED"] == ["job-1-a2"]


@pytest.mark.parametrize(
    ("why", "may"), [("JOB_SUPERVISOR_ACTOR_DIED", True), ("RUNTIME_ENV_SETUP_FAILURE", False)], ids=str
)
def test_stop_of_an_attempt_that_failed_by_itself_says_if_it_may_be_tried_again(rayferry, sent, why, may):
    sent.statuses, sent.error_type = ["FAILED"], why
    result = rayferry("stop", "job-1", "--address", sent.url)
    assert (result.stdout, "a submit that still follows it may try again" in result.stderr) == ("FAILED\n", may)


def test_following_a_run_follows_its_last_attempt(rayferry, followed):
    followed.jobs["job-1-a2"]["status"] = "STOPPED"
    result = rayferry("logs", "-f", "job-1", "--address", followed.url)
    assert (result.exit_code, TOLD in result.stderr, "job-1-a2 was stopped" in result.stderr) == (4, True, True)


def test_the_log_of_an_attempt_is_its_own(rayferry, followed):
    result = rayferry("logs", "job-1", "--address", followed.url)
    assert (result.exit_code, TOLD in result.stderr) == (0, True)
    assert followed.num("GET", "/api/jobs/job-1/logs") == 1


def test_the_log_of_an_attempt_that_is_forgotten_is_the_last_ones(rayferry, followed):
    del followed.jobs["job-1"]
    result = rayferry("logs", "job-1", "--address", followed.url)
    assert (result.exit_code, "this is the log of job-1-a2" in result.stderr) == (0, True)
    assert followed.num("GET", "/api/jobs/job-1-a2/logs") == 1


def test_the_result_of_a_run_is_its_last_attempts(rayferry, followed, job_data, write_manifest):
    followed.jobs["job-1-a2"]["status"] = "SUCCEEDED"
    uri = job_data["output"]["uri"] + "/"
    write_manifest(uri, "job-1-a2")
    result = rayferry("result", "job-1", "--address", followed.url)
    assert (result.exit_code, result.stdout) == (0, f"{uri}\n")


def test_the_result_of_a_run_is_there_after_another_job_resumed_it(rayferry, sent, job_data, write_manifest):
    sent.statuses = ["FAILED"]
    uri = job_data["output"]["uri"] + "/"
    write_manifest(uri, "resumed", earlier=["job-1"])
    result = rayferry("result", "job-1", "--address", sent.url)
    assert (result.exit_code, result.stdout) == (0, f"{uri}\n")


def test_a_run_whose_last_attempt_runs_is_not_resumed(rayferry, followed):
    result = rayferry("resume", "job-1", "--address", followed.url)
    assert (result.exit_code, "job-1-a2 is RUNNING: nothing is to be resumed" in result.stderr) == (1, True)


def test_a_run_whose_attempts_all_failed_is_resumed_after_the_last(rayferry, followed, job_data):
    followed.jobs["job-1-a2"]["status"] = "FAILED"
    storage.write_bytes(
        f"{job_data['output']['uri']}/_meta/spec.json", json.dumps(job_data | {"schema_version": 1}).encode()
    )
    rayferry("resume", "job-1", "--address", followed.url)
    name, sent = next((name, job["sent"]) for name, job in followed.jobs.items() if not name.startswith("job-1"))
    assert f" --resume --over job-1-a2 --run {name}/" in sent["entrypoint"]


@pytest.mark.parametrize("command", ["submit", "check"])
def test_a_job_file_elsewhere_is_refused(rayferry, command):
    result = rayferry(command, "s3://bucket/job.yaml")
    assert (result.exit_code, "'s3://bucket/job.yaml' is a URI" in result.stderr) == (2, True)


def test_list_shows_our_jobs(rayferry, sent):
    jobs = json.loads(rayferry("list", "--address", sent.url, "--json").stdout)
    assert [job["submission_id"] for job in jobs] == ["job-1"]


@pytest.mark.parametrize(("flags", "num"), [([], 0), (["--all"], 1)])
def test_list_shows_others_jobs_only_when_asked(rayferry, sent, flags, num):
    sent.jobs["job-1"]["sent"]["metadata"] = {}
    assert len(json.loads(rayferry("list", "--address", sent.url, "--json", *flags).stdout)) == num


def test_result_prints_the_output_uri_alone(rayferry, sent, job_data, write_manifest):
    uri = job_data["output"]["uri"] + "/"
    write_manifest(uri, "job-1")
    result = rayferry("result", "job-1", "--address", sent.url)
    assert (result.exit_code, result.stdout) == (0, f"{uri}\n")


def test_result_by_uri_asks_no_cluster(rayferry, tmp_path, write_manifest):
    uri = str(tmp_path / "out")
    manifest = write_manifest(uri, "job-1")
    assert json.loads(rayferry("result", uri, "--json").stdout) == manifest


def test_result_by_uri_where_none_is_says_what_to_do(rayferry, tmp_path):
    result = rayferry("result", tmp_path)
    assert (result.exit_code, "the job is not done (see: rayferry list)" in result.stderr) == (1, True)


def test_result_by_uri_of_a_run_that_failed_says_so(rayferry, tmp_path, write_outcome):
    write_outcome(str(tmp_path), "FAILED", 1)
    result = rayferry("result", tmp_path)
    assert (result.exit_code, "job-1 is FAILED, and there is no result" in result.stderr) == (1, True)


@pytest.mark.parametrize(("status", "code"), [("FAILED", 1), ("STOPPED", 143), ("TIMED_OUT", 6), ("SUCCEEDED", 0)])
def test_status_by_uri_asks_no_cluster(rayferry, tmp_path, write_outcome, status, code):
    write_outcome(str(tmp_path), status, code)
    result = rayferry("status", tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"{status}\n")


def test_status_by_uri_says_what_went_wrong(rayferry, tmp_path, write_outcome):
    write_outcome(str(tmp_path), "FAILED", 1, "no GPU")
    assert rayferry("status", tmp_path).stderr.splitlines() == ["job: job-1", "no GPU"]


def test_status_by_uri_as_json_is_how_the_run_ended(rayferry, tmp_path, write_outcome):
    write_outcome(str(tmp_path), "FAILED", 1, "no GPU")
    assert json.loads(rayferry("status", tmp_path, "--json").stdout)["error"] == "no GPU"


def test_status_by_uri_of_a_run_that_goes_on_is_exit_code_1(rayferry, tmp_path, write_outcome):
    write_outcome(str(tmp_path), "RUNNING")
    result = rayferry("status", tmp_path)
    assert (result.exit_code, result.stdout, "unknown from here" in result.stderr) == (1, "", True)


@pytest.fixture
def copied_log(tmp_path):
    """An output with a log's copy."""
    (tmp_path / "out" / "_meta").mkdir(parents=True)
    (tmp_path / "out" / "_meta" / "driver.log").write_text("noise\n[rayferry] 10:00:00 hello\n")
    return str(tmp_path / "out")


def test_logs_by_uri_print_our_lines(rayferry, copied_log):
    assert rayferry("logs", copied_log).stdout == "10:00:00 hello\n"


def test_raw_logs_by_uri_print_all(rayferry, copied_log):
    assert rayferry("logs", "--raw", copied_log).stdout == "noise\n[rayferry] 10:00:00 hello\n"


def test_logs_by_uri_cannot_be_followed(rayferry, copied_log):
    result = rayferry("logs", "-f", copied_log)
    assert (result.exit_code, "is a copy of the log" in " ".join(result.stderr.split())) == (2, True)


@pytest.mark.parametrize("command", ["status", "logs", "result"])
@pytest.mark.parametrize("place", ["unknown there", "away", "not given"])
def test_an_id_without_a_cluster_that_knows_it_is_told_that_the_uri_will_do(rayferry, ray_api, place, command):
    url = {"unknown there": ray_api.url, "away": f"http://127.0.0.1:{free_ports(1)[0]}"}.get(place)
    result = rayferry(command, "job-1", *(["--address", url] if url else []))
    last = f"rayferry: error: the output URI in place of the id needs no cluster: rayferry {command} URI"
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1 if url else 2, last)


def test_result_of_a_job_that_runs_is_exit_code_1(rayferry, sent):
    sent.statuses = ["RUNNING"]
    result = rayferry("result", "job-1", "--address", sent.url)
    assert (result.exit_code, "job-1 is RUNNING; wait for it: rayferry logs -f job-1" in result.stderr) == (1, True)


def test_result_of_a_job_that_left_none_is_exit_code_1(rayferry, sent):
    assert rayferry("result", "job-1", "--address", sent.url).exit_code == 1


def test_result_of_a_strangers_job_is_exit_code_1(rayferry, sent):
    sent.jobs["job-1"]["sent"]["metadata"] = {}
    result = rayferry("result", "job-1", "--address", sent.url)
    assert (result.exit_code, "was not submitted by rayferry" in result.stderr) == (1, True)


def test_result_of_an_output_that_another_job_filled_is_exit_code_1(rayferry, sent, job_data, write_manifest):
    write_manifest(job_data["output"]["uri"], "job-2")
    result = rayferry("result", "job-1", "--address", sent.url)
    assert (result.exit_code, "holds the answers of job-2, not of job-1" in result.stderr) == (1, True)


@pytest.mark.parametrize("command", ["result", "preview", "status", "logs"])
@pytest.mark.parametrize("uri", ["./job.yaml", "/no/such/place", "s3://", "s3://[x/y", "gs://bucket/x", "file:///none"])
def test_a_uri_that_leads_nowhere_is_an_error_in_words(rayferry, job_file, monkeypatch, command, uri):
    monkeypatch.chdir(job_file.parent)
    result = rayferry(command, uri)
    assert (result.exit_code, result.stdout, "rayferry: error: " in result.stderr) == (1, "", True)


def test_the_schema_is_json_schema_of_the_job_file(rayferry):
    assert json.loads(rayferry("schema").stdout)["required"] == ["model", "input", "output"]


def test_init_writes_a_job_file_that_is_valid(rayferry, tmp_path):
    path = tmp_path / "new.yaml"
    result = rayferry("init", path)
    assert (result.exit_code, result.stdout) == (0, f"{path}\n")
    assert rayferry("submit", path, "--dry-run").exit_code == 0


def test_init_does_not_replace_a_file(rayferry, job_file):
    before = job_file.read_text()
    result = rayferry("init", job_file)
    assert (result.exit_code, job_file.read_text()) == (2, before)


def test_init_replaces_a_file_when_told_to(rayferry, job_file):
    assert rayferry("init", job_file, "--force").exit_code == 0
    assert yaml.safe_load(job_file.read_text())["name"] == "my-job"


@pytest.mark.parametrize("place", ["no/such/folder/job.yaml", "."])
def test_init_where_nothing_can_be_written_is_exit_code_2(rayferry, tmp_path, place):
    assert rayferry("init", tmp_path / place, "--force").exit_code == 2


def test_local_status_without_a_stack_is_down(rayferry):
    result = rayferry("local", "status")
    assert (result.exit_code, result.stdout) == (0, "down\n")


def test_local_env_without_a_stack_is_exit_code_1(rayferry):
    result = rayferry("local", "env")
    assert (result.exit_code, result.stdout, "rayferry local up" in result.stderr) == (1, "", True)


def test_local_down_without_a_stack_is_no_error(rayferry):
    assert rayferry("local", "down").exit_code == 0


def test_local_env_can_be_read_by_a_shell(stack, process):
    lines = process("local", "env").communicate()[0]
    program = f"{lines}\nenv"
    seen = subprocess.run(["/bin/sh", "-c", program], capture_output=True, text=True, check=True, env={}).stdout
    assert {f"{name}={value}" for name, value in stack.environ().items()} <= set(seen.splitlines())


def test_local_status_tells_where_the_stack_is(stack, rayferry):
    value = json.loads(rayferry("local", "status", "--json").stdout)
    assert (value["state"], value["address"], value["endpoint"]) == ("up", stack.address, stack.endpoint)


def test_ctrl_c_detaches_from_a_job_that_goes_on(process, sent):
    sent.statuses = ["RUNNING"]
    one = process("logs", "-f", "job-1", "--address", sent.url)
    while sent.num("GET", "/api/jobs/job-1") < 3:  # it follows by now, out of its imports
        sent.asked.clear()
        assert sent.asked.wait(30)
    one.send_signal(signal.SIGINT)
    datum, words = one.communicate(timeout=200)
    assert (one.returncode, datum, "Traceback" in words) == (130, "", False)
    assert "rayferry stop job-1" in words
    assert [entry for entry in sent.requests if entry == ("POST", "/api/jobs/job-1/stop")] == []


def test_a_reader_that_goes_away_is_no_traceback(process, sent):
    sent.log = "[rayferry] 10:00:00 line\n" * 20_000
    reading, writing = os.pipe()
    one = process("logs", "job-1", "--address", sent.url, stdout=writing)
    os.close(writing)
    os.read(reading, 10)
    os.close(reading)
    assert "Traceback" not in one.communicate(timeout=200)[1]
