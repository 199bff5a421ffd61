"""A job that KubeRay's cron started finds out for which tick, and fills in its templates."""

import http.server
import json
import shutil
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest

from rayferry.job import __main__ as entrypoint
from rayferry.job import pipeline, tick
from rayferry.job.errors import JobError, SpecError
from rayferry.job.tick import ANNOTATION, Tick, own_submission_id

PATH = "/apis/ray.io/v1/namespaces/batch/rayclusters/nightly-x7k9q-abcde"
JOB = {
    "model": "m",
    "name": "{{ schedule }}-{{ scheduled_time | date('%H') }}",
    "input": {"uri": "/in/{{ scheduled_time | shift(days=-1) | date }}"},
    "output": {"uri": "/out/{{ scheduled_time | date('%Y/%m/%d') }}/"},
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for the loopback address, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    ca, key = folder / "ca.crt", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kubernetes"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", ca]
    subprocess.run(command, check=True, capture_output=True)
    return ca, key


@pytest.fixture
def api_server(certificate, tmp_path, monkeypatch):
    """An API server by TLS, with a pod's account for it; its answers are taken one by one, the last one stays."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append((self.path, self.headers["Authorization"]))
            code, value = server.answers[0] if len(server.answers) == 1 else server.answers.pop(0)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.asked, server.answers = [], [(404, {})]
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    account = tmp_path / "account"
    account.mkdir()
    (account / "namespace").write_text("batch\n")
    (account / "token").write_text("the-token\n")
    shutil.copy(certificate[0], account / "ca.crt")
    server.account = account
    monkeypatch.setattr(tick, "_ACCOUNT", account)
    monkeypatch.setattr(tick, "_PAUSE_S", 0.0)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT_HTTPS", str(server.server_port))
    monkeypatch.setenv("RAY_CLUSTER_NAME", "nightly-x7k9q-abcde")
    yield server
    server.shutdown()
    server.server_close()


def ray_cluster(**annotations):
    return 200, {"metadata": {"name": "nightly-x7k9q-abcde", "annotations": annotations}}


def test_the_time_that_kuberay_wrote_onto_the_cluster_fills_the_templates_in_the_schedules_zone(api_server):
    api_server.answers = [ray_cluster(**{ANNOTATION: "2027-01-31T18:00:00Z"})]
    filled = Tick("nightly", "Asia/Shanghai").fill(JOB)
    assert (filled["name"], filled["input"]["uri"], filled["output"]["uri"]) == (
        "nightly-02",
        "/in/2027-01-31",
        "/out/2027/02/01/",
    )
    assert api_server.asked == [(PATH, "Bearer the-token")]


def test_a_server_that_has_a_bad_moment_is_asked_again(api_server):
    api_server.answers = [(503, {}), (429, {}), ray_cluster(**{ANNOTATION: "2027-01-31T18:00:00Z"})]
    assert Tick("nightly", "UTC").fill(JOB)["output"]["uri"] == "/out/2027/01/31/"
    assert len(api_server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "message", "times"),
    [
        (ray_cluster(), f"no annotation {ANNOTATION}: it was not made by a RayCronJob of KubeRay 1.6 or later", 1),
        (ray_cluster(**{ANNOTATION: "soon"}), "is no time: 'soon'", 1),
        ((403, {}), "the API server answers 403; .* enableInTreeAutoscaling is true", 1),
        ((500, {}), "cannot be read: the API server answers 500", 5),
    ],
)
def test_a_time_that_is_not_to_be_had_is_told_with_what_to_do(api_server, answer, message, times):
    api_server.answers = [answer]
    with pytest.raises(JobError, match=message):
        Tick("nightly", "UTC").fill(JOB)
    assert len(api_server.asked) == times


def test_a_pod_without_an_account_is_told_by_the_file_that_is_missing(api_server):
    (api_server.account / "token").unlink()
    with pytest.raises(JobError, match=r"No such file .*token"):
        Tick("nightly", "UTC").fill(JOB)


def test_outside_of_kubernetes_the_time_must_be_given(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(JobError, match="give --scheduled-time"):
        Tick("nightly", "UTC").fill(JOB)


def test_a_zone_that_the_image_does_not_know_is_a_mistake_of_the_job():
    with pytest.raises(SpecError, match=r"put tzdata into runtime_env\.pip"):
        Tick("nightly", "Mars/Olympus", datetime(2027, 1, 1, tzinfo=UTC)).fill(JOB)


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2027, 1, 31, 18, tzinfo=UTC),
        datetime(2027, 2, 1, 2, tzinfo=timezone(timedelta(hours=8))),
        datetime(2027, 1, 31, 18),  # noqa: DTZ001  # a time without a zone is meant in UTC
    ],
)
def test_a_time_that_is_given_needs_no_kubernetes(moment, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert Tick("nightly", "Asia/Shanghai", moment).fill(JOB)["output"]["uri"] == "/out/2027/02/01/"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1"}}), "raysubmit_1"),
        (json.dumps({"runtime_env": {}}), None),
        ("not JSON", None),
        (None, None),
    ],
)
def test_ray_tells_a_job_its_own_id(monkeypatch, value, found):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if value is not None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", value)
    assert own_submission_id() == found


def test_the_entrypoint_runs_the_job_of_its_tick_under_the_id_that_ray_gave_it(monkeypatch, tmp_path, api_server):
    api_server.answers = [ray_cluster(**{ANNOTATION: "2027-01-31T18:00:00Z"})]
    job = {"metadata": {"job_submission_id": "nightly-x7k9q-f8h2p"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    seen = []

    def run(spec, submission_id, **how):
        seen.append((spec.output.uri, submission_id, how["earlier"].resume))
        return {"counts": {"total": 1, "succeeded": 1, "failed": 0}, "max_error_rate": 0.05}

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(entrypoint.signal, "signal", lambda *_: None)
    (tmp_path / "spec.json").write_text(json.dumps(JOB))
    words = Tick("nightly", "Asia/Shanghai").words
    assert entrypoint.main([str(tmp_path / "spec.json"), "--resume", *words]) == 0
    assert seen == [("/out/2027/02/01/", "nightly-x7k9q-f8h2p", True)]


def test_without_an_id_and_outside_of_ray_the_entrypoint_asks_for_one(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    with pytest.raises(SystemExit):
        entrypoint.main([str(tmp_path / "spec.json")])
    assert "outside of a job of Ray's: --submission-id" in capsys.readouterr().err
