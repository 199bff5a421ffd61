import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rayferry.submit.schedule import hooks
from rayferry.submit.schedule.definition import OnFailure
from rayferry.submit.schedule.hooks import HookError, call, payload
from rayferry.submit.schedule.records import Firing

FIRING = Firing(
    schedule="nightly",
    scheduled_time="2026-03-01T12:01:00Z",
    state="failed",
    submission_id="nightly-1",
    attempt=2,
    reason="the node died",
    output_uri="s3://bucket/out/",
    result={"exit_code": 1},
)


@pytest.fixture
def server():
    """A real HTTP server; what came in is in `got`, and it answers `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.status = [], 204
    server.url = f"http://127.0.0.1:{server.server_port}/hook?key=1"
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_webhook_gets_the_whole_story(server):
    call(OnFailure(webhook=server.url), FIRING)
    assert server.got == [("/hook?key=1", "application/json", payload(FIRING))]
    assert payload(FIRING) == {
        "schema_version": 1,
        "event": "firing_failed",
        "schedule": "nightly",
        "scheduled_time": "2026-03-01T12:01:00Z",
        "trigger": "schedule",
        "state": "failed",
        "reason": "the node died",
        "submission_id": "nightly-1-a2",
        "attempts": 2,
        "address": None,
        "output_uri": "s3://bucket/out/",
        "ended_at": None,
        "result": {"exit_code": 1},
    }


def test_a_webhook_may_be_named_by_a_variable(server, monkeypatch):
    monkeypatch.setenv("HOOK_URL", server.url)
    call(OnFailure(webhook="env:HOOK_URL"), FIRING)
    assert len(server.got) == 1


@pytest.mark.parametrize("value", ["", "file:///etc/passwd"])
def test_a_variable_that_is_no_url_is_told_without_its_value(monkeypatch, value):
    monkeypatch.setenv("HOOK_URL", value)
    with pytest.raises(HookError, match="HOOK_URL is not set here to an http") as caught:
        call(OnFailure(webhook="env:HOOK_URL"), FIRING)
    assert "passwd" not in str(caught.value)


def test_a_webhook_that_refuses_is_told_without_its_url(server):
    server.status = 500
    with pytest.raises(HookError, match="the webhook answered 500") as caught:
        call(OnFailure(webhook=server.url), FIRING)
    assert "key=1" not in str(caught.value)


def test_a_webhook_that_is_not_there_is_told():
    with pytest.raises(HookError, match=r"the webhook does not answer: .*refused"):
        call(OnFailure(webhook="http://127.0.0.1:9/hook"), FIRING)


@pytest.fixture
def mute():
    """A server that answers with something that is no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with listening.accept()[0] as one:
                one.recv(65_536)
                one.sendall(b"hello, who is there?\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(10)


def test_a_webhook_that_does_not_speak_http_is_told(mute):
    with pytest.raises(HookError, match="the webhook does not answer: BadStatusLine"):
        call(OnFailure(webhook=f"http://127.0.0.1:{mute}/hook"), FIRING)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a secret", "http://127.0.0.1:9/secret\n", "http://a:secret/"])
def test_a_variable_that_holds_no_url_is_told_without_its_value(monkeypatch, url):
    monkeypatch.setenv("HOOK_URL", url)
    with pytest.raises(HookError) as caught:
        call(OnFailure(webhook="env:HOOK_URL"), FIRING)
    assert "secret" not in str(caught.value)


def test_a_command_that_no_shell_takes_is_told():
    with pytest.raises(HookError, match=r"the command: .*null byte"):
        call(OnFailure(command="true\0"), FIRING)


def test_a_command_gets_the_same_on_its_stdin(tmp_path):
    call(OnFailure(command=f"cat > {tmp_path}/got"), FIRING)
    assert json.loads((tmp_path / "got").read_text()) == payload(FIRING)


def test_a_command_that_fails_is_told_with_its_last_words():
    with pytest.raises(HookError, match="the command ended with 3: oh no"):
        call(OnFailure(command="echo oh no >&2; exit 3"), FIRING)


def test_a_command_that_does_not_end_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(hooks, "TIMEOUT_S", 0.3)
    with pytest.raises(HookError, match="did not end"):
        call(OnFailure(command=f"echo $$ > {tmp_path}/pid; exec sleep 60"), FIRING)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
