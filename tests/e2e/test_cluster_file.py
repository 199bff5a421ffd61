"""`--cluster`: a cluster that `ray up` started over a real sshd on this machine, and jobs sent to it."""

import getpass
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from rayferry.submit.local import processes
from rayferry.submit.local.ports import free_ports

from .conftest import COMMAND, ENGINE

SCRIPTS = Path(sys.executable).parent
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
MISSING = [name for name, path in (("sshd", SSHD), *((n, shutil.which(n)) for n in ("ssh", "rsync"))) if not path]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {', '.join(MISSING)} (openssh-server, rsync)"),
]
JOB = "over-ssh"


@pytest.fixture(scope="module")
def place():
    """A short path: Ray makes sockets under it, whose names may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="rayferry-", dir="/tmp"))
    (folder / "home").mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    name = hashlib.sha256(folder.name.encode()).hexdigest()[:10]
    for sockets in Path("/tmp").glob(f"ray_ssh_*/{name}"):  # of Ray's own logins, by the cluster's name
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture(scope="module")
def sshd(place):
    """An own sshd on a free port, whose sessions have their home in `place`, and an `ssh` that knows its port."""
    port = free_ports(1)[0]
    for name in ("host", "user", "restricted", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    restricted = "no-port-forwarding " + (place / "restricted.pub").read_text()
    (place / "authorized_keys").write_text((place / "user.pub").read_text() + restricted)
    (place / "sshd_config").write_text(f"""
        Port {port}
        ListenAddress 127.0.0.1
        HostKey {place}/host
        AuthorizedKeysFile {place}/authorized_keys
        PidFile none
        UsePAM no
        StrictModes no
        PermitRootLogin prohibit-password
        PasswordAuthentication no
        SetEnv HOME={place}/home
    """)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where the real one keeps apart what has no rights
    (place / "ssh_config").write_text(f"Host 127.0.0.1\n  Port {port}\n")
    (place / "bin").mkdir()
    wrapper = place / "bin" / "ssh"
    # as ~/.ssh/config would say it: ssh looks for that in the home that the system knows, not in HOME
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {place}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    with (place / "sshd.log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", place / "sshd_config"], stderr=log)
    yield port
    children = psutil.Process(server.pid).children(recursive=True)
    server.terminate()
    server.wait()
    for child in children:
        if child.is_running() and "sshd" in child.name():
            child.terminate()


@pytest.fixture(scope="module")
def environ(place):
    """A laptop's: no cluster, no token, nothing of the developer's home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    return kept | {
        "HOME": str(place / "home"),
        "PATH": os.pathsep.join([str(place / "bin"), str(SCRIPTS), os.environ["PATH"]]),
        "RAY_TMPDIR": str(place),
        "RAYFERRY_STATE": str(place / "state"),
    }


