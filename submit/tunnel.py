"""The way to a cluster by its file: where Ray's cluster launcher has the head, and an SSH tunnel to its dashboard.

ssh is the one on the PATH, with the user's own `~/.ssh/config`: Ray's files have no place for a port or a jump host
but `auth.ssh_proxy_command`. It lives no longer than this process, however that ends: it runs `cat` on the head, which
ends when our end of its pipe does.
"""

import io
import os
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from re import findall
from typing import Any

import yaml

from rayferry.job.errors import RayferryError, SpecError, root_line
from rayferry.job.placement import Node, most_nodes
from rayferry.submit import report
from rayferry.submit.config import state_folder
from rayferry.submit.local.ports import free_ports
from rayferry.submit.pauses import growing_pauses

_DASHBOARD_PORT = 8265
_MARK = "rayferry: forwarding"
_READY_S = 30.0
_PROBE_S = 5.0
_SAID_S = 1.0  # how long ssh's words may take to this process
_PAUSE_S = 1.0
_GRACE_S = 3.0
_POLL_S = 0.02
_TRIES = 3  # somebody may take the port before ssh does
_LINES = 20


class TunnelError(RayferryError):
    """The head was not found, or there is no way to it."""


@dataclass(frozen=True)
class Head:
    """A cluster's head, as ssh must know it.

    Attributes:
        file: the cluster's file.
        host: name or address.
        user: who logs in; "" for ssh's own choice.
        key: path of the private key; "" likewise.
        proxy_command: what ssh goes through; "" for nothing.
        dashboard_port: where the dashboard listens there.
        most: the most nodes that its autoscaler may start; None if its file does not tell.
    """

    file: Path
    host: str
    user: str = ""
    key: str = ""
    proxy_command: str = ""
    dashboard_port: int = _DASHBOARD_PORT
    most: tuple[Node, ...] | None = None


def read_cluster_file(path: Path) -> dict[str, Any]:
    """What a file for Ray's cluster launcher says.

    Raises:
        SpecError: it cannot be read, or is no such file.
    """
    hint = "give the file that `ray up` was given"
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        msg = f"--cluster {path}: no such file; {hint}"
        raise SpecError(msg) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"--cluster {path}: cannot be read ({' '.join(str(error).split())}); {hint}"
        raise SpecError(msg) from error
    for name, kind in (("provider", dict), ("cluster_name", str)):
        if not isinstance(config, dict) or not isinstance(config.get(name), kind):
            msg = f"--cluster {path}: not a file of Ray's cluster launcher (it has no `{name}`); {hint}"
            raise SpecError(msg)
    return dict(config)


def find_head(path: Path) -> Head:
    """Asks Ray, and so the cluster's provider, where the head is.

    Raises:
        SpecError: the file is not one of Ray's cluster launcher.
        TunnelError: the head is not up, or Ray cannot tell.
    """
    config = read_cluster_file(path)
    auth = config.get("auth") or {}
    if auth.get("ssh_proxy_use_node_id"):
        msg = f"{path}: auth.ssh_proxy_use_node_id is not supported; run `ray dashboard {path}` and give --address"
        raise TunnelError(msg)
    said = io.StringIO()
    step = "where the head is"
    is_filled = False
    try:
        with redirect_stdout(said), redirect_stderr(said):  # Ray tells of much, and stdout is for the datum
            from ray.autoscaler import sdk

            sdk.configure_logging(log_style="record", color_mode="false")
            host = sdk.get_head_node_ip(str(path))
            if not auth.get("ssh_private_key") or not auth.get("ssh_user"):
                # What the file leaves out are Ray's defaults and the key that `ray up` made.
                step = f"who may log in to the head, {host} (auth.ssh_user and auth.ssh_private_key)"
                config = sdk.bootstrap_config(config)
                auth = config["auth"]
                is_filled = config["provider"].get("type") == "aws"  # of the others it knows less
    except Exception as error:
        if "Head node of cluster" in str(error):
            msg = f"{path}: the head of cluster {config['cluster_name']!r} is not up; start it: ray up {path}"
        else:
            provider = config["provider"].get("type")
            hint = (
                f"check the file's values and this machine's credentials ({provider}), and try: ray get-head-ip {path}"
            )
            msg = f"{path}: Ray cannot tell {step}: {_reason(error, said.getvalue())}; {hint}"
        raise TunnelError(msg) from error
    key = os.path.expanduser(auth.get("ssh_private_key") or "")  # noqa: PTH111  # Path("") would be "."
    if key and not Path(key).exists():
        msg = f"{path}: the key {key} (auth.ssh_private_key) is not there; give one that opens the head"
        raise TunnelError(msg)
    return Head(
        file=path,
        host=str(host),
        user=auth.get("ssh_user") or "",
        key=key,
        proxy_command=auth.get("ssh_proxy_command") or "",
        dashboard_port=_dashboard_port(config),
        most=_most_nodes(config, is_filled=is_filled),
    )


