"""Checks before a job starts: all at once, each within its time, those left out that are to be."""

import json
import threading

import pytest

from rayferry.job.earlier import NOTHING_EARLIER, Earlier
from rayferry.job.probe import MARK
from rayferry.job.spec import parse
from rayferry.submit import preflight as preflight_module
from rayferry.submit import probes as probes_module
from rayferry.submit.cli_shared import CHECKS
from rayferry.submit.client import Cluster, UnreachableError
from rayferry.submit.config import Address
from rayferry.submit.preflight import PROBE_JOB, PreflightError, Probe, ask_from_cluster, preflight, require

HERE = Address("http://127.0.0.1:8265", "test")
PACKAGE = {"files": [{"name": "spec.json", "num_bytes": 9}], "num_bytes": 9}


def outcomes(probes):
    return {probe.name: probe.outcome for probe in probes}


def test_every_check_answers_in_order(spec, asked):
    assert [probe.name for probe in preflight(spec, HERE, asked, PACKAGE)] == list(CHECKS)


def test_the_client_is_made_once(spec, asked):
    made = []
    preflight(spec, HERE, lambda: made.append(1) or asked(), PACKAGE)
    assert made == [1]


def test_the_input_is_listed_once(spec, asked, monkeypatch):
    made = []
    real = probes_module.list_input
    monkeypatch.setattr(probes_module, "list_input", lambda *args: made.append(1) or real(*args))
    preflight(spec, HERE, asked, PACKAGE)
    assert made == [1]


def test_a_cluster_that_is_away_fails_its_own_check_only(spec):
    def away():
        raise UnreachableError("no cluster answers at http://head:8265")

    found = preflight(spec, HERE, away, PACKAGE)
    said = ["failed", "unknown", "ok", "ok", "ok", "unknown", "ok", "ok"]
    assert list(outcomes(found).values()) == said
    assert found[1].text == "the cluster's nodes: it does not answer; the job plans its replicas again when it starts"


def test_require_passes_what_is_ok_unknown_or_skipped():
    require([Probe("a", "ok", "", 0.0), Probe("b", "unknown", "x", 0.0), Probe("c", "skipped", "", 0.0)])


def test_require_tells_every_failure():
    with pytest.raises(PreflightError, match=r"^one\ntwo$"):
        require([Probe("a", "failed", "one", 0), Probe("b", "ok", "", 0), Probe("c", "failed", "two", 0)])


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_is_left_out_is_listed_as_skipped(spec, asked, name):
    left_out = [
        one for one, outcome in outcomes(preflight(spec, HERE, asked, PACKAGE, [name])).items() if outcome == "skipped"
    ]
    assert left_out == [name]


def test_a_check_that_is_left_out_is_not_made(spec, asked):
    made = []
    preflight(spec, HERE, lambda: made.append(1) or asked(), PACKAGE, CHECKS)
    assert made == []


@pytest.fixture
def hang():
    """A call that comes back only after the test."""
    end = threading.Event()
    yield lambda *_: end.wait(10)
    end.set()


@pytest.fixture
def _brief(monkeypatch):
    monkeypatch.setattr(preflight_module, "_LIMIT_S", 0.5)


@pytest.mark.usefixtures("_brief")
def test_a_cluster_that_hangs_fails_after_the_limit(spec, hang):
    found = preflight(spec, HERE, hang, PACKAGE)
    said = "no answer from http://127.0.0.1:8265 in 0.5 s; check the address and the network"
    assert (found[0].outcome, found[0].text) == ("failed", said)


@pytest.mark.usefixtures("_brief")
@pytest.mark.parametrize("name", ["list_input", "ask_capacity", "ask_output", "ask_model", "ask_engine", "ask_package"])
def test_another_check_that_hangs_is_unknown_after_the_limit(spec, asked, hang, monkeypatch, name):
    monkeypatch.setattr(probes_module, name, lambda *_, **_options: hang())
    name = name.removeprefix("ask_").removeprefix("list_")
    probe = next(probe for probe in preflight(spec, HERE, asked, PACKAGE) if probe.name == name)
    assert (probe.outcome, probe.text.startswith(f"{name}: no answer in 0.5 s")) == ("unknown", True)