@pytest.fixture(scope="module")
def cluster_file(place, sshd, environ):
    """The file of a cluster that is up."""
    gcs, dashboard, client, agent, agent_grpc, env_agent, metrics, manager, objects = free_ports(9)
    head = (
        f"export PATH={SCRIPTS}:$PATH {processes.MARK}={place} SPT_NOENV=1; "  # by which its processes are found
        "export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 RAY_USAGE_STATS_ENABLED=0 VLLM_CPU_KVCACHE_SPACE=1; "
        f"ray start --head --node-ip-address=127.0.0.1 --port={gcs} --dashboard-host=127.0.0.1 "
        f"--dashboard-port={dashboard} --ray-client-server-port={client} --dashboard-agent-listen-port={agent} "
        f"--dashboard-agent-grpc-port={agent_grpc} --runtime-env-agent-port={env_agent} "
        f"--metrics-export-port={metrics} --node-manager-port={manager} --object-manager-port={objects} "
        f"--num-cpus=2 --object-store-memory=200000000 --temp-dir={place}/ray-head "
        "--autoscaling-config=~/ray_bootstrap_config.yaml"
    )
    config = {
        "cluster_name": place.name,
        "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []},
        "auth": {"ssh_user": getpass.getuser(), "ssh_private_key": str(place / "user")},
        "head_start_ray_commands": [head],
        "worker_start_ray_commands": [],
    }
    path = place / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    launch = [SCRIPTS / "ray", "up", "-y", "--no-config-cache", path]
    try:
        done = subprocess.run(launch, env=environ, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        yield path
    finally:
        processes.end_all(place)


@pytest.fixture
def rayferry(cluster_file, environ):
    """Runs the installed command with `--cluster` to its end."""

    def run(*arguments, file=cluster_file, **variables):
        command = [COMMAND, *map(str, arguments), "--cluster", str(file)]
        return subprocess.run(command, env=environ | variables, capture_output=True, text=True, check=False, cwd="/")

    return run


@pytest.fixture
def other_file(cluster_file):
    """Writes a file that differs from the cluster's own in what is given."""

    def write(**changes):
        path = cluster_file.with_name("other.yaml")
        path.write_text(yaml.safe_dump(yaml.safe_load(cluster_file.read_text()) | changes))
        return path

    return write


@pytest.fixture
def auth(cluster_file):
    """Its part about logins, with another key."""
    return lambda key: {"ssh_user": getpass.getuser(), "ssh_private_key": str(cluster_file.with_name(key))}


@pytest.fixture(scope="module")
def job_file(place, model):
    """Writes a job whose input and output lie on this machine, as the head does."""

    def write(name):
        (place / "in").mkdir(exist_ok=True)
        (place / "in" / "a.jsonl").write_text('{"text": "The capital of France is"}\n{"text": "Water boils at"}\n')
        job = {
            "name": name,
            "model": model,
            "input": {"uri": str(place / "in")},
            "output": {"uri": str(place / name)},
            "sampling": {"temperature": 0, "max_tokens": 8},
            "engine": ENGINE,
            "resources": {"device": "cpu"},  # or it waits for a GPU, as this cluster has an autoscaler
        }
        path = place / f"{name}.json"
        path.write_text(json.dumps(job))
        return path

    return write


def tunnels(place):
    """The ssh processes that Rayferry started; Ray's own have no such command."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(str(place) in word for word in words) and any("rayferry: forwarding" in word for word in words):
            found.append(process)
    return found


def wait_until(is_so):
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listens(port):
    return any(
        one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in psutil.net_connections(kind="tcp")
    )


@pytest.fixture
def running(job_file, environ, cluster_file):
    """Starts `rayferry submit --cluster`; gives the process, and where its tunnel ends here, once the job runs."""
    started = []

    def start(name):
        command = [COMMAND, "submit", job_file(name), "--submission-id", name, "--cluster", cluster_file]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        port = None
        for line in process.stderr:
            if line.startswith("submitted "):
                port = int(line.rpartition(":")[2])
            if line.strip().endswith("RUNNING"):
                return process, port
        raise AssertionError(process.wait())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_job_runs_on_a_cluster_that_ray_up_started_and_is_followed_through_a_broken_tunnel(running, rayferry, place):
    process, port = running(JOB)
    [ssh] = tunnels(place)
    ssh.kill()
    out, said = process.communicate(timeout=300)
    assert (process.returncode, out) == (0, f"{place}/{JOB}/\n"), said
    assert said.count("connecting again") == 1
    assert said.count("1 replica ready") == 1
    assert "2 rows: 2 answered" in said
    assert (listens(port), tunnels(place)) == (False, [])
    assert rayferry("status", JOB).stdout == "SUCCEEDED\n"
    assert "done: 2 answers, 0 errors" in rayferry("logs", JOB).stdout
    assert rayferry("result", JOB).stdout == out
    assert JOB in rayferry("list").stdout
    assert tunnels(place) == []


@pytest.mark.chaos  # a second job of a minute
def test_no_tunnel_is_left_by_a_command_that_is_ended_or_killed(running, rayferry, environ, place, cluster_file):
    name = "left"
    process, port = running(name)
    assert (listens(port), len(tunnels(place))) == (True, 1)
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=200)
    assert (process.returncode, out) == (130, "")
    assert f"rayferry stop {name}" in said
    assert (listens(port), tunnels(place)) == (False, [])

    command = [COMMAND, "logs", "-f", name, "--cluster", cluster_file]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        next(line for line in process.stderr if "RUNNING" in line)
        assert tunnels(place)
        process.kill()  # nothing can clean up after itself then
    wait_until(lambda: not tunnels(place))
    assert rayferry("stop", name).stdout == "STOPPED\n"


def test_a_key_that_does_not_open_the_head_is_told(rayferry, other_file, auth, place):
    done = rayferry("list", file=other_file(auth=auth("stranger")))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"127.0.0.1 with {place}/stranger: " in done.stderr
    assert "Permission denied (publickey" in done.stderr
    assert "check auth.ssh_user and auth.ssh_private_key" in done.stderr


def test_a_head_that_forwards_no_ports_is_told(rayferry, other_file, auth):
    done = rayferry("list", file=other_file(auth=auth("restricted")))
    assert (done.returncode, "127.0.0.1 lets nobody forward ports" in done.stderr) == (1, True), done.stderr


def test_a_head_without_a_dashboard_is_told(rayferry, other_file):
    port = free_ports(1)[0]
    done = rayferry("list", file=other_file(head_start_ray_commands=[f"ray start --head --dashboard-port={port}"]))
    assert (done.returncode, f"nothing listens on port {port} of 127.0.0.1" in done.stderr) == (1, True), done.stderr


def test_another_host_in_the_heads_place_is_refused(rayferry, sshd, place, tmp_path):
    kind, key, _ = (place / "stranger.pub").read_text().split(maxsplit=2)
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{sshd} {kind} {key}\n")
    done = rayferry("list", RAYFERRY_STATE=str(tmp_path))
    assert (done.returncode, f"is not the one in {tmp_path}/known_hosts:1" in done.stderr) == (1, True), done.stderr


def test_a_cluster_that_is_not_up_is_told(rayferry, other_file):
    file = other_file(cluster_name="another")
    done = rayferry("list", file=file)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"rayferry: error: {file}: the head of cluster 'another' is not up; start it: ray up {file}\n"


def test_the_doctor_tells_of_it(rayferry):
    done = rayferry("doctor")
    assert (done.returncode, "(from --cluster)" in done.stdout) == (0, True), done.stdout
