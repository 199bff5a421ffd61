import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayferry.job import __main__ as entrypoint
from rayferry.job import attempts, pipeline, storage
from rayferry.job.earlier import Earlier
from rayferry.job.errors import EngineError, JobError, SpecError, TooManyErrorsError
from rayferry.job.layout import Layout

SPEC = {"model": "m", "input": {"uri": "/in"}, "output": {"uri": "/out"}}


@pytest.fixture(autouse=True)
def handler():
    """The process's own way of dying is put back after each test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Runs the entrypoint with a pipeline that accepts `out`, if any, and returns, or raises, `outcome`."""

    def run_main(outcome, spec=SPEC, out=None, arguments=()):
        def run(spec, submission_id, accepted, **how):
            run_main.seen = (spec.model, submission_id)
            run_main.how = how
            if out is not None:
                accepted(Layout(out))
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(pipeline, "run", run)
        path = tmp_path / "spec.json"
        path.write_bytes(spec if isinstance(spec, bytes) else json.dumps(spec).encode())
        return entrypoint.main([str(path), "--submission-id", "run-1", *arguments])

    return run_main


def manifest(failed, total=100, max_error_rate=0.05):
    counts = {"total": total, "succeeded": total - failed, "failed": failed}
    return {"counts": counts, "max_error_rate": max_error_rate}


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (manifest(0), 0),
        (manifest(5), 0),
        (manifest(6), 3),
        (manifest(0, total=0), 0),
        (JobError("no input"), 1),
        (EngineError("out of memory"), 1),
        (SpecError("wrong"), 2),
        (ValueError("unforeseen"), 1),
        (MemoryError(), 1),
    ],
    ids=repr,
)
def test_every_end_has_its_exit_code(main, outcome, code):
    assert main(outcome) == code


@pytest.mark.parametrize(
    ("out", "flags", "code"), [(True, (), 75), (False, (), 1), (False, ("--later", "--run", "run-1/1"), 75)]
)
def test_a_store_that_fails_under_way_ends_with_its_own_code(main, tmp_path, out, flags, code):
    away = OSError("AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7")
    assert main(away, out=str(tmp_path / "out") if out else None, arguments=flags) == code


@pytest.mark.parametrize(
    "spec", [b"{}", b"[]", b'{"model": "m"', b"\xff", json.dumps(SPEC | {"task": "dance"}).encode()]
)
def test_a_spec_that_is_not_valid_ends_with_2(main, spec):
    assert main(manifest(0), spec) == 2


def test_a_spec_that_is_not_valid_never_reaches_the_pipeline(main):
    main(manifest(0), b"{}")
    assert not hasattr(main, "seen")


def test_the_pipeline_gets_the_spec_and_the_submission_id(main):
    main(manifest(0))
    assert main.seen == ("m", "run-1")


def with_secret(reference):
    return json.dumps(SPEC | {"runtime_env": {"secrets": {"A_SECRET": reference}}}).encode()


def test_the_driver_has_its_secrets_before_the_pipeline_runs(main, monkeypatch):
    monkeypatch.setenv("A_SECRET", "")
    monkeypatch.setenv("OTHER_NAME", "value")
    assert (main(manifest(0), with_secret("env:OTHER_NAME")), os.environ["A_SECRET"]) == (0, "value")


def test_a_secret_that_cannot_be_had_ends_the_job_before_the_pipeline(main):
    assert (main(manifest(0), with_secret("env:NOT_THERE")), hasattr(main, "seen")) == (1, False)


def test_a_secret_that_cannot_be_had_is_told_in_one_line(main, capsys):
    main(manifest(0), with_secret("env:NOT_THERE"))
    assert " error: secret A_SECRET: env:NOT_THERE: NOT_THERE is not set on node " in capsys.readouterr().out


def test_a_good_end_tells_the_counts(main, capsys):
    main(manifest(50, total=5000))
    assert "done: 4,950 answers, 50 errors\n" in capsys.readouterr().out


def test_too_many_errors_are_told_with_the_share_that_is_allowed(main, capsys):
    main(manifest(10))
    assert "error: 10.0% of the rows failed, more than max_error_rate (5.0%)\n" in capsys.readouterr().out


def test_a_failure_is_told_in_one_line(main, capsys):
    main(JobError("s3://bucket/in: no input there\n  check input.uri"))
    assert capsys.readouterr().out.endswith(" error: s3://bucket/in: no input there check input.uri\n")


def test_a_failure_leaves_its_traceback_in_the_log(main, capsys):
    main(ValueError("unforeseen"))
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_sigterm_ends_with_its_own_code(main):
    main(manifest(0))
    with pytest.raises(SystemExit) as ended:
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
    assert ended.value.code == 143


def test_sigterm_says_what_stays(main, capsys):
    main(manifest(0))
    with pytest.raises(SystemExit):
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
    assert "stopped: what is in data/ and errors/ stays; there is no manifest" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["spec.json"], ["spec.json", "--submission-id"]])
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        entrypoint.main(arguments)
    assert ended.value.code == 2


