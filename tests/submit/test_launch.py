"""From a followed job to an exit code, a datum on stdout and words on stderr."""

import json
import os
import signal
import threading

import pytest

from rayferry.job.errors import SpecError
from rayferry.job.probe import MARK
from rayferry.job.spec import parse
from rayferry.submit import launch, s3, signals
from rayferry.submit.client import ClusterError, JobInfo, UnreachableError
from rayferry.submit.config import Address
from rayferry.submit.follow import LostContactError, WaitedError, follow
from rayferry.submit.preflight import PreflightError
from rayferry.submit.request import build_request

LOG = "[rayferry] 10:00:00 rayferry 0.1.0: job-1\nINFO vllm\n[rayferry] 10:00:09 done\n"


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out") + "/"


@pytest.fixture
def finish(fake_cluster, out, capsys):
    """Waits for a job that ends so; gives exit code, stdout and stderr."""

    def run(status, exit_code=None, *, log=LOG, metadata=None, message="", url=None, error_type=None, **options):
        metadata = {"rayferry_output_uri": out} if metadata is None else metadata
        end = {"exit_code": exit_code, "metadata": metadata, "message": message, "error_type": error_type}
        cluster = fake_cluster(["PENDING", "RUNNING", status], [[log]], log=log, **end)
        cluster.url = url or cluster.url
        code = launch.wait(cluster, "job-1", launch.Watch(**options))
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("status", "driver", "has_manifest", "code"),
    [
        ("SUCCEEDED", 0, True, 0),
        ("SUCCEEDED", 0, False, 1),
        ("FAILED", 1, False, 1),
        ("FAILED", None, False, 1),
        ("FAILED", 2, False, 1),
        ("FAILED", 137, False, 1),
        ("FAILED", 3, True, 3),
        ("FAILED", 3, False, 3),
        ("FAILED", 6, False, 6),
        ("STOPPED", None, False, 4),
        ("STOPPED", None, True, 4),
    ],
)
def test_each_end_has_its_exit_code(finish, out, write_manifest, status, driver, has_manifest, code):
    if has_manifest:
        write_manifest(out, "job-1")
    assert finish(status, driver)[0] == code


@pytest.mark.parametrize(("status", "driver"), [("SUCCEEDED", 0), ("FAILED", 3)])
def test_the_datum_of_a_finished_run_is_its_output_uri(finish, out, write_manifest, status, driver):
    write_manifest(out, "job-1")
    assert finish(status, driver)[1] == f"{out}\n"


@pytest.mark.parametrize(("status", "driver"), [("SUCCEEDED", 0), ("FAILED", 1), ("FAILED", 6), ("STOPPED", None)])
def test_without_a_manifest_there_is_no_datum(finish, status, driver):
    assert finish(status, driver)[1] == ""


def test_a_success_without_a_manifest_is_said(finish):
    assert "job-1 ended well, but there is no manifest" in finish("SUCCEEDED", 0)[2]


def test_the_manifest_of_another_job_is_not_taken_for_this_ones(finish, out, write_manifest):
    write_manifest(out, "job-0")
    code, datum, words = finish("SUCCEEDED", 0)
    assert (code, datum, "holds the answers of job-0" in words) == (1, "", True)


@pytest.mark.parametrize(("status", "driver", "code"), [("SUCCEEDED", 0, 0), ("FAILED", 1, 1)])
def test_a_success_that_another_job_went_on_with_stays_one(finish, out, write_manifest, status, driver, code):
    write_manifest(out, "later", earlier=["job-1"])
    assert finish(status, driver)[:2] == (code, f"{out}\n" if code == 0 else "")


def test_a_success_whose_store_cannot_be_read_from_here_still_gives_its_output_uri(finish):
    uri = "s3://bucket/out/"
    code, datum, words = finish("SUCCEEDED", 0, metadata={"rayferry_output_uri": uri})
    assert (code, datum, "the manifest cannot be read from here" in words) == (0, f"{uri}\n", True)