def _most_nodes(config: dict[str, Any], *, is_filled: bool) -> tuple[Node, ...] | None:
    with suppress(AttributeError, TypeError):  # Ray looks at these lines only when it starts a node
        found = most_nodes(config, is_filled=is_filled)
        return tuple(found) if found else None
    return None


def _reason(error: Exception, said: str) -> str:
    """Why Ray did not do it. Where it gives up by itself, what it raises is empty, and what it printed tells.

    Source: `CliLogger.abort` and `handle_boto_error` (Ray 2.60).
    """
    told = findall(r"(?m)\t(?:PANIC|ERR) \S+ -- (?!!!!)(.+)$", said)
    return " ".join(told) if told and "cli_logger.abort" in str(error) else root_line(error)


def _dashboard_port(config: dict[str, Any]) -> int:
    found = findall(r"--dashboard-port[ =](\d+)", str(config.get("head_start_ray_commands")))
    return int(found[-1]) if found else _DASHBOARD_PORT


@contextmanager
def tunnel(head: Head) -> Iterator[str]:
    """Forwards a free port of this machine to the head's dashboard; gives its address.

    An ssh that dies is started again on the same port, for as long as the block lasts. Nothing is left after it.

    Raises:
        TunnelError: ssh is not installed or does not get in, or no dashboard is at the other end.
    """
    known_hosts = state_folder() / "known_hosts"
    known_hosts.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for attempt in range(1, _TRIES + 1):
        port = free_ports(1)[0]
        ssh = _Ssh(_command(head, port, known_hosts))
        try:
            ssh.wait_until_up()
            if ssh.is_up:
                _probe(head, port, ssh)
                report.note(f"{head.file}: its head is {head.host}; a tunnel to it is open while this command runs")
                keeper = _Keeper(head, ssh)
                try:
                    yield f"http://127.0.0.1:{port}"
                finally:
                    keeper.close()
                return
        finally:
            ssh.end()
        if attempt == _TRIES or "in use" not in " ".join(ssh.said):
            raise TunnelError(_why(head, ssh, known_hosts))


def _command(head: Head, port: int, known_hosts: Path) -> list[str]:
    ours = str(known_hosts).replace("%", "%%")
    options: dict[str, object] = {
        "BatchMode": "yes",  # there is nobody to ask for a password
        "ExitOnForwardFailure": "yes",
        "ConnectTimeout": 15,
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 3,
        "ControlMaster": "no",  # one that is shared would outlive us
        "ControlPath": "none",
        "RemoteCommand": "none",
        # A head of the cloud has a key that nobody knows yet; Ray takes any key at any time.
        "StrictHostKeyChecking": "accept-new",
        "UserKnownHostsFile": f'"{ours}" ~/.ssh/known_hosts',
    }
    if head.key:
        options["IdentitiesOnly"] = "yes"  # an agent's other keys would use up what a server lets one try
    if head.proxy_command:
        options["ProxyCommand"] = head.proxy_command
    command = ["ssh", "-T", "-L", f"127.0.0.1:{port}:127.0.0.1:{head.dashboard_port}"]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    command += ["-i", head.key] if head.key else []
    command += ["-l", head.user] if head.user else []
    return [*command, "--", head.host, f"echo {_MARK}; exec cat"]


