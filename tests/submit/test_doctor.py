"""What `rayferry doctor` sees, what it says is wrong, and that it shows no secret."""

import importlib.metadata
import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from rayferry.job.errors import RayferryError
from rayferry.submit import doctor
from rayferry.submit.cli import main
from rayferry.submit.config import Address, resolve_address
from rayferry.submit.doctor import Finding, examine, page
from rayferry.submit.local import stack as local_stack
from rayferry.submit.local.ports import free_ports

SECRET = "hidden-value-0123456789"
KEY_ID = "AKIAABCDEFGHIJKLMNOP"


@pytest.fixture(autouse=True)
def _own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAYFERRY_CACHE", str(tmp_path / "cache"))
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def seen():
    """Findings of one section, as (outcome, text, fix)."""

    def ask(section, url=None, **options):
        def choose():
            if url:
                return Address(url, "--address", **options)
            return resolve_address(None, None, os.environ)

        checks = [check for check in doctor._checks(choose) if check[0] == section]
        return [(one.outcome, one.text, one.fix) for one in doctor._at_once(checks, 20)]

    return ask


@pytest.fixture
def serve_s3():
    """Starts an S3 server that answers everything so."""
    servers = []

    def serve(status, code=""):
        body = (
            f"<Error><Code>{code}</Code></Error>"
            if code
            else "<ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>"
        )

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def account(other_account):
    """An account by the environment."""

    def use(endpoint, **more):
        other_account(AWS_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID=KEY_ID, AWS_SECRET_ACCESS_KEY=SECRET, **more)

    return use


def outcomes(found):
    return [outcome for outcome, _, _ in found]


def test_versions_are_told_with_the_floor_of_ray(seen):
    texts = [text for _, text, _ in seen("versions")]
    assert f"ray {importlib.metadata.version('ray')} (2.49 or newer is needed)" in texts