def test_a_success_on_a_path_of_a_cluster_elsewhere_is_a_success(finish):
    uri = "/only/on/the/cluster/out/"
    code, datum, _ = finish("SUCCEEDED", 0, metadata={"rayferry_output_uri": uri}, url="http://head:8265")
    assert (code, datum) == (0, f"{uri}\n")


def test_a_job_of_somebody_else_that_ends_well_is_no_error(finish):
    assert finish("SUCCEEDED", 0, metadata={})[:2] == (0, "")


def test_the_outcome_as_json_is_exactly_this(finish, out, write_manifest):
    write_manifest(out, "job-1", succeeded=3, failed=1)
    code, datum, _ = finish("FAILED", 3, as_json=True)
    assert json.loads(datum) == {
        "submission_id": "job-1",
        "status": "FAILED",
        "exit_code": code,
        "output_uri": out,
        "counts": {"total": 4, "succeeded": 3, "failed": 1},
        "tokens": {"input": 10, "generated": 20},
        "seconds": {"total": 1.5, "load": [1.0], "generate": 0.5},
        "error_type": None,
        "failure_class": "user",
    }


def test_failed_rows_are_told_with_the_commands_that_show_them_and_try_them_again(finish, out, write_manifest):
    write_manifest(out, "job-1", succeeded=3, failed=1)
    words = finish("SUCCEEDED", 0)[2]
    assert f"rayferry preview {out}errors/\n" in words
    assert f"rayferry resume {out} --retry-failed" in words


@pytest.mark.parametrize(("status", "driver"), [("SUCCEEDED", 0), ("FAILED", 1), ("FAILED", 6), ("STOPPED", None)])
def test_every_end_gives_json_where_json_is_asked_for(finish, status, driver):
    code, datum, _ = finish(status, driver, as_json=True)
    assert (json.loads(datum)["exit_code"], json.loads(datum)["counts"]) == (code, None)


def test_our_lines_are_shown_on_stderr(finish, out, write_manifest):
    write_manifest(out, "job-1")
    assert finish("SUCCEEDED", 0)[2].splitlines() == [
        "job-1: PENDING (the cluster prepares the job's environment)",
        "job-1: RUNNING",
        "10:00:00 rayferry 0.1.0: job-1",
        "10:00:09 done",
        "2 rows: 2 answered in 1 part, 0 failed; 20 tokens generated, 2 s",
    ]


def test_raw_shows_all_lines_on_stderr(finish, out, write_manifest):
    write_manifest(out, "job-1")
    assert LOG in finish("SUCCEEDED", 0, raw=True)[2]


def test_failed_rows_come_with_the_command_that_shows_them(finish, out, write_manifest):
    write_manifest(out, "job-1", failed=1)
    assert f"rayferry preview {out}errors/\n" in finish("SUCCEEDED", 0)[2]


def test_a_failed_job_is_explained_by_our_error_line(finish):
    words = finish("FAILED", 1, log="[rayferry] 10:00:01 error: no GPU\n", metadata={})[2].splitlines()
    assert words[-4:] == [
        "job-1 failed",
        "  the cause is in your job, or in what it asks for: mend what is named here, and submit it again",
        "  no GPU",
        "the whole log: rayferry logs --raw job-1",
    ]


def test_of_a_failed_job_of_ours_it_is_said_where_the_logs_copy_is(finish, out):
    words = finish("FAILED", 1)[2].splitlines()
    assert words[-1] == f"the whole log: rayferry logs --raw job-1 or {out}_meta/driver.log"


def test_the_outcome_as_json_sorts_the_failure(finish):
    _, datum, _ = finish("FAILED", None, error_type="RUNTIME_ENV_SETUP_FAILURE", as_json=True)
    value = json.loads(datum)
    assert (value["error_type"], value["failure_class"]) == ("RUNTIME_ENV_SETUP_FAILURE", "environment")


