"""Token, TLS and proxy: what is sent over them, in requests and in the log's stream, and what is said of each fault."""

import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from aiohttp import web

from rayferry.submit import access
from rayferry.submit.client import Cluster, ClusterError, UnreachableError
from rayferry.submit.config import Address
from rayferry.submit.local.ports import free_ports

SECRET = "hidden-value"
SENT = {"headers": {"X-Key": SECRET}, "cookies": {"session": "c-1"}}


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in access.CA_VARIABLES:
            monkeypatch.delenv(name)


@dataclass
class Server:
    """A dashboard that speaks TLS, and keeps what came with each request."""

    port: int
    ca: str
    seen: list = field(default_factory=list)

    @property
    def url(self):
        return f"https://127.0.0.1:{self.port}"

    def address(self, url=None, **options):
        return Address(url or self.url, "", **({"verify": self.ca} | SENT | options))


@pytest.fixture
def serve_tls(certificate):
    """Starts such servers; they end with the test."""
    ends = []

    def serve(alternative="IP:127.0.0.1,DNS:head.test"):
        ca, key = certificate("".join(filter(str.isalnum, alternative)), alternative)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(ca, key)
        server, loop, started = Server(free_ports(1)[0], str(ca)), asyncio.new_event_loop(), threading.Event()

        def keep(request):
            names = ("Authorization", "X-Key", "Cookie")
            server.seen.append({name: request.headers.get(name) for name in names} | {"path": request.path})

        async def version(request):
            keep(request)
            return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "c", "session_name": "s"})

        async def tail(request):
            keep(request)
            log = web.WebSocketResponse()
            await log.prepare(request)
            for text in ("first\n", "x" * (5 << 20)):
                await log.send_str(text)
            await log.close()
            return log

        async def run():
            app = web.Application()
            app.add_routes([web.get("/api/version", version), web.get("/api/jobs/{name}/logs/tail", tail)])
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", server.port, ssl_context=context).start()
            started.set()
            await stop.wait()
            await runner.cleanup()

        stop = asyncio.Event()
        thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
        thread.start()
        assert started.wait(10)
        ends.append(lambda: (loop.call_soon_threadsafe(stop.set), thread.join(5)))
        return server

    yield serve
    for end in ends:
        end()


@pytest.fixture
def secure(serve_tls):
    return serve_tls()


def stream(cluster):
    """The log, piece by piece."""

    async def read():
        return [piece async for piece in cluster.tail("job-1")]

    return asyncio.run(read())


def test_a_certificate_that_is_not_trusted_is_told_with_how_to_trust_it(secure):
    with pytest.raises(ClusterError, match=r"not trusted here .*: --verify /path/to/ca.pem") as caught:
        Cluster(secure.url)
    assert not isinstance(caught.value, UnreachableError)


def test_an_authority_that_did_not_sign_it_is_told_by_its_path(secure, certificate):
    other = str(certificate("other", "DNS:other.test")[0])
    with pytest.raises(ClusterError, match=f"not trusted with {other}"):
        Cluster(secure.address(verify=other))


def test_a_certificate_for_another_host_is_told_so(serve_tls):
    server = serve_tls("DNS:elsewhere.test")
    with pytest.raises(ClusterError, match="its certificate is for another host"):
        Cluster(server.address())


@pytest.mark.parametrize("verify", ["its own", False])
def test_an_authority_that_is_given_or_none_at_all_lets_in(secure, verify):
    assert Cluster(secure.address(verify=secure.ca if verify else False)).version()


@pytest.mark.parametrize("name", access.CA_VARIABLES)
def test_requests_own_variables_hold_for_the_stream_too(secure, monkeypatch, name):
    monkeypatch.setenv(name, secure.ca)
    assert stream(Cluster(secure.address(verify=True)))[0] == "first\n"


@pytest.mark.parametrize("verify", ["its own", False])
def test_the_stream_comes_over_tls(secure, verify):
    cluster = Cluster(secure.address(verify=secure.ca if verify else False))
    assert stream(cluster)[0] == "first\n"


def test_the_stream_does_not_trust_what_requests_do_not_trust(secure):
    cluster = Cluster(secure.address(verify=False))
    cluster._transport.sdk._ssl_context = None
    with pytest.raises(OSError, match="certificate verify failed"):
        stream(cluster)


def test_the_stream_takes_a_piece_of_more_than_four_mebibytes(secure):
    assert len(stream(Cluster(secure.address()))[1]) == 5 << 20