def test_a_run_out_of_time_ends_with_6_and_says_so(tmp_path):
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SPEC | {"timeout": "0.01s"}))  # long gone when Ray is imported
    command = [sys.executable, "-m", "rayferry.job", str(spec), "--submission-id", "run-1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (ended.returncode, "error: timed out: not done after 0.01s" in ended.stdout) == (6, True)


@pytest.fixture
def told(tmp_path, main):
    """What the outcome says after the entrypoint was run so: status, exit code and error."""

    def read(outcome, **options):
        main(outcome, out=str(tmp_path / "out"), **options)
        value = json.loads((tmp_path / "out" / "_meta" / "outcome.json").read_bytes())
        return value["status"], value["exit_code"], value["error"]

    return read


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (manifest(0), ("SUCCEEDED", 0, None)),
        (manifest(10), ("FAILED", 3, "10.0% of the rows failed, more than max_error_rate (5.0%)")),
        (TooManyErrorsError("stopped early"), ("FAILED", 3, "stopped early")),
        (JobError("no input"), ("FAILED", 1, "no input")),
        (ValueError("unforeseen"), ("FAILED", 1, "ValueError: unforeseen")),
    ],
    ids=repr,
)
def test_every_end_leaves_its_outcome(told, outcome, expected):
    assert told(outcome) == expected


def test_a_run_whose_output_is_anothers_leaves_nothing(main, tmp_path):
    main(JobError("not empty"), SPEC | {"output": {"uri": str(tmp_path / "out")}})
    assert not (tmp_path / "out").exists()


# A driver as Ray starts it: both outputs go to one file. Its pipeline accepts the output, then does what the test says.
DRIVER = """
import sys, time
from rayferry.job import __main__ as entrypoint, pipeline
from rayferry.job.layout import Layout

def run(spec, submission_id, accepted, **how):
    print("a line of vLLM", file=sys.stderr)
    accepted(Layout(spec.output.uri))
    print("ready")
    {then}

pipeline.run = run
sys.exit(entrypoint.main(sys.argv[1:]))
"""


@pytest.fixture
def driver(tmp_path):
    """Runs a driver to its end; gives its exit code, its whole log, the log's copy and the outcome's status."""

    def run(then, *, stop=False, words=(), **changes):
        spec, log, out = tmp_path / "spec.json", tmp_path / "job-driver-run-1.log", tmp_path / "out"
        spec.write_text(json.dumps(SPEC | {"output": {"uri": str(out)}} | changes))
        command = [sys.executable, "-u", "-c", DRIVER.format(then=then), str(spec), "--submission-id", "run-1", *words]
        with log.open("ab") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
            deadline = time.monotonic() + 60
            while stop and "ready" not in log.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if stop:
                process.terminate()
            code = process.wait(60)
        status = json.loads((out / "_meta" / "outcome.json").read_bytes())["status"]
        return code, log.read_text(), (out / "_meta" / "driver.log").read_text(), status

    return run


def test_a_failed_drivers_log_is_copied_to_its_last_line(driver):
    code, log, copy, status = driver("raise ValueError('unforeseen')")
    assert (code, copy, status) == (1, log, "FAILED")


def test_a_drivers_stderr_is_in_the_copy_of_its_log(driver):
    assert "a line of vLLM\n" in driver("raise ValueError('unforeseen')")[2]


def test_a_stopped_drivers_log_is_copied_to_its_last_line(driver):
    code, log, copy, status = driver("time.sleep(60)", stop=True)
    assert (code, copy, status) == (143, log, "STOPPED")


def test_the_log_of_a_driver_out_of_time_is_copied_to_its_last_line(driver):
    code, log, copy, status = driver("time.sleep(60)", timeout="12s")
    assert (code, copy, status) == (6, log, "TIMED_OUT")


@pytest.mark.parametrize(
    ("run", "is_over", "expected"),
    [("run/1", False, (6, "TIMED_OUT")), ("run/2", False, (0, "SUCCEEDED")), ("run/1", True, (0, "SUCCEEDED"))],
    ids=["of this run", "of another run", "over"],
)
def test_a_timeout_is_of_the_run_over_attempts_that_go_on_by_themselves(driver, tmp_path, run, is_over, expected):
    layout = Layout(str(tmp_path / "out"))
    attempts.record(layout, "run", "run", "run/1")
    storage.write_bytes(layout.outcome_uri, b'{"submission_id": "run"}')
    name = Path(layout.attempts_uri) / "run.json"
    name.write_text(json.dumps(json.loads(name.read_text()) | {"began_at": time.time() - 100}))
    if is_over:
        storage.write_bytes(layout.manifest_uri, b"{}")
    words = ["--later", "--run", run]
    code, _, _, status = driver(f"return {manifest(0)}", words=words, timeout="90s")
    assert (code, status) == expected


@pytest.mark.parametrize(
    "earlier",
    [
        Earlier(),
        Earlier(resume=True, over=("a", "b")),
        Earlier(resume=True, new_input=True),
        Earlier(retry_failed=True),
        Earlier(retry_failed=True, new_input=True),
        Earlier(overwrite=True),
        Earlier(overwrite=True, run="a b/1"),
        Earlier(overwrite=True, run="a/1", instead="b c/1"),
        Earlier(overwrite=True, run="a/1", instead=""),
        Earlier(run="a/1", later=True, over=("a", "a-a2")),
    ],
)
def test_what_becomes_of_an_earlier_run_arrives_as_it_was_sent(main, earlier):
    main(manifest(0), arguments=earlier.words)
    assert main.how == {"earlier": earlier}