def test_a_job_that_never_got_to_its_driver_is_explained_by_ray(finish):
    words = finish("FAILED", None, log="", message="Runtime env setup failed:\nno pip\nx\ny")[2].splitlines()
    assert words[-5:-1] == ["  Runtime env setup failed:", "  no pip", "  x", "  y"]


def test_a_stopped_job_says_so(finish):
    lines = finish("STOPPED")[2].splitlines()
    assert "job-1 was stopped" in lines
    assert any(line.startswith("go on with it: rayferry resume /") for line in lines)


@pytest.mark.parametrize(
    ("begun", "said"),
    [
        ([], "it had not begun to write, so nothing of it is to be resumed: give its command again"),
        (["older"], "it had not begun to write"),
        (["older", "job-1"], "go on with it: rayferry resume s3://"),
        (["job-1~2"], "go on with it: rayferry resume s3://"),
        (["job-1-a2"], "go on with it: rayferry resume s3://"),
    ],
)
def test_a_stopped_job_is_to_be_gone_on_with_where_its_run_has_begun(finish, bucket_uri, begun, said):
    for name in begun:
        s3.write_bytes(f"{bucket_uri}/_meta/attempts/{name}.json", b"{}")
    words = finish("STOPPED", metadata={"rayferry_output_uri": f"{bucket_uri}/"})[2]
    assert any(line.startswith(said) for line in words.splitlines())


def test_a_failed_job_whose_log_cannot_be_had_is_explained_by_ray(fake_cluster, capsys):
    cluster = fake_cluster(["FAILED"], log=ClusterError("one bad byte"), message="it died", exit_code=1)
    assert launch.wait(cluster, "job-1") == 1
    assert "  it died" in capsys.readouterr().err.splitlines()


def test_lost_contact_is_raised_with_its_exit_code(fake_cluster, monkeypatch):
    def at_once(*arguments, **options):
        return follow(*arguments, **options, lost_after_s=0.02)

    monkeypatch.setattr(launch, "follow", at_once)
    with pytest.raises(LostContactError) as caught:
        launch.wait(fake_cluster(["RUNNING", UnreachableError("down")]), "job-1")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("before", [[], ["PENDING"], ["RUNNING"]])
def test_ctrl_c_detaches_and_says_how_to_go_on(fake_cluster, capsys, before):
    code = launch.wait(fake_cluster([*before, KeyboardInterrupt()]), "job-1")
    datum, words = capsys.readouterr()
    assert (code, datum) == (130, "")
    assert "rayferry logs -f job-1" in words
    assert "rayferry stop job-1" in words


