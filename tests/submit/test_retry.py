"""A run over several attempts. The cluster is a script here; tests/e2e and tests/chaos have real ones."""

import pytest

from rayferry.job.earlier import Earlier, attempt_id
from rayferry.job.spec import parse
from rayferry.submit import launch, retry
from rayferry.submit.client import JobInfo
from rayferry.submit.config import Address
from rayferry.submit.follow import LostContactError
from rayferry.submit.preflight import PROBE_JOB
from rayferry.submit.probes import PreflightError
from rayferry.submit.transport import NoSuchJobError, UnreachableError

PLACE = Address("http://127.0.0.1:1", "test")


def ended(name, error_type=None, exit_code=None, status="FAILED"):
    return JobInfo(name, status, error_type=error_type, exit_code=exit_code)


DIED = {"error_type": "JOB_SUPERVISOR_ACTOR_DIED"}
NO_ROOM = {"error_type": "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE"}
OURS = {"error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "exit_code": 1}
GOOD = {"status": "SUCCEEDED", "exit_code": 0}


GONE = NoSuchJobError("gone")
FIRST = Earlier(run="run/1")


class Script:
    """What the attempts of a run come to, and what was done about it."""

    def __init__(self, steps, known):
        self.steps, self.known = list(steps), known
        self.sent, self.concluded = [], []

    def to_its_end(self, _cluster, name, _watch):
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step and ended(name, **step)

    def submit(self, _spec, _address, name, skip, earlier):
        assert (PROBE_JOB in skip, earlier.run) == (True, "run/1")
        self.sent.append((name, earlier))
        return None, None

    def explain(self, _cluster, _info, *, goes_on):
        assert goes_on

    def conclude(self, _cluster, info, *, as_json):
        self.concluded.append(info.submission_id)
        return 0 if info.status == "SUCCEEDED" else 1

    def connect(self, _address):
        if isinstance(self.known, UnreachableError):
            raise self.known
        return self

    def info(self, name):
        if isinstance(self.known, Exception):
            raise self.known
        return ended(name, status=self.known)


@pytest.fixture
def follow(monkeypatch, job_data):
    """Follows a run whose attempts end as scripted; gives exit code, submissions and what was concluded."""

    def run(*steps, max_attempts=3, known=GONE, earlier=FIRST):
        script, pauses = Script(steps, known), []
        for name in ("to_its_end", "submit", "conclude"):
            monkeypatch.setattr(launch, name, getattr(script, name))
        monkeypatch.setattr(launch, "explain", script.explain)
        monkeypatch.setattr(retry, "Cluster", script.connect)
        spec = parse(job_data | {"retry": {"max_attempts": max_attempts}}, "job.yaml")
        code = retry.run(spec, PLACE, "run", launch.Watch(), cluster=None, sleep=pauses.append, earlier=earlier)
        assert len(pauses) == len(script.sent)
        return code, script.sent, script.concluded

    return run


def test_a_run_that_ends_well_is_one_attempt(follow):
    assert follow(GOOD) == (0, [], ["run"])


@pytest.mark.parametrize("failure", [DIED, NO_ROOM, {"exit_code": 137}], ids=str)
def test_what_the_cluster_spoilt_is_gone_on_with(follow, failure):
    assert follow(failure, GOOD) == (0, [("run-a2", Earlier(run="run/1", later=True, over=("run",)))], ["run-a2"])


@pytest.mark.parametrize("told", [{"overwrite": True}, {"retry_failed": True}, {"resume": True, "new_input": True}])
def test_a_later_attempt_is_told_what_the_first_was(follow, told):
    (sent,) = follow(DIED, GOOD, earlier=Earlier(run="run/1", over=("before",), **told))[1]
    assert sent == ("run-a2", Earlier(run="run/1", later=True, over=("before", "run"), **told))


@pytest.mark.parametrize("failure", [OURS, {"error_type": "RUNTIME_ENV_SETUP_FAILURE"}, {"status": "STOPPED"}], ids=str)
def test_what_the_job_spoilt_is_not_tried_again(follow, failure):
    assert follow(failure) == (1, [], ["run"])


def test_no_more_attempts_are_made_than_the_job_file_allows(follow):
    code, sent, concluded = follow(DIED, DIED, DIED)
    assert (code, [name for name, _ in sent], concluded) == (1, ["run-a2", "run-a3"], ["run-a3"])


@pytest.mark.parametrize("error", [UnreachableError("down"), PreflightError("no GPU yet")], ids=str)
@pytest.mark.parametrize(("num_errors", "code"), [(3, 0), (1000, None)])
def test_a_cluster_that_is_not_back_when_the_next_attempt_is_sent_is_waited_for(
    monkeypatch, job_data, error, num_errors, code
):
    script, pauses, errors = Script([DIED, GOOD], GONE), [], [error] * num_errors

    def submit(*asked):
        if errors:
            raise errors.pop()
        return script.submit(*asked)

    for name in ("to_its_end", "conclude", "explain"):
        monkeypatch.setattr(launch, name, getattr(script, name))
    monkeypatch.setattr(launch, "submit", submit)
    spec = parse(job_data | {"retry": {"max_attempts": 2}}, "job.yaml")
    how = {"cluster": None, "sleep": pauses.append, "earlier": FIRST}
    if code is None:
        with pytest.raises(type(error), match=str(error)):
            retry.run(spec, PLACE, "run", launch.Watch(), **how)
        assert 600 < sum(pauses) < 660
    else:
        assert retry.run(spec, PLACE, "run", launch.Watch(), **how) == code
        assert len(pauses) == 1 + num_errors


def test_one_attempt_is_no_retry(follow):
    assert follow(DIED, max_attempts=1) == (1, [], ["run"])


@pytest.mark.parametrize("gone", [LostContactError("restarted"), NoSuchJobError("before the first answer")], ids=str)
def test_a_job_that_a_restarted_cluster_has_forgotten_is_gone_on_with(follow, gone):
    assert follow(gone, GOOD)[1:] == (
        [("run-a2", Earlier(run="run/1", later=True))],
        ["run-a2"],
    )


@pytest.mark.parametrize("known", [UnreachableError("down"), "RUNNING"], ids=str)
def test_lost_contact_is_told_where_the_job_may_still_run(follow, known):
    with pytest.raises(LostContactError, match="lost"):
        follow(LostContactError("lost"), known=known)


def test_who_leaves_it_alone_leaves_it_alone(follow):
    assert follow(None) == (130, [], [])


def test_an_attempts_id_is_never_too_long():
    assert (attempt_id("x" * 128, 1), len(attempt_id("x" * 128, 12))) == ("x" * 128, 124)