@pytest.mark.usefixtures("_brief")
def test_checks_that_hang_together_take_one_limit_in_all(spec, hang, monkeypatch):
    for name in ("list_input", "ask_output", "ask_model"):
        monkeypatch.setattr(probes_module, name, lambda *_, **_options: hang())
    found = preflight(spec, HERE, hang, PACKAGE)
    assert max(probe.seconds for probe in found) < 2


def test_the_limit_is_half_a_minute_at_most():
    assert preflight_module._LIMIT_S <= 30


@pytest.mark.parametrize(("name", "outcome"), [("cluster", "failed"), ("model", "unknown")])
def test_a_check_that_breaks_off_does_not_take_the_others_with_it(spec, asked, monkeypatch, name, outcome):
    def broken(*_):
        raise KeyError("ray_version")

    monkeypatch.setattr(probes_module, f"ask_{name}", broken)
    found = {probe.name: probe for probe in preflight(spec, HERE, asked, PACKAGE)}
    said = f"{name}: the check broke off: KeyError: 'ray_version'"
    assert (found[name].outcome, found[name].text, found["input"].outcome) == (outcome, said, "ok")


UNSEEN = [
    Probe("cluster", "ok", "Ray", 0.1),
    Probe("input", "unknown", "no credentials", 0.1, elsewhere=True),
    Probe("model", "unknown", "a hub id", 0.0),
]


@pytest.fixture
def look(ray_api, spec, monkeypatch):
    """Lets that cluster look, which answers so; gives what came of the checks."""
    monkeypatch.setattr(preflight_module, "_POLL_S", 0.02)
    monkeypatch.setattr(preflight_module, "_AGAIN_S", 0.1)
    ray_api.log = "noise\n"

    def run(*answers, found=UNSEEN, skip=(), earlier=NOTHING_EARLIER):
        ray_api.log += "".join(f"{MARK}{json.dumps(answer)}\n" for answer in answers)
        return ask_from_cluster(spec, lambda: Cluster(ray_api.url), found, skip, earlier)

    return run


def test_the_cluster_answers_what_the_laptop_could_not(look):
    seen = look(["input", "ok", "3 files"], ["output", "failed", "not empty"], ["model", "ok", "there"])
    assert [(probe.name, probe.outcome, probe.text) for probe in seen[1:]] == [
        ("input", "ok", "3 files (seen from the cluster)"),
        ("model", "unknown", "a hub id"),
    ]


def test_the_job_that_looks_is_asked_that_alone_writes_nowhere_and_is_taken_off_the_list(look, ray_api):
    started = []
    ray_api.on_start = lambda name: started.append(ray_api.jobs[name]["sent"])
    look(["input", "ok", "3 files"], earlier=Earlier(overwrite=True))
    (sent,) = started
    assert sent["entrypoint"] == "python -m rayferry.job.probe spec.json input --overwrite"
    assert "rayferry_output_uri" not in sent["metadata"]
    assert ray_api.jobs == {}


@pytest.mark.parametrize(
    "found",
    [
        [UNSEEN[0], Probe("input", "ok", "1 file", 0.1), Probe("rows", "ok", "x", 0.1), UNSEEN[2]],
        [Probe("cluster", "failed", "away", 0.1), UNSEEN[1]],
        [UNSEEN[1]],
        [UNSEEN[0], Probe("input", "skipped", "", 0.0)],
        [UNSEEN[0], Probe("input", "ok", "1 file", 0.1), Probe("rows", "unknown", "too much to read", 0.1)],
    ],
    ids=["all seen", "cluster away", "cluster skipped", "input skipped", "rows that do not tell"],
)
def test_where_it_would_tell_nothing_new_the_cluster_is_not_asked(look, ray_api, found):
    assert look(found=found) == found
    assert ray_api.requests == []


def test_the_cluster_is_not_asked_where_its_look_is_left_out(look, ray_api):
    assert look(skip=[PROBE_JOB]) == UNSEEN
    assert ray_api.requests == []


