"""The local stack: its ports, its processes, and its life from `up` over a crash to `down`."""

import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import boto3
import psutil
import pytest

from rayferry.submit import s3
from rayferry.submit.client import Cluster
from rayferry.submit.local import processes
from rayferry.submit.local import stack as local_stack
from rayferry.submit.local.ports import free_ports

COMMAND = str(Path(sysconfig.get_path("scripts")) / "rayferry")


def test_free_ports_are_different():
    assert len(set(free_ports(50))) == 50


def test_free_ports_can_be_listened_on():
    for port in free_ports(5):
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_port_in_use_is_not_given():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert taken.getsockname()[1] not in free_ports(100)


@pytest.fixture
def folder(tmp_path):
    """A stack's folder; what still runs for it, or for its neighbours, is killed after the test."""
    place = tmp_path / "stack"
    place.mkdir()
    yield place
    for process in [*processes.marked(place), *processes.marked(tmp_path / "stack2")]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture
def start(folder, tmp_path):
    """Starts a shell line as a server and waits until it wrote to its pipe `$READY`."""

    def run(line, *, ready=True, place=folder):
        pipe = tmp_path / f"ready{len(list(tmp_path.iterdir()))}"
        os.mkfifo(pipe)
        environ = {"PATH": os.environ["PATH"], "READY": str(pipe)}
        server = processes.spawn(["/bin/sh", "-c", line], place, environ, tmp_path / "log")
        if ready:
            pipe.read_text()
        return server

    return run


SERVERS = {
    "alone": "echo > $READY; exec sleep 600",
    "with a child": "sleep 600 & echo > $READY; wait",
    "with a child that left its session": "setsid sh -c 'echo > $READY; exec sleep 600' & wait",
    "ignores SIGTERM": "trap '' TERM; echo > $READY; exec sleep 600",
    "ignores SIGTERM and so does its child": "trap '' TERM; sleep 600 & echo > $READY; sleep 600",
    "starts a helper when asked to end": "trap 'sleep 600 & exit' TERM; echo > $READY; while :; do sleep 0.05; done",
    "is stopped": "echo > $READY; kill -STOP $$",
    "died and left an orphan": "setsid sh -c 'echo > $READY; exec sleep 600' & exit",
}


@pytest.mark.parametrize("line", SERVERS.values(), ids=SERVERS)
def test_every_kind_of_server_is_found(start, folder, line):
    start(line)
    assert processes.marked(folder) != []


@pytest.mark.parametrize("line", SERVERS.values(), ids=SERVERS)
def test_every_kind_of_server_is_ended(start, folder, monkeypatch, line):
    monkeypatch.setattr(processes, "_GRACE_S", 0.3)
    start(line)
    processes.end_all(folder)
    assert processes.marked(folder) == []


def test_ending_tells_how_many_there_were(start, folder):
    start(SERVERS["alone"])
    start(SERVERS["alone"])
    assert (processes.end_all(folder), processes.end_all(folder)) == (2, 0)


def test_a_server_that_ends_when_asked_is_not_killed(start, folder, tmp_path):
    server = start("trap 'echo ended well; exit 7' TERM; echo > $READY; while :; do sleep 0.05; done")
    threading.Thread(target=server.wait).start()  # as a shell would, from which it came
    processes.end_all(folder)
    assert "ended well" in (tmp_path / "log").read_text()


def test_the_processes_of_a_folder_of_a_like_name_are_left_alone(start, folder, tmp_path):
    other = start(SERVERS["alone"], place=tmp_path / "stack2")
    start(SERVERS["alone"])
    processes.end_all(folder)
    assert other.poll() is None


def test_a_process_that_ended_is_not_found(start, folder):
    server = start("exit 0", ready=False)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)  # it is there still, as a zombie
    assert processes.marked(folder) == []
    server.wait()


def test_who_asks_does_not_find_itself(folder, tmp_path):
    program = "import sys; from pathlib import Path; from rayferry.submit.local import processes;"
    program += "print(processes.marked(Path(sys.argv[1])))"
    command = [sys.executable, "-c", program, str(folder)]
    processes.spawn(command, folder, os.environ, tmp_path / "log").wait()
    assert (tmp_path / "log").read_text() == "[]\n"


def test_a_server_leads_a_session_of_its_own(start):
    server = start(SERVERS["alone"])
    assert os.getsid(server.pid) == server.pid


