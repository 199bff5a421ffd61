"""The options about the cluster: what they take, what they hand on, and that they show no secret."""

import click
import pytest
from click.testing import CliRunner

from rayferry.submit.cli import main
from rayferry.submit.cli_shared import Flags, address_of, address_option

SECRET = "hidden-value"
TAKING = ["submit", "check", "status", "logs", "stop", "list", "result", "doctor"]


@pytest.fixture
def flags():
    """What a command gets for its arguments; what was printed if it gets nothing."""

    def parse(*arguments):
        got = []

        @click.command()
        @address_option
        def command(address):
            got.append(address)

        result = CliRunner().invoke(command, [str(argument) for argument in arguments])
        return got[0] if got else (result.exit_code, result.output)

    return parse


@pytest.mark.parametrize("name", TAKING)
def test_every_command_that_asks_a_cluster_has_the_options(name):
    options = {option for one in main.commands[name].params for option in one.opts}
    assert {"--address", "--cluster", "--verify", "--headers", "--cookies"} <= options


def test_a_command_without_options_gets_what_is_usual(flags):
    assert flags() == Flags(None, True, {}, {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("True", True), ("1", True), ("false", False), ("FALSE", False), ("0", False)],
)
def test_verify_takes_rays_spellings(flags, value, expected):
    assert flags("--verify", value).verify is expected


def test_verify_takes_the_folder_of_certificates(flags, tmp_path):
    assert flags("--verify", tmp_path).verify == str(tmp_path)


def test_verify_knows_the_home_folder(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert flags("--verify", "~/").verify == str(tmp_path)


def test_a_path_that_is_not_there_is_wrong_usage(flags):
    code, output = flags("--verify", "/no/such/ca.pem")
    assert (code, "say true or false, or give the path of certificates that is there" in output) == (2, True)


def test_a_file_without_certificates_is_wrong_usage(flags, tmp_path):
    (tmp_path / "ca.pem").write_text("hello")
    code, output = flags("--verify", tmp_path / "ca.pem")
    assert (code, "no certificates to read; give a file in PEM form" in output) == (2, True)


@pytest.mark.parametrize("option", ["--headers", "--cookies"])
def test_an_object_of_strings_is_handed_on(flags, option):
    assert getattr(flags(option, '{"X-Key": "v", "B": ""}'), option[2:]) == {"X-Key": "v", "B": ""}


@pytest.mark.parametrize("option", ["--headers", "--cookies"])
@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f'"{SECRET}"',
        f'["{SECRET}"]',
        f'{{"{SECRET}": 1}}',
        f'{{"{SECRET}": null}}',
        f'{{"a": "{SECRET}"',
        f'{{"a b": "{SECRET}"}}',
        f'{{"": "{SECRET}"}}',
        f'{{"a": "{SECRET}\\n"}}',
        f'{{"a": "{SECRET}\\r\\nB: c"}}',
        f'{{"a": "{SECRET}€"}}',
        f'{{"a": " {SECRET}"}}',
    ],
)
def test_anything_else_is_wrong_usage_and_is_not_shown(flags, option, value):
    code, output = flags(option, value)
    assert (code, option in output, SECRET in output) == (2, True, False)


def test_headers_come_from_rays_variable_too(flags, monkeypatch):
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"X-Key": "v"}')
    assert flags().headers == {"X-Key": "v"}


def test_the_flag_wins_over_rays_variable(flags, monkeypatch):
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"X-Key": "v"}')
    assert flags("--headers", '{"X-Other": "w"}').headers == {"X-Other": "w"}


def test_what_is_wrong_with_rays_variable_is_not_shown(flags, monkeypatch):
    monkeypatch.setenv("RAY_JOB_HEADERS", SECRET)
    code, output = flags()
    assert (code, "RAY_JOB_HEADERS" in output, SECRET in output) == (2, True, False)


def test_all_of_it_is_in_the_address():
    flags = Flags("http://head:8265", False, {"X-Key": "v"}, {"c": "d"})
    address = address_of(flags)
    assert (address.url, address.verify, address.headers, address.cookies) == (
        flags.url,
        flags.verify,
        flags.headers,
        flags.cookies,
    )


def test_flags_do_not_show_their_secrets():
    assert SECRET not in repr(Flags(headers={"X-Key": SECRET}, cookies={"a": SECRET}))


@pytest.mark.parametrize("command", [["status", "job-1"], ["list"]], ids=" ".join)
def test_headers_reach_the_cluster(serve_ray, command):
    api = serve_ray(token="theirs")
    arguments = [*command, "--address", api.url, "--headers", '{"Authorization": "Bearer theirs"}']
    CliRunner().invoke(main, arguments)
    assert any(path.startswith("/api/jobs/") for _, path in api.requests)


