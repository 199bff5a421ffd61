"""The real command and a real head that asks for a token, with a proxy before it that ends TLS."""

import asyncio
import json
import os
import ssl
import subprocess
import sysconfig
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rayferry.job.spec import parse
from rayferry.submit import access
from rayferry.submit.client import Cluster
from rayferry.submit.local.ports import free_ports
from rayferry.submit.request import build_request, new_submission_id

COMMAND = str(Path(sysconfig.get_path("scripts")) / "rayferry")
WRONG = "wrong-token-value"
URIS = {"input": {"uri": "s3://rayferry/none"}, "output": {"uri": "s3://rayferry/none-tls"}}
PROGRAM = """
import pathlib, sys, time
print("first", flush=True)
while not pathlib.Path({path!r}).exists():
    time.sleep(0.1)
print("last", flush=True)
sys.exit(3)
"""


@dataclass
class Front:
    """A proxy that ends TLS before a head.

    Attributes:
        url: where it listens.
        ca: path of the certificate to trust.
        seen: the beginning of all that it passed on, either way.
    """

    url: str
    ca: str
    seen: list[bytes] = field(default_factory=list)

    async def serve(self, head, context, stop, ready):
        async def passed(source, target):
            with suppress(OSError):
                while chunk := await source.read(1 << 16):
                    self.seen.append(chunk[:500])
                    target.write(chunk)
                    await target.drain()
            target.close()

        async def connected(reader, writer):
            to_reader, to_writer = await asyncio.open_connection(head.hostname, head.port)
            await asyncio.gather(passed(reader, to_writer), passed(to_reader, writer))

        place = urlsplit(self.url)
        async with await asyncio.start_server(connected, place.hostname, place.port, ssl=context):
            ready.set()
            await stop.wait()


@pytest.fixture(scope="module")
def front(stack, certificate):
    ca, key = certificate("head", "IP:127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ca, key)
    made, loop = Front(f"https://127.0.0.1:{free_ports(1)[0]}", str(ca)), asyncio.new_event_loop()
    stop, ready = asyncio.Event(), threading.Event()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(made.serve(urlsplit(stack.address), context, stop, ready)), daemon=True
    )
    thread.start()
    assert ready.wait(10)
    yield made
    loop.call_soon_threadsafe(stop.set)
    thread.join(5)


@pytest.fixture(autouse=True)
def _no_certificates_of_the_developers(monkeypatch):
    for name in access.CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def job_file(tmp_path):
    """A job that ends at once, as it finds no input."""
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"name": "tls", "model": "m"} | URIS))
    return path


def command(job_file, words, front):
    skipped = [word for check in ("input", "rows", "model") for word in ("--skip", check)]
    rest = [str(job_file), *skipped] if words == "submit" else ["tls-1"]
    return [COMMAND, *words.split(), *rest, "--address", front.url]


def test_a_job_goes_there_and_its_log_comes_back(front, job_file):
    words = [*command(job_file, "submit", front), "--verify", front.ca]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: s3://rayferry/none: no input there" in done.stderr  # the job's own words: the check was left out


def test_the_log_comes_over_the_websocket_while_the_job_runs(front, stack, tmp_path):
    go = tmp_path / "go"
    request = build_request(parse({"model": "m"} | URIS, "here"), front.url, new_submission_id("tls"))
    program = PROGRAM.format(path=str(go)).replace("'", '"')
    Cluster(stack.address).submit(replace(request, entrypoint=f"python -c '{program}'"))
    words = ["logs", "-f", "--raw", request.submission_id, "--address", front.url, "--verify", front.ca]
    process = subprocess.Popen([COMMAND, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    shown = []
    for line in process.stderr:
        shown.append(line.strip())
        if line == "first\n":
            break
    tail = f"GET /api/jobs/{request.submission_id}/logs/tail ".encode()
    assert any(chunk.startswith(tail) for chunk in front.seen)
    assert any(chunk.startswith(b"HTTP/1.1 101 ") for chunk in front.seen)
    go.touch()
    shown += process.communicate(timeout=200)[1].splitlines()
    assert process.returncode == 3
    assert [shown.count(line) for line in ("first", "last")] == [1, 1]


@pytest.mark.parametrize("words", ["submit", "logs -f"])
@pytest.mark.parametrize(
    ("variables", "verify", "said"),
    [
        ({"RAY_AUTH_TOKEN": WRONG}, "{ca}", "does not accept the token from RAY_AUTH_TOKEN; get the cluster's own"),
        ({"RAY_AUTH_MODE": None}, "{ca}", "is not sent; set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN_PATH": None}, "{ca}", "asks for a token; set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN_PATH": None}, "{ca}", "RAY_AUTH_MODE is token, but there is no token here"),
        ({}, "true", "its certificate is not trusted here"),
    ],
    ids=["wrong token", "token not sent", "no token", "mode alone", "unknown certificate"],
)
def test_who_is_not_let_in_is_told_why_with_1(front, job_file, tmp_path, words, variables, verify, said):
    changed = os.environ | {"HOME": str(tmp_path)} | variables
    done = subprocess.run(
        [*command(job_file, words, front), "--verify", verify.format(ca=front.ca)],
        env={name: value for name, value in changed.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert WRONG not in done.stderr