def test_a_server_gets_the_environment_that_it_is_given_and_its_mark(start, folder, tmp_path):
    start("env; exit", ready=False).wait()
    names = {line.partition("=")[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH", "READY", processes.MARK, "SPT_NOENV"}


def test_a_log_is_gone_on_with(start, tmp_path):
    for _ in range(2):
        start("echo out; echo err >&2; exit", ready=False).wait()
    assert (tmp_path / "log").read_text() == "out\nerr\nout\nerr\n"


@pytest.fixture
def state(monkeypatch, tmp_path):
    """A stack's folder that says what a test lets it say."""
    monkeypatch.setenv("RAYFERRY_STATE", str(tmp_path / "own"))
    local_stack.folder().mkdir(parents=True)
    return local_stack.folder() / "stack.json"


def test_without_a_record_there_is_no_stack(state):
    assert local_stack.find() is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"address": "x"}', '{"address": 1, "more": 2}'])
def test_a_record_that_cannot_be_read_is_no_stack(state, content):
    state.write_text(content)
    assert local_stack.find() is None


@pytest.fixture
def recorded(state):
    """Records a stack whose parts are at these addresses."""

    def write(address, endpoint):
        found = local_stack.Stack(address, "127.0.0.1:1", endpoint, "key", "secret", "/model", "/token")
        state.write_text(json.dumps(asdict(found)))

    return write


def test_a_record_of_servers_that_are_gone_is_no_stack(recorded):
    ray, weed = free_ports(2)
    recorded(f"http://127.0.0.1:{ray}", f"http://127.0.0.1:{weed}")
    assert local_stack.find() is None


def test_a_record_whose_ports_others_have_taken_since_is_no_stack(recorded, serve_ray):
    recorded(serve_ray(faults={("GET", "/"): [(404, "")] * 9}).url, serve_ray().url)
    assert local_stack.find() is None


def test_a_stack_that_is_up_is_given_again(stack):
    assert local_stack.up(pytest.fail) == local_stack.find() == stack


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("RAY_API_SERVER_ADDRESS", lambda stack: stack.address),
        ("AWS_ENDPOINT_URL", lambda stack: stack.endpoint),
        ("AWS_ACCESS_KEY_ID", lambda stack: stack.access_key),
        ("AWS_SECRET_ACCESS_KEY", lambda stack: stack.secret_key),
        ("AWS_REGION", lambda _: "us-east-1"),
        ("RAYFERRY_BUCKET", lambda _: "s3://rayferry"),
        ("RAYFERRY_DEMO_MODEL", lambda stack: stack.model),
    ],
)
def test_the_environment_names_all_that_a_shell_needs(stack, name, of):
    assert stack.environ()[name] == of(stack)