def test_an_own_ray_that_is_too_old_is_a_problem_with_the_command_to_run(seen, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.40.0" if name == "ray" else real(name))
    found = ("problem", "ray 2.40.0 is too old: 2.49 or newer is needed", "pip install -U 'ray[data,default]>=2.49'")
    assert found in seen("versions")


def test_no_cluster_is_a_hint_and_no_problem(seen):
    assert outcomes(seen("address")) == ["hint"]


def test_no_cluster_is_asked_where_none_is_named(seen):
    assert seen("cluster") == []


def test_an_address_that_is_none_is_a_problem(seen, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert outcomes(seen("address")) == ["problem"]


def test_the_addresss_source_is_told(seen, ray_api, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", ray_api.url)
    assert seen("address") == [("ok", f"{ray_api.url} (from RAY_ADDRESS)", "")]


def test_two_variables_that_differ_are_told(seen, ray_api, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_api.url)
    monkeypatch.setenv("RAY_ADDRESS", f"http://me:{SECRET}@other:8265")
    hint = "RAY_API_SERVER_ADDRESS wins over RAY_ADDRESS=http://other:8265"
    assert seen("address")[1][:2] == ("hint", hint)


def test_a_flag_that_differs_from_a_variable_is_told(seen, ray_api):
    assert seen("address", ray_api.url, note="--address wins over RAY_ADDRESS=x")[1][:2] == (
        "hint",
        "--address wins over RAY_ADDRESS=x",
    )


def test_a_proxy_is_told_without_its_password(seen, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://me:{SECRET}@127.0.0.1:{free_ports(1)[0]}")
    text = seen("address", "http://head.test:8265")[1][1]
    assert ("goes through the proxy http://127.0.0.1" in text, SECRET in text) == (True, False)


def test_a_cluster_that_answers_tells_version_session_and_nodes(seen, ray_api):
    assert seen("cluster", ray_api.url) == [
        ("ok", "answers: Ray 2.60.0, Python 3.12.3, session s", ""),
        ("ok", "1 node, 8 CPUs, 0 GPUs", ""),
    ]


def test_a_cluster_that_does_not_answer_is_a_problem(seen):
    assert outcomes(seen("cluster", f"http://127.0.0.1:{free_ports(1)[0]}")) == ["problem"]


def test_a_cluster_of_another_ray_is_a_problem_and_its_nodes_are_told(seen, serve_ray):
    api = serve_ray(ray_version="3.0.0")
    found = seen("cluster", api.url)
    assert (outcomes(found), "install ray==3.0.0 here" in found[1][2]) == (["ok", "problem", "ok"], True)


def test_nodes_that_cannot_be_told_are_a_problem_after_what_was_seen(seen, ray_api):
    ray_api.faults[("GET", "/api/v0/nodes")] = [(500, "GCS is not there")] * 3
    assert outcomes(seen("cluster", ray_api.url)) == ["ok", "problem"]


def test_a_token_that_is_not_accepted_is_a_problem_with_the_next_step(seen, serve_ray):
    outcome, text, fix = seen("cluster", serve_ray(token="theirs").url)[0]
    assert (outcome, "does not accept the token" in text, "get the cluster's own" in fix) == ("problem", True, True)


@pytest.mark.parametrize(
    ("variables", "outcome", "said"),
    [
        ({"RAY_AUTH_MODE": ""}, "ok", "no token is sent (RAY_AUTH_MODE is not set)"),
        ({"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": SECRET}, "hint", "there is a token (RAY_AUTH_TOKEN), but it is not"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": SECRET}, "ok", "RAY_AUTH_MODE=token, the token from RAY_AUTH_"),
        ({"RAY_AUTH_MODE": "token"}, "problem", "RAY_AUTH_MODE is token, but there is no token here"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/none"}, "problem", "/none (RAY_AUTH_TOKEN_PATH) is not"),
        ({"RAY_AUTH_MODE": "tokn"}, "problem", "RAY_AUTH_MODE=tokn is none of Ray's modes"),
    ],
)
def test_where_the_token_comes_from_is_told_and_never_the_token(seen, monkeypatch, variables, outcome, said):
    for name, value in ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""} | variables).items():
        monkeypatch.setenv(name, value)
    found = seen("auth")[0]
    assert (found[0], said in found[1], SECRET in str(found)) == (outcome, True, False)


def test_headers_are_told_by_name_only(seen, ray_api):
    found = seen("auth", ray_api.url, headers={"X-Key": SECRET})
    assert ("ok", "headers sent: X-Key (values not shown)", "") in found


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("http://head.invalid", {}, "http to another machine"),
        ("https://head.invalid", {"verify": False}, "the server's certificate is not checked"),
    ],
)
def test_what_shows_a_token_to_others_is_a_hint(seen, monkeypatch, url, options, said):
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    found = seen("auth", url, **options)[1]
    assert (found[0], found[1].startswith(said)) == ("hint", True)


def test_no_credentials_are_a_hint(seen):
    assert outcomes(seen("S3")) == ["ok", "hint"]


def test_an_identity_that_holds_is_told_with_its_source_and_no_secret(seen, serve_s3, account):
    endpoint = serve_s3(200)
    account(endpoint, AWS_REGION="eu-west-3")
    assert seen("S3") == [
        ("ok", f"endpoint {endpoint}, region eu-west-3", ""),
        ("ok", "credentials by env, access key AKIA...MNOP", ""),
        ("ok", "the endpoint answers, and knows these credentials", ""),
    ]


def test_a_profile_is_told(seen, serve_s3, other_account, monkeypatch, tmp_path):
    (tmp_path / "credentials").write_text(f"[lab]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    other_account(AWS_ENDPOINT_URL=serve_s3(200), AWS_PROFILE="lab")
    assert seen("S3")[1][1] == "credentials by shared-credentials-file, profile lab, access key AKIA...MNOP"


def test_who_may_not_list_buckets_has_no_problem(seen, serve_s3, account):
    account(serve_s3(403, "AccessDenied"))
    assert outcomes(seen("S3")) == ["ok", "ok", "ok"]


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"])
def test_credentials_that_do_not_hold_are_a_problem(seen, serve_s3, account, code):
    account(serve_s3(403, code))
    found = seen("S3")[-1]
    assert (found[0], code in found[1], found[2]) == ("problem", True, "renew them, or fix them")


def test_an_endpoint_that_does_not_answer_is_a_problem(seen, account):
    account(f"http://127.0.0.1:{free_ports(1)[0]}")
    assert seen("S3")[-1][0::2] == ("problem", "check AWS_ENDPOINT_URL and the network")


def test_a_profile_that_does_not_exist_is_a_problem(seen, other_account):
    other_account(AWS_PROFILE="nobody")
    assert outcomes(seen("S3")) == ["problem"]


@pytest.mark.parametrize(("key", "shown"), [(KEY_ID, "AKIA...MNOP"), ("minioadmin", "mi..."), ("ab", "ab...")])
def test_an_access_key_is_shortened(key, shown):
    assert doctor._shortened(key) == shown


def test_a_local_stack_that_is_down_is_no_problem(seen):
    assert seen("local stack") == [("ok", "down", "")]


def test_a_local_stack_that_is_broken_is_a_problem(seen, monkeypatch):
    monkeypatch.setattr(local_stack, "count", lambda: 2)
    assert seen("local stack") == [
        (
            "problem",
            "broken: 2 of its processes are left, but do not answer",
            "rayferry local down, then: rayferry local up",
        )
    ]


def test_folders_that_can_be_made_are_told(seen, tmp_path):
    assert seen("folders") == [
        ("ok", f"state: {tmp_path / 'state'} (not made yet)", ""),
        ("ok", f"cache: {tmp_path / 'cache'} (not made yet)", ""),
    ]


def test_a_folder_that_is_a_file_is_a_problem(seen, tmp_path):
    (tmp_path / "state").write_text("")
    found = seen("folders")
    assert (outcomes(found), "set RAYFERRY_STATE to a folder" in found[0][2]) == (["problem", "ok"], True)


def test_nothing_waits_for_what_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        found = [one for one in examine(lambda: Address(url, "--address"), limit_s=1.5) if one.section == "cluster"]
    assert (found[0].text, time.monotonic() - start < 5) == ("no answer within 1.5 s", True)


def test_what_breaks_here_is_a_problem_and_the_rest_is_told():
    def broken():
        yield "ok", "before", ""
        raise ImportError("no module named x")

    def failing():
        raise RayferryError("it is wrong")
        yield

    found = doctor._at_once([("a", broken, "A"), ("b", failing, "B"), ("c", lambda: iter([("ok", "c", "")]), "C")], 5)
    assert [(one.section, one.outcome, one.fix) for one in found] == [
        ("a", "ok", ""),
        ("a", "problem", "install Rayferry again, or report this"),
        ("b", "problem", "B"),
        ("c", "ok", ""),
    ]


def test_the_page_has_each_section_once_and_a_fix_on_a_line_of_its_own():
    findings = [
        Finding("a", "ok", "one\ntwo \x1b[1m"),
        Finding("a", "problem", "three", "four"),
        Finding("b", "ok", "five"),
    ]
    assert list(page(findings)) == [
        "a",
        "  ok       one two \N{REPLACEMENT CHARACTER}[1m",
        "  problem  three",
        "           fix: four",
        "b",
        "  ok       five",
    ]


def run(*arguments):
    return CliRunner().invoke(main, ["doctor", *arguments])


@pytest.fixture
def token_here(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)


@pytest.mark.usefixtures("token_here")
def test_the_command_ends_with_0_where_nothing_is_wrong(ray_api):
    assert run("--address", ray_api.url).exit_code == 0


@pytest.mark.usefixtures("token_here")
def test_the_command_ends_with_0_without_a_cluster():
    assert run().exit_code == 0


@pytest.mark.usefixtures("token_here")
def test_the_command_ends_with_1_where_something_is_wrong():
    result = run("--address", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert (result.exit_code, result.stderr) == (1, "1 problem\n")


def test_the_command_shows_no_secret(serve_ray, serve_s3, account, monkeypatch):
    account(serve_s3(200), AWS_SESSION_TOKEN=SECRET)
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    arguments = ["--address", serve_ray().url, "--headers", json.dumps({"X-Key": SECRET})]
    output = run(*arguments).output + run(*arguments, "--json").output
    assert (SECRET in output, KEY_ID in output) == (False, False)


@pytest.mark.usefixtures("token_here")
def test_the_command_gives_json(ray_api):
    value = json.loads(run("--address", ray_api.url, "--json").stdout)
    assert (value["ok"], set(value["findings"][0])) == (True, {"section", "outcome", "text", "fix"})


def test_nothing_is_wrong_with_the_real_stack(stack):
    result = run()
    assert (result.exit_code, f"up: Ray at {stack.address}" in result.stdout) == (0, True)
