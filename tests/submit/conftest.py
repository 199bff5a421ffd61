"""What the laptop's tests share: a clean environment, a job, a cluster in Python and one over HTTP, both by script."""

import asyncio
import json
import os
import shutil
import subprocess
import sysconfig
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import boto3
import pytest
import yaml

from rayferry.job.earlier import NOTHING_EARLIER
from rayferry.job.layout import Layout
from rayferry.job.placement import Node
from rayferry.job.spec import parse
from rayferry.submit import follow as follow_module
from rayferry.submit import launch
from rayferry.submit.client import JobInfo
from rayferry.submit.config import Address
from rayferry.submit.preflight import preflight
from rayferry.submit.request import build_request

GUARD_S = 10.0
COMMAND = str(Path(sysconfig.get_path("scripts")) / "rayferry")
PIPES = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture(autouse=True)
def _surroundings(request, monkeypatch, tmp_path):
    """No cluster, no account and no state of the developer's; a test that asks for the stack gets its environment."""
    if "stack" in request.fixturenames:
        for name, value in request.getfixturevalue("stack").environ().items():
            monkeypatch.setenv(name, value)
    else:
        for name in os.environ:
            # what Ray has read at its import cannot be taken back
            if name.startswith(("RAY_", "AWS_", "RAYFERRY_")) and not name.startswith(("RAY_AUTH_", "RAY_ENABLE_")):
                monkeypatch.delenv(name)
        monkeypatch.setenv("RAYFERRY_STATE", str(tmp_path / "state"))
        monkeypatch.setenv("HOME", str(tmp_path / "home"))  # any ray.init() leaves a token in it
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    if "stack" not in request.fixturenames or "other_account" in request.fixturenames:
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials that it once found


@pytest.fixture
def other_account(monkeypatch):
    """For a test that changes credentials: a function to do it with; an empty value takes a variable away."""

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
            if not value:
                monkeypatch.delenv(name)

    return change


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(follow_module, "_POLL_S", 0.01)
    monkeypatch.setattr(follow_module, "_FIRST_POLL_S", 0.01)
    monkeypatch.setattr(launch, "_POLL_S", 0.01)
    monkeypatch.setattr("rayferry.submit.transport._READ_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Makes a certificate, signed by itself; gives the path of it and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")

    def make(name, alternative):
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        if not paths[0].exists():
            command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
            command += ["-addext", f"subjectAltName={alternative}", "-out", str(paths[0]), "-keyout", str(paths[1])]
            subprocess.run(command, check=True, capture_output=True)
        return paths

    return make