@pytest.mark.parametrize("is_far", [True, False])
def test_what_the_cluster_may_see_is_asked_of_it_alone(job_data, asked, is_far):
    far = {"input": {"uri": "/far/in"}, "output": {"uri": "/far/out"}, "model": "/far/m"}
    spec = parse(job_data | (far if is_far else {}), "job.yaml")
    found = preflight(spec, Address("http://head:8265", "test"), lambda: asked(here=False), PACKAGE)
    asked_for = [probe.name for probe in found if probe.elsewhere]
    assert asked_for == (["input", "rows", "output", "model"] if is_far else ["input", "rows", "output"])


def test_rows_and_capacity_are_looked_at_from_the_cluster(look):
    unseen = [
        UNSEEN[0],
        UNSEEN[1],
        *(Probe(name, "unknown", "x", 0.1, elsewhere=True) for name in ("capacity", "rows")),
    ]
    answers = [["capacity", "failed", "too few"], ["input", "ok", "3 files"], ["rows", "ok", "20 good"]]
    assert [probe.outcome for probe in look(*answers, found=unseen)] == ["ok", "ok", "failed", "ok"]


def test_a_job_that_ray_puts_back_on_its_list_is_taken_off_again(look, ray_api, monkeypatch):
    calls, forget = [], Cluster.forget

    def second_time(cluster, name):
        calls.append(name)
        if len(calls) > 1:
            forget(cluster, name)

    monkeypatch.setattr(Cluster, "forget", second_time)
    look(["input", "ok", "3 files"])
    assert (len(calls), ray_api.jobs) == (2, {})


def test_a_look_that_fails_is_said_beside_what_was_known_and_fails_nothing(look, ray_api):
    ray_api.statuses = ["FAILED"]
    ray_api.message = "the environment could not be set up"
    probe = look()[1]
    why = "its job ended without an answer: FAILED the environment could not be set up noise"
    assert (probe.outcome, probe.text) == ("unknown", f"no credentials; the cluster could not look either: {why}")
    assert ray_api.jobs == {}


def test_an_answer_that_was_damaged_is_none(look, ray_api):
    ray_api.log = f"{MARK}[input\n"
    assert look()[1].outcome == "unknown"


def test_a_look_that_does_not_end_is_stopped(look, ray_api, monkeypatch):
    monkeypatch.setattr(preflight_module, "_CLUSTER_LIMIT_S", 0.2)
    ray_api.statuses = ["PENDING"]
    probe = look()[1]
    assert (probe.outcome, "was not over in 0.2 s (PENDING" in probe.text) == ("unknown", True)
    assert (ray_api.statuses, ray_api.jobs) == (["STOPPED"], {})


def interrupted(*_args):
    raise KeyboardInterrupt


def test_an_interruption_stops_the_look_and_goes_on(look, ray_api, monkeypatch):
    ray_api.statuses = ["RUNNING"]

    monkeypatch.setattr(preflight_module, "_log_at_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look()
    assert (ray_api.statuses, ray_api.jobs) == (["STOPPED"], {})


def test_an_interruption_does_not_wait_for_a_look_that_cannot_be_stopped(look, ray_api, monkeypatch, capsys):
    ray_api.statuses = ["PENDING"]
    monkeypatch.setattr(preflight_module, "_INTERRUPTED_STOP_LIMIT_S", 0.1)
    monkeypatch.setattr(Cluster, "stop", lambda *_: None)
    monkeypatch.setattr(preflight_module, "_log_at_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look()
    assert "may still be there; end it: rayferry stop reviews-check-" in capsys.readouterr().err


def test_a_second_interruption_names_the_job_that_may_be_left(look, ray_api, monkeypatch, capsys):
    ray_api.statuses = ["RUNNING"]
    monkeypatch.setattr(preflight_module, "_log_at_end", interrupted)
    monkeypatch.setattr(Cluster, "stop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look()
    assert "may still be there; end it: rayferry stop reviews-check-" in capsys.readouterr().err


def test_a_look_that_cannot_be_submitted_fails_nothing(look, ray_api):
    ray_api.faults["POST", "/api/jobs/"] = [(403, "no")]
    assert look()[1].outcome == "unknown"


def test_a_job_that_may_be_left_is_named(look, ray_api, capsys):
    ray_api.faults["DELETE", "/api/jobs/"] = [(500, "no")] * 9
    look(["input", "ok", "3 files"])
    assert "the job that looked may still be there; end it: rayferry stop reviews-check-" in capsys.readouterr().err