def test_a_conflict_about_the_address_is_said_by_every_command(ray_api, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://me:secret@other:8265")
    result = CliRunner().invoke(main, ["list", "--address", ray_api.url])
    assert result.stderr == "--address wins over RAY_ADDRESS=http://other:8265\n"


URL = "http://head:8265"


@pytest.mark.parametrize(
    ("given", "job_file", "expected"),
    [
        (Flags(), None, ""),
        (Flags(URL), None, f" --address {URL}"),
        (Flags(URL, False), URL, f" --address {URL} --verify false"),
        (Flags(verify="/my certs"), None, " --verify '/my certs'"),
        (Flags(), URL, f" --address {URL}"),
        (Flags(URL, True, {"X-Key": SECRET}, {"c": SECRET}), None, f" --address {URL}"),
    ],
)
def test_a_command_to_go_on_with_has_what_was_said_of_the_cluster_and_no_secret(monkeypatch, given, job_file, expected):
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:1")
    assert address_of(given, job_file).command("list") == f"rayferry list{expected}"


def test_a_command_to_go_on_with_has_the_clusters_file(tmp_path):
    assert Flags(cluster=tmp_path / "a b.yaml").command("list") == f"rayferry list --cluster '{tmp_path}/a b.yaml'"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "none"], "rayferry list --address {url}"),
        (["result", "job-1"], "rayferry logs -f job-1 --address {url}"),
        (["resume", "job-1"], "rayferry logs -f job-1 --address {url}"),
        (["logs", "-f", "job-1", "--timeout", "0.1s"], "rayferry logs -f job-1 --address {url}"),
        (["stop", "job-1", "--timeout", "0"], "rayferry status job-1 --address {url}"),
    ],
)
def test_messages_name_commands_that_find_the_cluster(ray_api, words, said):
    ray_api.statuses = ["RUNNING"]
    ray_api.faults[("POST", "/api/jobs/job-1/stop")] = [(200, {"stopped": True})]
    ray_api.jobs["job-1"] = {"sent": {"entrypoint": "", "metadata": {"rayferry_output_uri": "/o/"}, "runtime_env": {}}}
    result = CliRunner().invoke(main, [*words, "--address", ray_api.url])
    assert said.format(url=ray_api.url) in result.stderr


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "HOST", "Connection", "Sec-WebSocket-Key"])
def test_a_header_that_http_sets_itself_is_wrong_usage(flags, name):
    code, output = flags("--headers", f'{{"X-Key": "v", "{name}": "5"}}')
    assert (code, f"{name} (here or in RAY_JOB_HEADERS) is set by HTTP itself" in " ".join(output.split())) == (2, True)


def test_a_header_that_is_given_twice_is_wrong_usage_and_not_shown(flags):
    code, output = flags("--headers", '{"X-Key": "first", "x-key": "second"}')
    assert (code, "entry 2 (here or in RAY_JOB_HEADERS) has the name of one" in " ".join(output.split())) == (2, True)
    assert "second" not in output


@pytest.mark.parametrize(
    "words", [["status"], ["logs", "-f"], ["logs"], ["stop"], ["resume"], ["result"]], ids=" ".join
)
@pytest.mark.parametrize("text", ["", " ", ".", "..", "a\nb", "x" * 241])
def test_what_no_cluster_can_have_as_an_id_is_wrong_usage(words, text):
    result = CliRunner().invoke(main, [*words, text, "--address", "http://127.0.0.1:1"])
    assert (result.exit_code, "cannot be the id of a job; the command `list`" in result.stderr) == (2, True)


@pytest.mark.parametrize("uri", ["s3://bucket/out/", "/out", "file:///out"])
def test_stop_does_not_take_a_uri(uri):
    result = CliRunner().invoke(main, ["stop", uri, "--address", "http://127.0.0.1:1"])
    assert (result.exit_code, "is a URI, and this needs the job's id" in result.stderr) == (2, True)


@pytest.mark.parametrize("name", ["a b", "a?b=c", "100%", "a%2Fb", "a#b", "späße", "-a;b&c"])
@pytest.mark.parametrize("words", ["status", "logs", "logs -f", "stop"])
def test_an_id_of_any_signs_reaches_the_cluster_whole(ray_api, name, words):
    ray_api.jobs[name] = {"sent": {"entrypoint": "", "metadata": {}, "runtime_env": {}}}
    result = CliRunner().invoke(main, [*words.split(), "--address", ray_api.url, "--", name])
    assert (result.exit_code, result.stderr.count("error")) == (0, 0), result.stderr
