"""The way to a cluster by its file: what is read from it, how ssh is run, and what is said where it does not work."""

import json
import os
import socket
import stat
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import psutil
import pytest
import yaml
from click.testing import CliRunner
from ray.autoscaler import sdk

from rayferry.job.placement import Node
from rayferry.submit import tunnel as tunnel_module
from rayferry.submit.cli import main
from rayferry.submit.tunnel import Head, TunnelError, find_head, tunnel

# An ssh that logs in nowhere: forwards the port on this machine, and ends when its input does.
SSH = """#!{python}
import json, os, socket, sys, threading
from pathlib import Path
folder = Path(__file__).parent
runs = folder / "runs"
with runs.open("a") as file:
    file.write(json.dumps([os.getpid(), *sys.argv[1:]]) + "\\n")
failure = folder / "failure"
if failure.exists():
    sys.exit(failure.read_text())
host, port, _, there = sys.argv[sys.argv.index("-L") + 1].split(":")
server = socket.create_server((host, int(port)))

def copy(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)

def serve():
    while True:
        here, _ = server.accept()
        try:
            away = socket.create_connection(("127.0.0.1", int(there)))
        except OSError:
            sys.stderr.write("channel 2: open failed: connect failed: Connection refused\\n")
            sys.stderr.flush()
            here.close()
            continue
        for pair in ((here, away), (away, here)):
            threading.Thread(target=copy, args=pair, daemon=True).start()

threading.Thread(target=serve, daemon=True).start()
print("Welcome", flush=True)
print(sys.argv[-1].partition("; ")[0].removeprefix("echo "), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """Puts the stand-in on the PATH; gives its folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(SSH.format(python=sys.executable))
    (folder / "ssh").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(tunnel_module, "_PAUSE_S", 0.01)
    monkeypatch.setattr(tunnel_module, "_SAID_S", 2.0)


@pytest.fixture
def config(tmp_path):
    """What a cluster file says; its key is there."""
    (tmp_path / "key").touch()
    return {
        "cluster_name": "mine",
        "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []},
        "auth": {"ssh_user": "ubuntu", "ssh_private_key": str(tmp_path / "key")},
    }


@pytest.fixture
def file(tmp_path, config):
    """Writes a cluster file that differs in what is given."""

    def write(**changes):
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump(config | changes))
        return path

    return write


@pytest.fixture
def is_up(monkeypatch):
    """Ray finds the head."""
    monkeypatch.setattr(sdk, "get_head_node_ip", lambda _path: "127.0.0.1")


@pytest.fixture
def head(file, ray_api):
    """A head whose dashboard is a cluster by script."""
    return Head(file(), "127.0.0.1", dashboard_port=int(ray_api.url.rpartition(":")[2]))


@pytest.fixture
def rayferry():
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def runs(ssh):
    """What the stand-in was called with: its process id first."""
    return [json.loads(line) for line in (ssh / "runs").read_text().splitlines()]