def test_headers_and_cookies_go_with_every_request_and_with_the_stream(secure):
    stream(Cluster(secure.address()))
    sent = {(one["X-Key"], one["Cookie"]) for one in secure.seen}
    assert (sent, secure.seen[-1]["path"]) == ({(SECRET, "session=c-1")}, "/api/jobs/job-1/logs/tail")


def test_the_token_goes_with_every_request_and_with_the_stream(secure):
    """In a process of its own, as Ray reads the mode when it is imported."""
    program = (
        "import asyncio, sys; from rayferry.submit.client import Cluster; from rayferry.submit.config import Address\n"
        "cluster = Cluster(Address(sys.argv[1], '', verify=sys.argv[2]))\n"
        "async def read(): return [one async for one in cluster.tail('j')]\n"
        "asyncio.run(read())"
    )
    variables = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t-1"}
    subprocess.run([sys.executable, "-c", program, secure.url, secure.ca], env=variables, check=True)
    assert {one["Authorization"] for one in secure.seen} == {"Bearer t-1"}


def test_http_where_https_is_spoken_says_so(secure):
    with pytest.raises(ClusterError, match=f"speaks https, not http; give the address as {secure.url}"):
        Cluster(secure.url.replace("https", "http"))


def test_https_where_http_is_spoken_says_so(ray_api):
    with pytest.raises(ClusterError, match=f"speaks http, not https; give the address as {ray_api.url}"):
        Cluster(ray_api.url.replace("http", "https"))


def test_an_address_does_not_show_its_secrets():
    assert SECRET not in repr(Address("http://head:8265", "", headers={"X-Key": SECRET}, cookies={"a": SECRET}))


class _Proxy(BaseHTTPRequestHandler):
    """Refuses with the server's code, or tunnels to its port, whatever the host is called."""

    def do_CONNECT(self):
        self.server.asked.append(self.path)
        if self.server.code != 200:
            return self.send_error(self.server.code)
        with socket.create_connection(("127.0.0.1", self.server.to_port)) as far:
            self.send_response_only(200)
            self.end_headers()
            back = threading.Thread(target=self.pour, args=(far, self.connection), daemon=True)
            back.start()
            self.pour(self.connection, far)
            back.join(5)
        return None

    def do_GET(self):
        self.send_error(self.server.code)

    @staticmethod
    def pour(source, target):
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(1)
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy():
    """Starts a proxy that answers so."""
    made = []

    def start(code, to_port=0):
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
        server.daemon_threads, server.code, server.to_port, server.asked = True, code, to_port, []
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        made.append(server)
        return server

    yield start
    for server in made:
        server.shutdown()
        server.socket.close()


def test_requests_and_stream_go_through_the_proxy(secure, proxy, monkeypatch):
    server = proxy(200, secure.port)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.server_port}")
    assert stream(Cluster(secure.address("https://head.test:8265")))[0] == "first\n"
    assert set(server.asked) == {"head.test:8265"}


@pytest.mark.parametrize(("host", "expected"), [("head.test", None), ("other.test", "http://proxy:3128")])
def test_no_proxy_leads_past_it(monkeypatch, host, expected):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "head.test")
    assert access.proxy_of(f"https://{host}:8265") == expected


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost:1", "https://[::1]:1"])
def test_no_proxy_lies_between_this_machine_and_itself(monkeypatch, url):
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    assert access.proxy_of(url) is None


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_asks_for_a_password_is_named_with_how_to_go_past_it(proxy, monkeypatch, scheme):
    monkeypatch.setenv(f"{scheme}_proxy", f"http://me:{SECRET}@127.0.0.1:{proxy(407).server_port}")
    with pytest.raises(ClusterError, match=rf"\({scheme}_proxy\) asks for a name .*NO_PROXY=head.test") as caught:
        Cluster(f"{scheme}://head.test:8265")
    assert SECRET not in str(caught.value)


def test_a_proxy_that_gives_no_way_is_named(proxy, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy(403).server_port}")
    with pytest.raises(ClusterError, match=r"\(HTTPS_PROXY\) gives no way to https://head.test .403 Forbidden."):
        Cluster("https://head.test")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_does_not_answer_is_named(monkeypatch, scheme):
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(UnreachableError, match=r"\(ALL_PROXY\) on the way to .* does not answer; .*NO_PROXY=head.test"):
        Cluster(f"{scheme}://head.test")