def test_nothing_of_the_stack_listens_beyond_loopback(stack):
    mine = {process.pid for process in processes.marked(local_stack.folder())}
    hosts = {
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in psutil.net_connections("inet")
        if connection.pid in mine and connection.status == psutil.CONN_LISTEN
    }
    assert hosts <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9"),
        ("AWS_SESSION_TOKEN", "of-another-account"),
        ("AWS_PROFILE", "nobody"),
        ("HTTP_PROXY", "http://127.0.0.1:9"),
        ("http_proxy", "http://127.0.0.1:9"),
    ],
)
def test_a_shell_with_other_settings_reaches_the_local_s3_after_eval(stack, name, value):
    program = "from rayferry.submit import s3; s3.write_bytes('s3://rayferry/eval', b'x')"
    line = f'eval "$({shlex.quote(COMMAND)} local env)" && {shlex.quote(sys.executable)} -c "{program}"'
    environ = {key: text for key, text in os.environ.items() if not key.startswith("AWS_ACCESS")} | {name: value}
    done = subprocess.run(["/bin/sh", "-c", line], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_with_a_comma_is_one_folder_to_the_s3_server(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYFERRY_STATE", str(tmp_path / "a,b"))
    command = local_stack._weed_command(list(range(10)), tmp_path)
    (folder,) = [word for word in command if word.startswith("-dir=")]
    assert "," not in folder  # it reads a list there


@pytest.fixture(scope="module")
def life(stack, tmp_path_factory):
    """A second stack, beside the session's, from its first `up` over a crash to `down`: what was seen on the way."""
    seen = types.SimpleNamespace(said=[])
    place = tmp_path_factory.mktemp("life") / ("a long name with spaces and ü " + "x" * 80)
    patch = pytest.MonkeyPatch()
    umask = os.umask(0)
    try:
        patch.setenv("RAYFERRY_STATE", str(place))
        patch.setattr(processes, "_GRACE_S", 1.0)
        seen.folder = local_stack.folder()
        seen.folder.mkdir(mode=0o700, parents=True)
        (seen.folder / "auth_token").write_bytes(Path(stack.token_path).read_bytes())  # Ray keeps one for a process
        with ThreadPoolExecutor(2) as pool:
            seen.first, seen.twin = pool.map(local_stack.up, [seen.said.append] * 2)
        seen.num_nodes = len(Cluster(seen.first.address).nodes()[0])
        seen.modes = {name: stat.S_IMODE((seen.folder / name).stat().st_mode) for name in (".", "stack.json", "run/")}
        seen.num_first = local_stack.count()
        _use(patch, seen.first)
        s3.write_bytes("s3://rayferry/kept", b"kept")
        weeds = [process for process in processes.marked(seen.folder) if process.name() == "weed"]
        for weed in weeds:
            weed.send_signal(signal.SIGKILL)
        psutil.wait_procs(weeds, timeout=10)
        seen.after_crash = local_stack.find()
        seen.status_after_crash = subprocess.run(
            [COMMAND, "local", "status"], capture_output=True, text=True, check=True
        )
        old = processes.marked(seen.folder)
        seen.said.clear()
        seen.second = local_stack.up(seen.said.append)
        seen.left_of_first = [process for process in old if process.is_running()]
        _use(patch, seen.second)
        seen.kept = s3.read_bytes("s3://rayferry/kept")
        run = (seen.folder / "run").resolve()
        seen.num_ended = local_stack.down()
        seen.num_after_down = local_stack.count()
        seen.run_after_down = run.exists()
        seen.files_after_down = {path.name for path in seen.folder.iterdir()}
        seen.found_after_down = local_stack.find()
        seen.second_down = local_stack.down()
    finally:
        processes.end_all(seen.folder)
        os.umask(umask)
        patch.undo()
    seen.session_after = local_stack.find()
    return seen


def _use(patch, found):
    for name, value in found.environ().items():
        patch.setenv(name, value)
    patch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.mark.slow
def test_two_ups_at_once_bring_up_one_stack(life):
    assert life.first == life.twin


def test_a_stack_that_is_up_has_a_node(life):
    assert life.num_nodes == 1


def test_who_may_read_the_keys_is_the_user_alone(life):
    assert life.modes == {".": 0o700, "stack.json": 0o600, "run/": 0o700}


def test_two_folders_share_no_port(life, stack):
    def ports(found):
        return {url.rpartition(":")[2] for url in (found.address, found.gcs_address, found.endpoint)}

    assert ports(life.first) & ports(stack) == set()


def test_two_folders_share_no_keys(life, stack):
    assert {life.first.access_key, life.first.secret_key} & {stack.access_key, stack.secret_key} == set()


def test_a_stack_with_a_dead_server_is_not_called_up(life):
    assert life.after_crash is None


def test_a_stack_with_a_dead_server_is_broken(life):
    assert life.status_after_crash.stdout == "broken\n"
    assert "end them: rayferry local down" in life.status_after_crash.stderr


def test_up_after_a_crash_ends_what_was_left(life):
    assert (life.left_of_first, life.said[0].endswith("processes that a crash had left behind")) == ([], True)


def test_what_was_in_s3_is_there_after_a_crash(life):
    assert life.kept == b"kept"


def test_down_ends_every_process(life):
    assert (life.num_ended > 5, life.num_after_down) == (True, 0)


def test_down_leaves_the_data_and_no_keys(life):
    assert {"s3", "stack.json", "auth_token"} & life.files_after_down == {"s3"}


def test_down_leaves_nothing_in_tmp(life):
    assert life.run_after_down is False


def test_after_down_there_is_no_stack(life):
    assert life.found_after_down is None


def test_down_twice_is_no_error(life):
    assert life.second_down == 0


def test_the_life_of_one_folders_stack_does_not_touch_anothers(life, stack):
    assert life.session_after == stack