def test_a_file_that_is_not_there_is_told(rayferry, tmp_path):
    result = rayferry("list", "--cluster", tmp_path / "no.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"--cluster {tmp_path}/no.yaml: no such file; give the file that `ray up` was given" in result.stderr


@pytest.mark.parametrize("content", ["- a\n", "", "model: m\n", "provider: aws\n", "provider: {}\ncluster_name: 3\n"])
def test_a_file_of_another_kind_is_told(rayferry, tmp_path, content):
    (tmp_path / "job.yaml").write_text(content)
    result = rayferry("list", "--cluster", tmp_path / "job.yaml")
    assert (result.exit_code, "not a file of Ray's cluster launcher (it has no `" in result.stderr) == (2, True)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_told_in_a_line(rayferry, tmp_path, content):
    (tmp_path / "cluster.yaml").write_bytes(content)
    result = rayferry("list", "--cluster", tmp_path / "cluster.yaml")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "cannot be read (" in result.stderr


def test_a_folder_is_no_cluster_file(rayferry, tmp_path):
    result = rayferry("list", "--cluster", tmp_path)
    assert (result.exit_code, "cannot be read (" in result.stderr) == (2, True)


def test_address_and_cluster_together_are_wrong_usage(rayferry, file):
    result = rayferry("list", "--address", "http://head:8265", "--cluster", file())
    assert (result.exit_code, "--address and --cluster both name the cluster" in result.stderr) == (2, True)


def test_a_head_that_is_not_up_is_told_with_the_command_that_starts_it(file, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    path = file()
    with pytest.raises(TunnelError, match=f"the head of cluster 'mine' is not up; start it: ray up {path}$"):
        find_head(path)


def test_what_ray_cannot_tell_is_told_in_its_words(file):
    with pytest.raises(TunnelError, match=r"Ray cannot tell where the head is: .*nimbus"):
        find_head(file(provider={"type": "nimbus"}))


@pytest.mark.usefixtures("is_up")
def test_the_head_is_as_the_file_says(file, tmp_path):
    auth = {"ssh_user": "me", "ssh_private_key": str(tmp_path / "key"), "ssh_proxy_command": "nc %h %p"}
    path = file(auth=auth)
    assert find_head(path) == Head(path, "127.0.0.1", "me", str(tmp_path / "key"), "nc %h %p", 8265)


@pytest.mark.usefixtures("is_up")
def test_what_the_file_leaves_out_is_rays(file, monkeypatch, tmp_path):
    def bootstrap(config):
        print("Checking AWS environment settings")
        return config | {"auth": config["auth"] | {"ssh_private_key": str(tmp_path / "key")}}

    monkeypatch.setattr(sdk, "bootstrap_config", bootstrap)
    head = find_head(file(auth={"ssh_user": "me"}))
    assert (head.user, head.key) == ("me", str(tmp_path / "key"))


@pytest.mark.usefixtures("is_up")
def test_the_most_nodes_are_those_that_ray_makes_of_the_file(file, monkeypatch):
    types = {"head": {"resources": {"CPU": 4}, "max_workers": 0}, "gpu": {"resources": {"CPU": 8, "GPU": 1}}}
    full = {"available_node_types": types, "head_node_type": "head", "max_workers": 2}
    monkeypatch.setattr(sdk, "bootstrap_config", lambda config: config | full | {"provider": {"type": "aws"}})
    assert find_head(file(auth={"ssh_user": "me"})).most == (Node(8, 1), Node(8, 1))


@pytest.mark.usefixtures("is_up")
def test_node_types_that_make_no_sense_say_nothing(file):
    assert (
        find_head(file(available_node_types=["gpu"], auth={"ssh_user": "me", "ssh_private_key": __file__})).most is None
    )


@pytest.mark.usefixtures("is_up")
def test_what_neither_the_file_nor_ray_says_is_left_to_ssh(file, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # Ray keeps there what it has made of a file
    path = file(auth={"ssh_user": "me"})
    assert find_head(path) == Head(path, "127.0.0.1", "me")


@pytest.mark.usefixtures("is_up")
def test_what_ray_prints_on_the_way_is_not_shown(file, monkeypatch, capfd):
    monkeypatch.setattr(sdk, "bootstrap_config", lambda config: print("noise") or config)
    find_head(file(auth={"ssh_user": "me"}))
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("is_up")
@pytest.mark.parametrize(
    ("commands", "port"),
    [
        (["ray stop", "ray start --head --port=6379"], 8265),
        (["ray stop", "ulimit -n 65536; ray start --head --dashboard-port=9000 --port=6379"], 9000),
        (["ray start --head --dashboard-port 9001"], 9001),
    ],
)
def test_the_dashboards_port_is_the_one_that_ray_is_started_with(file, commands, port):
    assert find_head(file(head_start_ray_commands=commands)).dashboard_port == port


@pytest.mark.usefixtures("is_up")
def test_a_key_that_is_not_there_is_told(file):
    with pytest.raises(TunnelError, match=r"the key /no/key \(auth.ssh_private_key\) is not there"):
        find_head(file(auth={"ssh_user": "me", "ssh_private_key": "/no/key"}))


def test_a_login_by_a_nodes_id_is_refused_with_another_way(file):
    with pytest.raises(TunnelError, match="ssh_proxy_use_node_id is not supported; run `ray dashboard"):
        find_head(file(auth={"ssh_user": "me", "ssh_proxy_use_node_id": True}))


def test_a_tunnel_leads_to_the_dashboard_and_is_gone_after(ssh, head):
    with tunnel(head) as url:
        port = int(url.rpartition(":")[2])
        assert url == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()
        [[pid, *_]] = runs(ssh)
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_tunnel_is_gone_after_an_error(ssh, head):
    with pytest.raises(KeyboardInterrupt), tunnel(head):
        raise KeyboardInterrupt
    assert not psutil.pid_exists(runs(ssh)[0][0])


def test_ssh_is_told_what_the_file_says_and_never_asks(ssh, head, tmp_path):
    full = Head(head.file, "-x", "me", "/a/key", "nc %h %p", head.dashboard_port)
    with tunnel(full):
        pass
    [[_, *words]] = runs(ssh)
    options = {word for before, word in pairwise(words) if before == "-o"}
    assert {"BatchMode=yes", "ExitOnForwardFailure=yes", "IdentitiesOnly=yes", "ProxyCommand=nc %h %p"} <= options
    assert {"ControlMaster=no", "StrictHostKeyChecking=accept-new"} <= options
    assert f'UserKnownHostsFile="{tmp_path}/state/known_hosts" ~/.ssh/known_hosts' in options
    assert words[-7:-1] == ["-i", "/a/key", "-l", "me", "--", "-x"]


def test_what_the_file_does_not_say_is_left_to_ssh(ssh, head):
    with tunnel(head):
        pass
    [[_, *words]] = runs(ssh)
    assert not {"-i", "-l"} & set(words)
    assert not any(word.startswith(("IdentitiesOnly", "ProxyCommand")) for word in words)


def test_an_ssh_that_dies_is_started_again_on_the_same_port(ssh, head, capsys):
    with tunnel(head) as url:
        port = int(url.rpartition(":")[2])
        psutil.Process(runs(ssh)[0][0]).kill()
        deadline = time.monotonic() + 10
        while True:
            assert time.monotonic() < deadline
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except (ConnectionRefusedError, ConnectionResetError):  # not there yet, or just gone
                time.sleep(0.01)
            else:
                if len(runs(ssh)) == 2:
                    break
        second = runs(ssh)[1]
        assert second[1:] == runs(ssh)[0][1:]
    assert not psutil.pid_exists(second[0])
    assert capsys.readouterr().err.count("connecting again") == 1


def test_an_ssh_that_stays_dead_is_tried_again_and_told_once(ssh, head, capsys):
    before = threading.active_count()
    with tunnel(head):
        (ssh / "failure").write_text("ssh: connect to host 127.0.0.1 port 22: Connection refused")
        psutil.Process(runs(ssh)[0][0]).kill()
        deadline = time.monotonic() + 10
        while len(runs(ssh)) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    num = len(runs(ssh))
    assert capsys.readouterr().err.count("connecting again") == 1
    assert threading.active_count() <= before
    assert len(runs(ssh)) == num


def test_ssh_that_is_not_installed_is_told(head, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TunnelError, match="ssh is not installed here; install OpenSSH's client"), tunnel(head):
        pass


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("me@head: Permission denied (publickey).", "Permission denied.*check auth.ssh_user and auth.ssh_private_key"),
        ("ssh: connect to host h port 22: Connection timed out", "Connection timed out; check that the head is up"),
        (
            "Offending key in /k/hosts:3\nHost key verification failed.",
            "not the one in /k/hosts:3; if the head",
        ),
    ],
)
def test_an_ssh_that_does_not_get_in_is_told_by_its_last_line(ssh, head, words, said):
    (ssh / "failure").write_text(words)
    with pytest.raises(TunnelError, match=said), tunnel(head):
        pass


def test_a_port_that_is_taken_in_between_is_replaced(ssh, head, monkeypatch):
    free = tunnel_module.free_ports
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], free(1)[0]])
        monkeypatch.setattr(tunnel_module, "free_ports", lambda _count: [next(ports)])
        with tunnel(head) as url:
            assert url != f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert len(runs(ssh)) == 2