@pytest.mark.parametrize(
    ("variables", "is_on", "source"),
    [
        ({}, False, ""),
        ({"RAY_AUTH_TOKEN": "t"}, False, "RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t", "RAY_AUTH_TOKEN_PATH": "/none"}, True, "RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "TOKEN", "RAY_AUTH_TOKEN_PATH": "{file}"}, True, "{file} (RAY_AUTH_TOKEN_PATH)"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}, False, "RAY_AUTH_TOKEN"),
    ],
)
def test_the_token_is_found_where_ray_looks_for_it(tmp_path, monkeypatch, variables, is_on, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text("t\n")
    environ = {name: value.format(file=tmp_path / "token") for name, value in variables.items()}
    assert access.token(environ) == access.Token(is_on, source.format(file=tmp_path / "token"))


def test_the_token_of_the_default_path_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    assert access.token({"RAY_AUTH_MODE": "token"}) == access.Token(True, "~/.ray/auth_token")


@pytest.mark.parametrize(
    ("content", "path", "said"),
    [
        (None, "", "there is no token here; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or write it to"),
        (None, "{file}", r"{file} \(RAY_AUTH_TOKEN_PATH\) is not there; .*rayferry local up"),
        (None, "~/t", "~/t .* is not there; write the whole path"),
        (" \n", "{file}", "{file} .* is empty; write the cluster's token to it"),
        (
            "\0\1",
            "{file}",
            "{file} .* holds more than a token's text .a binary file.*; write the cluster's token to it",
        ),
        ("a\nb", "{file}", "{file} .* holds more than a token's text"),
        ("ä", "{file}", "{file} .* holds more than a token's text"),
    ],
)
def test_a_mode_without_a_token_says_what_is_missing(tmp_path, monkeypatch, content, path, said):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    environ = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": path.format(file=file)}
    assert re.search(said.format(file=file), access.refused_token(environ, is_missing=True))


@pytest.mark.parametrize(
    ("variables", "is_missing", "said"),
    [
        ({}, True, "asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"),
        ({"RAY_AUTH_TOKEN": SECRET}, True, "(RAY_AUTH_TOKEN) is not sent; set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": SECRET}, True, "the one from RAY_AUTH_TOKEN did not arrive"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": SECRET}, False, "does not accept the token from RAY_AUTH_TOKEN"),
        ({}, False, "does not accept the token in --headers, --cookies"),
    ],
)
def test_a_refusal_is_told_as_the_step_that_is_missing(tmp_path, monkeypatch, variables, is_missing, said):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = access.refused_token(variables, is_missing=is_missing)
    assert (said in text, SECRET in text) == (True, False)


@pytest.mark.parametrize("environ", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": SECRET}])
def test_a_refused_token_of_the_headers_is_not_blamed_on_another(environ):
    text = access.refused_token(environ, is_missing=False, headers=["X-Key", "authorization"])
    assert text.startswith("does not accept the token in the header authorization (--headers or RAY_JOB_HEADERS)")


def test_the_clients_own_words_on_a_token_of_the_headers(serve_ray):
    api = serve_ray(token="theirs")
    with pytest.raises(ClusterError, match="the token in the header Authorization"):
        Cluster(Address(api.url, "", headers={"Authorization": "Bearer other"}))


@pytest.mark.parametrize("source", ["RAY_AUTH_TOKEN_PATH", "Ray's default"])
def test_the_real_client_names_a_tokens_file_that_is_binary(ray_api, tmp_path, source):
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_bytes(b"\0\xff\x80abc")
    path = str(file) if source == "RAY_AUTH_TOKEN_PATH" else ""
    variables = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": path, "HOME": str(tmp_path)}
    program = "import sys; from rayferry.submit.client import Cluster; Cluster(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, ray_api.url], env=variables, capture_output=True, text=True, check=False
    )
    assert f"the token's file {file} ({source}) holds more than a token's text" in done.stderr


def test_the_real_client_says_the_same_of_a_mode_without_a_token(ray_api, tmp_path):
    variables = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "", "HOME": str(tmp_path)}
    program = "import sys; from rayferry.submit.client import Cluster; Cluster(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, ray_api.url], env=variables, capture_output=True, text=True, check=False
    )
    assert "RAY_AUTH_MODE is token, but there is no token here" in done.stderr


def test_what_has_to_do_with_neither_tls_nor_a_proxy_is_no_trouble_of_theirs():
    assert access.trouble("https://head.test", ConnectionError("refused")) is None


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("https://head:443/ray/api/version", "sends on to another address; give that one: https://head:443/ray"),
        ("/ray/api/version", "sends on to another address; give that one: http://head/ray"),
        (f"https://me:{SECRET}@login.test/in?state={SECRET}", "sends on to https://login.test/in; if that is a login"),
    ],
)
def test_an_address_that_sends_on_is_told_with_the_other(location, said):
    text = access.redirected("http://head", "/api/version", location)
    assert (said in text, SECRET in text) == (True, False)