@pytest.fixture
def job_data(tmp_path):
    """The content of a job file whose input and output lie on this machine."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "a.jsonl").write_text('{"text": "hello"}\n')
    return {
        "name": "reviews",
        "model": "org/model",
        "input": {"uri": str(tmp_path / "prompts")},
        "output": {"uri": str(tmp_path / "out")},
    }


@pytest.fixture
def spec(job_data):
    return parse(job_data, "job.yaml")


@pytest.fixture
def job_file(tmp_path, job_data):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_data))
    return path


@pytest.fixture
def write_manifest():
    """Writes what a finished run leaves, under a folder."""

    def write(output_uri, submission_id, *, earlier=(), succeeded=2, failed=0):
        manifest = {
            "schema_version": 1,
            "submission_id": submission_id,
            "attempts": [*earlier, submission_id],
            "output_uri": output_uri,
            "counts": {"total": succeeded + failed, "succeeded": succeeded, "failed": failed},
            "tokens": {"input": 10, "generated": 20},
            "seconds": {"total": 1.5, "load": [1.0], "generate": 0.5},
            "parts": [{"kind": "data", "num_rows": succeeded}],
        }
        path = Layout(output_uri).manifest_uri
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120  # a URI that is a path
        with open(path, "w") as file:  # noqa: PTH123
            json.dump(manifest, file)
        return manifest

    return write


@pytest.fixture
def write_outcome():
    """Writes how a run ended, under a folder."""

    def write(output_uri, status, exit_code=None, error=None, submission_id="job-1"):
        outcome = {
            "schema_version": 1,
            "submission_id": submission_id,
            "status": status,
            "exit_code": exit_code,
            "error": error,
            "started_at": "2026-01-01T10:00:00Z",
            "ended_at": None if status == "RUNNING" else "2026-01-01T11:00:00Z",
        }
        path = Path(Layout(output_uri).outcome_uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(outcome))
        return outcome

    return write


class FakeCluster:
    """A cluster by script: `info` gives one answer a call, `tail` one stream a call.

    The last answer is held back, and the one before it repeated, until `may_end` is set: by default once every stream
    has been read.

    Args:
        answers: statuses, `JobInfo`s, or errors to raise.
        streams: each a list of pieces, errors to raise and `HANG`.
        log: the whole log: a text, an error to raise, or a list of such, one a call, of which the last repeats.
        end: fields of the `JobInfo`s made from statuses.
    """

    HANG = object()
    url = "http://127.0.0.1:8265"

    def __init__(self, answers, streams=(), log="", may_end=None, **end):
        self.answers = list(answers)
        self.streams = list(streams)
        self.log = log if isinstance(log, list) else [log]
        self.may_end = may_end or threading.Event()
        self.num_tails = 0
        self.on_ask = lambda: None
        self.released = threading.Event()
        self._end = end
        self._guard = time.monotonic() + GUARD_S
        if not self.streams and may_end is None:
            self.may_end.set()

    def info(self, submission_id):
        assert time.monotonic() < self._guard, "the script never came to its end"
        self.on_ask()
        hold = len(self.answers) == 1 or (len(self.answers) == 2 and not self.may_end.is_set())
        answer = self.answers[0] if hold else self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, JobInfo) else JobInfo(submission_id, answer, **self._end)

    def is_here(self):
        return "127.0.0.1" in self.url

    def command(self, words):
        return f"rayferry {words}"

    def logs(self, submission_id):
        answer = self.log[0] if len(self.log) == 1 else self.log.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def tail(self, submission_id):
        self.num_tails += 1
        script = self.streams.pop(0) if self.streams else ()
        try:
            for item in script:
                if item is self.HANG:
                    await asyncio.to_thread(self.released.wait, GUARD_S)
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            if not self.streams:
                self.may_end.set()


@pytest.fixture
def fake_cluster():
    """The class; what it made is let go of after the test."""
    made = []

    def make(*args, **options):
        made.append(FakeCluster(*args, **options))
        return made[-1]

    make.HANG = FakeCluster.HANG
    yield make
    for cluster in made:
        cluster.released.set()


@dataclass
class RayApi:
    """As much of Ray's Jobs API as Rayferry uses, over HTTP on loopback.

    Attributes:
        faults: what goes wrong, for the next requests whose method and path begin so: a list of (status, text), or of
            `before` (closed without an answer, nothing done), `after` (done, but no answer), `cut` (done, half an
            answer).
        statuses: what a job goes through, one a question; the last repeats.
        requests: (method, path) of all that came in.
        on_start: called with the id of each job that starts.
        jobs: by id: what was `sent`, and a `status` of its own if it has one.
    """

    url: str = ""
    token: str | None = None
    ray_version: str = "2.60.0"
    python_version: str | None = "3.12.3"
    nodes: object = field(default_factory=lambda: [{"state": "ALIVE", "resources_total": {"CPU": 8.0}}])
    statuses: list = field(default_factory=lambda: ["SUCCEEDED"])
    driver_exit_code: int | None = None
    message: str = ""
    error_type: str | None = None
    log: str = "[rayferry] 10:00:00 hello\nnoise\n"
    faults: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)
    jobs: dict = field(default_factory=dict)
    packages: dict = field(default_factory=dict)
    asked: threading.Event = field(default_factory=threading.Event)
    on_start: object = lambda _name: None

    def num(self, method, path):
        return sum(entry == (method, path) for entry in self.requests)

    def fault(self, method, path):
        for (of, prefix), left in self.faults.items():
            if method == of and path.startswith(prefix) and left:
                return left.pop(0)
        return None

    def answer(self, method, path, body):  # noqa: C901, PLR0911, PLR0912  # one line a route
        if path == "/api/version":
            return 200, {"version": "4", "ray_version": self.ray_version, "ray_commit": "c", "session_name": "s"}
        if path == "/api/v0/cluster_metadata" and self.python_version:
            return 200, {"result": True, "msg": "", "data": {"pythonVersion": self.python_version}}
        if path.startswith("/api/v0/nodes"):
            return 200, {"result": True, "msg": "", "data": {"result": {"result": self.nodes}}}
        if path == "/api/cluster_status":
            return 200, {"result": True, "msg": "", "data": {"clusterStatus": None}}
        if path.startswith("/api/packages/"):
            return self._package(method, path, body)
        if (method, path) == ("POST", "/api/jobs/"):
            return self._start(json.loads(body))
        if path == "/api/jobs/":
            return 200, [self._details(name) for name in self.jobs]
        name, _, rest = path.removeprefix("/api/jobs/").partition("/")
        name = unquote(name)
        if name not in self.jobs:
            return 404, f"Job {name} does not exist"
        if rest == "" and method == "DELETE":
            del self.jobs[name]
            return 200, {"deleted": True}
        if rest == "":
            self.asked.set()
            if len(self.statuses) > 1 and self.jobs[name].get("told"):
                self.statuses.pop(0)
            self.jobs[name]["told"] = True
            return 200, self._details(name)
        if rest == "logs":
            return 200, {"logs": self.log}
        if rest == "stop" and "status" in self.jobs[name]:
            self.jobs[name]["status"] = "STOPPED"
        if rest == "stop":
            self.statuses[:] = ["STOPPED"]
            return 200, {"stopped": True}
        return 404, "no such route"

    def _package(self, method, path, body):
        if method == "PUT":
            self.packages[path] = body
            return 200, {}
        return (200, {}) if path in self.packages else (404, f"Package {path} does not exist")

    def _start(self, sent):
        name = sent["submission_id"]
        if name in self.jobs:
            text = f"ValueError: Job with submission_id {name} already exists. Please use a different submission_id."
            return 500, "Traceback (most recent call last):\n" + text
        self.jobs[name] = {"sent": sent}
        self.on_start(name)
        return 200, {"job_id": name, "submission_id": name}

    def _details(self, name):
        sent = self.jobs[name]["sent"]
        return {
            "type": "SUBMISSION",
            "submission_id": name,
            "job_id": None,
            "driver_info": None,
            "status": self.jobs[name].get("status", self.statuses[0]),
            "entrypoint": sent["entrypoint"],
            "message": self.message or f"it is {self.statuses[0]}",
            "error_type": self.error_type,
            "start_time": 1000 * (1 + list(self.jobs).index(name)),
            "end_time": None,
            "metadata": sent["metadata"],
            "runtime_env": sent["runtime_env"],
            "driver_agent_http_address": None,
            "driver_node_id": None,
            "driver_exit_code": self.driver_exit_code,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self):
        api = self.server.api
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        api.requests.append((self.command, self.path))
        if api.token and not self.headers.get("Authorization"):
            return self._send(401, "Unauthorized: Missing authentication token")
        if api.token and self.headers["Authorization"] != f"Bearer {api.token}":
            return self._send(403, "Forbidden: Invalid authentication token")
        fault = api.fault(self.command, self.path)
        if isinstance(fault, tuple):
            return self._send(*fault)
        if fault == "before":
            self.close_connection = True
            return None
        status, value = api.answer(self.command, self.path, body)
        if fault == "after":
            self.close_connection = True
            return None
        return self._send(status, value, cut=fault == "cut")

    do_GET = _serve  # noqa: N815
    do_POST = _serve  # noqa: N815
    do_PUT = _serve  # noqa: N815
    do_DELETE = _serve  # noqa: N815

    def _send(self, status, value, *, cut=False):
        content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def log_message(self, *_):
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that goes away is what some tests are about."""