def test_a_tunnel_that_leads_nowhere_is_told(ssh, file):
    port = tunnel_module.free_ports(1)[0]
    with (
        pytest.raises(TunnelError, match=f"nothing listens on port {port} of 127.0.0.1 .*start Ray there"),
        tunnel(Head(file(), "127.0.0.1", dashboard_port=port)),
    ):
        pass
    assert not psutil.pid_exists(runs(ssh)[0][0])


@pytest.fixture
def scripted(ssh, is_up, file, ray_api):
    """The file of a cluster that answers by script."""
    port = ray_api.url.rpartition(":")[2]
    return file(head_start_ray_commands=[f"ray start --head --dashboard-port={port}"])


def test_a_command_asks_the_cluster_through_the_tunnel(scripted, ray_api, rayferry, ssh):
    result = rayferry("list", "--cluster", scripted, "--json")
    assert (result.exit_code, result.stdout) == (0, "[]\n"), result.stderr
    assert ray_api.num("GET", "/api/jobs/") == 1
    assert not psutil.pid_exists(runs(ssh)[0][0])


def test_the_file_wins_over_the_job_file_and_the_environment(scripted, job_file, rayferry, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    result = rayferry("check", job_file, "--set", "cluster.address=http://third:8265", "--cluster", scripted)
    assert result.exit_code == 0, result.stderr
    assert "--cluster wins over the job file=http://third:8265, RAY_ADDRESS=http://other:8265" in result.stderr


def test_no_tunnel_is_opened_for_what_asks_no_cluster(scripted, rayferry, job_file, tmp_path, ssh):
    assert rayferry("submit", job_file, "--dry-run", "--cluster", scripted).exit_code == 0
    assert rayferry("status", f"{tmp_path}/out/", "--cluster", scripted).exit_code == 1
    assert not (ssh / "runs").exists()


def test_a_dry_run_reads_the_file(rayferry, job_file, tmp_path):
    assert rayferry("submit", job_file, "--dry-run", "--cluster", tmp_path / "no.yaml").exit_code == 2


def test_the_doctor_tells_what_is_wrong_with_it_among_the_rest(rayferry, file, ssh, is_up):
    (ssh / "failure").write_text("me@head: Permission denied (publickey).")
    result = rayferry("doctor", "--cluster", file())
    assert result.exit_code == 1
    assert "fix: check auth.ssh_user and auth.ssh_private_key" in result.stdout
    assert "folders" in result.stdout


@pytest.fixture
def aws(monkeypatch):
    """AWS, which knows nobody."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            error = b"<Error><Code>AuthFailure</Code><Message>not able to validate the credentials</Message></Error>"
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b"<Response><Errors>" + error + b"</Errors></Response>")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        yield
        server.shutdown()


@pytest.mark.usefixtures("aws")
def test_what_ray_itself_says_of_its_failure_is_told(file):
    path = file(provider={"type": "aws", "region": "us-west-2"}, auth={"ssh_user": "ubuntu"})
    with pytest.raises(TunnelError) as caught:
        find_head(path)
    assert "Ray cannot tell where the head is" in str(caught.value)
    assert "AuthFailure" in str(caught.value)
    assert "not able to validate the credentials" in str(caught.value)
    assert "check the file's values and this machine's credentials (aws)" in str(caught.value)