class _Ssh:
    """One run of ssh.

    Attributes:
        command: what was run.
        said: its last lines.
    """

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.said: deque[str] = deque(maxlen=_LINES)
        self._up = threading.Event()
        try:
            self._process = subprocess.Popen(  # noqa: S603  # no shell
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for this process alone
            )
        except FileNotFoundError as error:
            msg = "ssh is not installed here; install OpenSSH's client, or tunnel by other means and give --address"
            raise TunnelError(msg) from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def is_up(self) -> bool:
        """True once its forwarding stands, and after."""
        return self._up.is_set()

    def wait_until_up(self) -> None:
        """Waits until it is up or has ended, or was given enough time."""
        deadline = time.monotonic() + _READY_S
        while not self._up.wait(_POLL_S) and self._process.poll() is None and time.monotonic() < deadline:
            pass
        if self._process.poll() is not None:
            self._reader.join(_SAID_S)

    def wait(self) -> None:
        """Waits for its end."""
        self._process.wait()
        self._reader.join(_SAID_S)

    def end(self) -> None:
        """Ends it, if it has not."""
        with suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        self._process.terminate()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        for raw in self._process.stdout:  # type: ignore[union-attr]
            line = raw.decode(errors="replace").strip()
            if line == _MARK:
                self._up.set()
            elif line:
                self.said.append("".join(sign for sign in line if sign.isprintable()))


class _Keeper:
    """Starts ssh again whenever it has ended, until `close`."""

    def __init__(self, head: Head, ssh: _Ssh) -> None:
        self._head = head
        self._ssh = ssh
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends ssh for good."""
        with self._lock:
            self._over.set()
        self._ssh.end()
        self._thread.join(_GRACE_S)

    def _keep(self) -> None:
        pauses = growing_pauses(_PAUSE_S)
        while True:
            self._ssh.wait()
            if self._over.is_set():
                return
            if self._ssh.is_up:
                pauses = growing_pauses(_PAUSE_S)
                report.note(f"the tunnel to {self._head.host} broke ({_last(self._ssh)}); connecting again")
            if self._over.wait(next(pauses)):
                return
            with self._lock, suppress(RayferryError, OSError):
                if not self._over.is_set():
                    self._ssh = _Ssh(self._ssh.command)


def _last(ssh: _Ssh) -> str:
    return ssh.said[-1] if ssh.said else "ssh said nothing"


def _probe(head: Head, port: int, ssh: _Ssh) -> None:
    """Refuses a tunnel that leads nowhere. What else is wrong with the other end, the Jobs API's client tells better.

    Raises:
        TunnelError: the head does not forward, or nothing listens there.
    """
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), _PROBE_S) as probe:
        probe.sendall(b"GET /api/version HTTP/1.0\r\n\r\n")
        if probe.recv(1):
            return
    deadline = time.monotonic() + _SAID_S
    while not (refusal := next((line for line in ssh.said if "open failed" in line), "")):
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)
    if "prohibited" in refusal:
        msg = f"{head.host} lets nobody forward ports ({refusal}); allow it in its sshd_config: AllowTcpForwarding yes"
        raise TunnelError(msg)
    msg = (
        f"nothing listens on port {head.dashboard_port} of {head.host} ({refusal}); start Ray there: "
        f"ray up {head.file} (the port is taken from --dashboard-port in its head_start_ray_commands)"
    )
    raise TunnelError(msg)


def _why(head: Head, ssh: _Ssh, known_hosts: Path) -> str:
    """Why ssh did not come up, and what to do."""
    target = f"{head.user}@{head.host}" if head.user else head.host
    line = _last(ssh)
    if "Permission denied" in line:
        key = head.key or "the keys that ssh has itself"
        return f"ssh {target} with {key}: {line}; check auth.ssh_user and auth.ssh_private_key of {head.file}"
    if "Host key verification failed" in line:
        entry = next((one.rpartition(" in ")[2] for one in ssh.said if one.startswith("Offending")), known_hosts)
        return f"ssh {target}: the head's key is not the one in {entry}; if the head was made anew, take that line out"
    return f"ssh {target}: {line}; check that the head is up and may be reached from here: ray attach {head.file}"
