import pytest

from rayferry.submit.config import Address
from rayferry.submit.local.ports import free_ports
from rayferry.submit.schedule.records import Firing, changed
from rayferry.submit.schedule.runs import RayRuns

RUN = "nightly-20260301T120100Z-abcdef"


@pytest.fixture
def runs(ray_api):
    return RayRuns(lambda named: Address(named or ray_api.url, "test"))


@pytest.fixture
def firing(spec, runs):
    one = Firing(
        schedule="nightly",
        scheduled_time="2026-03-01T12:01:00Z",
        submission_id=RUN,
        run=f"{RUN}/12345678",
        job=spec.to_json(),
        output_uri=spec.output.uri,
    )
    return changed(one, **runs.place(one, None))


@pytest.fixture
def sent(runs, firing, ray_api):
    """A firing whose run was submitted, and runs."""
    ray_api.statuses = ["RUNNING"]
    runs.start(firing)
    return firing


def test_a_run_is_submitted_once_however_often_it_is_started(runs, sent, ray_api):
    assert runs.start(sent) == ray_api.url
    assert RayRuns(lambda _named: Address(ray_api.url, "test")).start(sent) == ray_api.url
    assert ray_api.num("POST", "/api/jobs/") == 1
    assert list(ray_api.jobs) == [RUN]


def test_a_run_that_the_output_tells_of_is_not_submitted_again(runs, firing, ray_api, write_outcome):
    write_outcome(firing.output_uri, "RUNNING", submission_id=RUN)
    runs.start(firing)
    assert ray_api.jobs == {}


def test_a_next_attempt_goes_on_with_the_run_and_knows_what_is_over(runs, sent, ray_api):
    ray_api.jobs[RUN]["status"] = "FAILED"
    runs.start(changed(sent, attempt=2))
    entrypoint = ray_api.jobs[f"{RUN}-a2"]["sent"]["entrypoint"]
    assert f"--later --over {RUN} --run {RUN}/12345678" in entrypoint
    assert ray_api.jobs[f"{RUN}-a2"]["sent"]["metadata"]["rayferry_run"] == RUN


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_run_goes_on_while_the_cluster_says_so(runs, sent, ray_api, status):
    ray_api.statuses = [status]
    assert runs.look(sent).standing == "running"


def test_a_run_that_ended_well_is_told_by_its_manifest(runs, sent, ray_api, write_manifest):
    write_manifest(sent.output_uri, RUN)
    ray_api.statuses = ["SUCCEEDED"]
    look = runs.look(sent)
    assert (look.standing, look.state, look.reason) == ("over", "succeeded", None)
    assert look.result["counts"] == {"total": 2, "succeeded": 2, "failed": 0}


def test_a_run_without_a_manifest_did_not_end_well(runs, sent, ray_api):
    ray_api.statuses = ["SUCCEEDED"]
    look = runs.look(sent)
    assert (look.state, look.result["exit_code"]) == ("failed", 1)
    assert "manifest.json: not there" in look.reason


@pytest.mark.parametrize(
    ("error_type", "again"), [("JOB_SUPERVISOR_ACTOR_DIED", True), ("JOB_ENTRYPOINT_COMMAND_ERROR", False)]
)
def test_what_the_cluster_spoilt_may_do_better_and_what_the_job_spoilt_may_not(runs, sent, ray_api, error_type, again):
    ray_api.statuses, ray_api.error_type, ray_api.message = ["FAILED"], error_type, "it died\nof this"
    look = runs.look(sent)
    assert (look.standing, look.state, look.reason, look.again) == ("over", "failed", "it died", again)


def test_too_many_failed_rows_are_told_as_that(runs, sent, ray_api, write_manifest):
    write_manifest(sent.output_uri, RUN, failed=5)
    ray_api.statuses, ray_api.driver_exit_code = ["FAILED"], 3
    look = runs.look(sent)
    assert (look.state, look.result["exit_code"]) == ("failed", 3)
    assert "max_error_rate" in look.reason


def test_a_run_that_was_asked_to_stop_is_stopped(runs, sent):
    runs.stop(sent)
    look = runs.look(sent)
    assert (look.standing, look.state) == ("over", "stopped")


def test_a_cluster_that_does_not_answer_tells_nothing(runs, sent):
    (port,) = free_ports(1)
    assert runs.look(changed(sent, address=f"http://127.0.0.1:{port}", session="gone")).standing == "unknown"


def test_a_run_is_looked_for_where_it_was_sent_whatever_the_scheduler_is_told(sent, serve_ray, ray_api):
    other = serve_ray()
    runs = RayRuns(lambda _named: Address(other.url, "--address"))
    assert runs.look(sent).standing == "running"
    ray_api.jobs[RUN]["status"] = "FAILED"
    runs.start(changed(sent, attempt=2))
    assert (other.jobs, len(ray_api.jobs)) == ({}, 2)


def test_an_address_of_another_machine_is_not_taken_for_one_of_this(sent, ray_api):
    theirs = changed(sent, seen_from="their-laptop", session="another")
    runs = RayRuns(lambda _named: Address(ray_api.url.replace("127.0.0.1", "localhost"), "the cluster itself"))
    look = runs.look(theirs)
    assert look.standing == "unknown"
    assert "as their-laptop sees it; it cannot be asked from here" in look.reason
    assert runs.look(changed(theirs, session="s")).standing == "running"  # it is this very cluster


def test_a_firing_whose_job_is_not_valid_is_looked_at_all_the_same(runs, sent):
    assert runs.look(changed(sent, job={"cluster": 3})).standing == "running"


class TestForgotten:
    """The cluster answers, and does not know the run: it was restarted."""

    def test_nothing_tells_of_it(self, runs, firing):
        assert runs.look(firing).standing == "forgotten"

    def test_it_was_running(self, runs, firing, write_outcome):
        write_outcome(firing.output_uri, "RUNNING", submission_id=RUN)
        assert runs.look(firing).standing == "forgotten"

    def test_the_output_is_of_another_run(self, runs, firing, write_outcome):
        write_outcome(firing.output_uri, "FAILED", 1, "no", submission_id="other")
        assert runs.look(firing).standing == "forgotten"

    @pytest.mark.parametrize(("status", "code"), [("FAILED", 75), ("STOPPED", 143)])
    def test_the_cluster_had_ended_it(self, runs, firing, write_outcome, status, code):
        write_outcome(firing.output_uri, status, code, "the board died", submission_id=RUN)
        look = runs.look(firing)
        assert (look.standing, look.again) == ("over", True)

    def test_it_had_failed(self, runs, firing, write_outcome):
        write_outcome(firing.output_uri, "FAILED", 1, "no such model", submission_id=RUN)
        look = runs.look(firing)
        assert (look.standing, look.state, look.reason) == ("over", "failed", "no such model")

    def test_it_had_ended_well(self, runs, firing, write_outcome, write_manifest):
        write_outcome(firing.output_uri, "SUCCEEDED", 0, submission_id=RUN)
        write_manifest(firing.output_uri, RUN)
        look = runs.look(firing)
        assert (look.standing, look.state, look.result["exit_code"]) == ("over", "succeeded", 0)