@pytest.fixture
def serve_ray():
    """Starts `RayApi`s; they end with the test."""
    servers = []

    def serve(**options):
        server = _Server(("127.0.0.1", 0), _Handler)
        server.api = RayApi(url=f"http://127.0.0.1:{server.server_port}", **options)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        servers.append(server)
        return server.api

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def ray_api(serve_ray):
    return serve_ray()


class Asked:
    """A cluster that only tells what it is."""

    url = "http://head:8265"

    def __init__(self, *nodes, version="2.60.0", autoscaling=False, here=True, **versions):
        self._nodes, self._version, self._autoscaling = nodes or [Node(8)], version, autoscaling
        self._here, self._versions = here, versions

    def version(self):
        return {"ray_version": self._version, "session_name": "session_1"} | self._versions

    def nodes(self):
        return list(self._nodes), self._autoscaling

    def is_here(self):
        return self._here


@pytest.fixture
def asked():
    """The class."""
    return Asked


@pytest.fixture
def probe(job_data):
    """Runs all checks on a changed job and gives one probe."""

    def run(name, *, cluster=None, address=None, package=None, earlier=NOTHING_EARLIER, **changes):
        spec = parse(job_data | changes, "job.yaml")
        place = address or Address("http://127.0.0.1:8265", "test")
        package = package or build_request(spec, place.url, "job-1").package
        probes = preflight(spec, place, lambda: cluster or Asked(), package, (), earlier)
        return next(probe for probe in probes if probe.name == name)

    return run


@pytest.fixture
def process():
    """Starts the installed command as a process."""
    started = []

    def start(*arguments, **options):
        started.append(subprocess.Popen([COMMAND, *map(str, arguments)], **(PIPES | options)))
        return started[-1]

    yield start
    for one in started:
        if one.poll() is None:
            one.kill()
        one.communicate()