def test_sigterm_detaches_as_ctrl_c_does(fake_cluster, capsys):
    cluster = fake_cluster(["RUNNING", "RUNNING", "RUNNING", "SUCCEEDED"], may_end=threading.Event())
    cluster.on_ask = lambda: cluster.answers and len(cluster.answers) == 2 and os.kill(os.getpid(), signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    with signals.handled():
        assert launch.wait(cluster, "job-1") == 130
    assert "rayferry logs -f job-1" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_after_ctrl_c_stops_nothing(fake_cluster, monkeypatch):
    def terminate(_seconds):
        raise signals.Terminated

    monkeypatch.setattr(launch.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(launch.time, "sleep", terminate)
    assert launch.wait(fake_cluster(["RUNNING", KeyboardInterrupt()]), "job-1") == 130


def test_ctrl_c_twice_at_a_terminal_stops_the_job(fake_cluster, monkeypatch, capsys):
    def again(_seconds):
        raise KeyboardInterrupt

    stopped = []
    cluster = fake_cluster(["RUNNING", KeyboardInterrupt(), "RUNNING", "STOPPED"])
    cluster.stop = stopped.append
    monkeypatch.setattr(launch.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(launch.time, "sleep", again)
    assert launch.wait(cluster, "job-1") == 4
    assert (stopped, "stopping job-1" in capsys.readouterr().err) == (["job-1"], True)


def test_ctrl_c_twice_without_a_terminal_stops_nothing(fake_cluster, monkeypatch):
    monkeypatch.setattr(launch.sys.stdin, "isatty", lambda: False, raising=False)
    assert launch.wait(fake_cluster(["RUNNING", KeyboardInterrupt()]), "job-1") == 130


def test_a_job_that_is_not_over_in_time_is_left_with_exit_code_6(fake_cluster):
    with pytest.raises(WaitedError, match=r"not over after 0.05 s; go on with: rayferry logs -f job-1") as caught:
        launch.wait(fake_cluster(["RUNNING"]), "job-1", launch.Watch(timeout_s=0.05))
    assert caught.value.exit_code == 6


def test_why_a_job_waits_is_said_each_time_that_ray_says_something_else(fake_cluster, capsys):
    waiting = [JobInfo("job-1", "PENDING", message) for message in ("for GPUs", "for GPUs", "for its environment")]
    launch.wait(fake_cluster([*waiting, "STOPPED"]), "job-1")
    told = [line for line in capsys.readouterr().err.splitlines() if "PENDING" in line]
    assert told == ["job-1: PENDING (for GPUs)", "job-1: PENDING (for its environment)"]


def test_stop_asks_again_when_the_cluster_does_not_answer(fake_cluster):
    cluster = fake_cluster(["RUNNING", UnreachableError("down"), UnreachableError("down"), "STOPPED"])
    cluster.stop = lambda _name: None
    assert launch.stop(cluster, "job-1").status == "STOPPED"


def test_stop_asks_the_job_to_end_once_its_request_came_through(fake_cluster):
    answers = [UnreachableError("down"), None, AssertionError("asked twice")]

    def stop(_name):
        if error := answers.pop(0):
            raise error

    cluster = fake_cluster(["RUNNING", "RUNNING", "STOPPED"])
    cluster.stop = stop
    assert launch.stop(cluster, "job-1").status == "STOPPED"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("PENDING", "RAY_JOB_START_TIMEOUT_SECONDS on its head, 15 minutes by default"),
        ("RUNNING", "its processes hang"),
    ],
)
def test_a_job_that_outlives_its_stop_is_told_with_what_ends_it(fake_cluster, status, said):
    cluster = fake_cluster([status])
    cluster.stop = lambda _name: None
    with pytest.raises(
        ClusterError, match=f"still {status} 0 s after it was asked to stop.*{said}.*rayferry status job-1"
    ):
        launch.stop(cluster, "job-1", 0)


@pytest.fixture
def place(ray_api):
    return Address(ray_api.url, "test")


def test_a_submitted_job_runs_on_the_cluster(spec, place, ray_api):
    _, request = launch.submit(spec, place, "job-1")
    assert ray_api.jobs["job-1"]["sent"]["metadata"] == request.metadata


def test_what_is_submitted_is_what_a_dry_run_prints(spec, place):
    assert launch.submit(spec, place, "job-1")[1] == build_request(spec, place.url, "job-1")


def test_nothing_is_sent_where_a_check_fails(job_data, place, ray_api):
    ray_api.nodes = []
    spec = parse(job_data | {"resources": {"device": "gpu"}}, "job.yaml")
    with pytest.raises(PreflightError, match=r"device: gpu needs GPUs, and no node has any"):
        launch.submit(spec, place, "job-1")
    assert [entry for entry in ray_api.requests if entry[0] != "GET"] == []


def test_what_could_not_be_seen_from_here_is_said_of_a_hub_id(spec, place, capsys):
    launch.submit(spec, place, "job-1")
    assert "not checked: org/model: a hub id; the replicas load it" in capsys.readouterr().err


def test_a_conflict_of_addresses_is_said(spec, ray_api, capsys):
    launch.submit(spec, Address(ray_api.url, "--address", "--address wins over RAY_ADDRESS=x"), "job-1")
    assert capsys.readouterr().err.splitlines()[0] == "--address wins over RAY_ADDRESS=x"


def test_what_could_not_be_checked_is_said_and_does_not_stop_the_job(job_data, place, ray_api, capsys):
    spec = parse(job_data | {"input": {"uri": "s3://bucket/in/"}}, "job.yaml")
    launch.submit(spec, place, "job-1")
    assert "not checked: s3://bucket/in/: no AWS credentials here" in capsys.readouterr().err
    assert list(ray_api.jobs) == ["job-1"]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr("rayferry.submit.preflight._AGAIN_S", 0.0)


def test_nothing_is_started_where_the_cluster_sees_that_it_would_fail(job_data, place, ray_api):
    spec = parse(job_data | {"input": {"uri": "s3://bucket/in/"}}, "job.yaml")
    ray_api.log = f'{MARK}["input", "failed", "s3://bucket/in/: no input there"]\n'
    with pytest.raises(PreflightError, match=r"no input there \(seen from the cluster\)"):
        launch.submit(spec, place, "job-1")
    assert ray_api.jobs == {}


def test_the_cluster_does_not_look_where_that_is_left_out(job_data, place, ray_api):
    spec = parse(job_data | {"input": {"uri": "s3://bucket/in/"}}, "job.yaml")
    ray_api.log = f'{MARK}["input", "failed", "s3://bucket/in/: no input there"]\n'
    launch.submit(spec, place, "job-1", ["probe-job"])
    assert list(ray_api.jobs) == ["job-1"]


def test_an_outcome_of_a_job_that_has_no_manifest_has_no_counts():
    info = JobInfo("job-1", "STOPPED")
    assert launch.outcome(info, None, 4) == {
        "submission_id": "job-1",
        "status": "STOPPED",
        "exit_code": 4,
        "output_uri": None,
        "counts": None,
        "tokens": None,
        "seconds": None,
        "error_type": None,
        "failure_class": None,
    }


def test_a_job_that_does_not_stop_after_ctrl_c_twice_is_told_and_left(fake_cluster, monkeypatch, capsys):
    pauses = iter([KeyboardInterrupt])
    monkeypatch.setattr(launch.sys.stdin, "isatty", lambda: True, raising=False)

    def sleep(_seconds):
        raise next(pauses)

    def stop(_cluster, _name):
        raise ClusterError("job-1 is still RUNNING")

    monkeypatch.setattr(launch.time, "sleep", sleep)
    monkeypatch.setattr(launch, "stop", stop)
    assert launch.wait(fake_cluster(["RUNNING", KeyboardInterrupt()]), "job-1") == 130
    assert "job-1 is still RUNNING" in capsys.readouterr().err


def test_too_many_errors_without_a_manifest_are_explained(finish):
    log = "[rayferry] 10:00:09 error: 12 rows failed, too many to end well\n"
    code, _, words = finish("FAILED", 3, log=log)
    assert (code, "too many to end well" in words, "cannot be read from here" in words) == (3, True, False)


def test_a_mistake_in_the_users_files_is_told_before_the_cluster_is_asked(job_data, place, ray_api, tmp_path):
    (tmp_path / "rayferry").mkdir()
    spec = parse(job_data | {"runtime_env": {"py_modules": [str(tmp_path / "rayferry")]}}, "job.yaml")
    with pytest.raises(SpecError):
        launch.submit(spec, place, "job-1")
    assert ray_api.requests == []


def test_where_a_check_fails_nothing_is_said_of_what_was_not_seen(job_data, place, capsys):
    spec = parse(job_data | {"input": {"uri": job_data["input"]["uri"] + "/none"}}, "job.yaml")
    with pytest.raises(PreflightError):
        launch.submit(spec, place, "job-1")
    assert "not checked" not in capsys.readouterr().err
