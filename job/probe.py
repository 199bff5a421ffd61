"""What the head sees of a job's needs: `python -m rayferry.job.probe spec.json input output`.

`rayferry check` and `submit` run it on the cluster for what the laptop has no credentials for, or what are paths there.
Each answer is a line of the log that begins with MARK.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from rayferry.job import arguments, checkpoint, identity, sample, secrets, storage
from rayferry.job.earlier import NOTHING_EARLIER, Earlier
from rayferry.job.errors import EngineError, JobError, RayferryError, UnseenError, root_line
from rayferry.job.layout import Layout
from rayferry.job.log import counted
from rayferry.job.placement import plan_here
from rayferry.job.spec import JobSpec, parse

T = TypeVar("T")
MARK = "rayferry-probe "
NAMES = ("capacity", "input", "rows", "output", "model", "engine")
_LIMIT_S = 45.0


def main(arguments: list[str] | None = None) -> int:
    """Looks, and tells: a line of JSON for each name, `[name, outcome, text]`."""
    parser = argparse.ArgumentParser(prog="python -m rayferry.job.probe")
    parser.add_argument("spec", type=Path)
    parser.add_argument("names", nargs="+", choices=NAMES)
    Earlier.add_to(parser)
    options = parser.parse_args(arguments)
    spec = parse(json.loads(options.spec.read_bytes()), str(options.spec))
    for name, (outcome, text) in look(spec, options.names, Earlier.read(options)).items():
        print(MARK + json.dumps([name, outcome, text]), flush=True)  # noqa: T201
    return 0


def look(spec: JobSpec, names: list[str], earlier: Earlier = NOTHING_EARLIER) -> dict[str, tuple[str, str]]:
    """What this node sees, all at once.

    Args:
        spec: the job.
        names: what to look at, of NAMES.
        earlier: what becomes of what the output holds.

    Returns:
        By name: `ok`, `failed` or `unknown`, and what was seen or what to do.
    """
    try:
        secrets.settle(spec.runtime_env.secrets)  # S3's may be among them
    except RayferryError as error:
        return dict.fromkeys(names, ("failed", str(error)))
    listed = _start(lambda: _listing(spec)) if {"input", "rows"} & {*names} else Future()
    questions: dict[str, Callable[[], str]] = {
        "capacity": lambda: _capacity(spec),
        "input": lambda: _input(listed.result()),
        "rows": lambda: sample.ask_rows(spec, listed.result),
        "output": lambda: _output(spec, earlier),
        "model": lambda: _model(spec.model),
        "engine": lambda: _engine(spec),
    }
    deadline = time.monotonic() + _LIMIT_S
    asked = {name: _start(questions[name]) for name in names}
    return {name: _answer(future, deadline) for name, future in asked.items()}


def _start(ask: Callable[[], T]) -> "Future[T]":
    """Asks in a thread that does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is the answer
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _answer(future: "Future[str]", deadline: float) -> tuple[str, str]:
    try:
        return "ok", future.result(max(0.0, deadline - time.monotonic()))
    except UnseenError as error:
        return "unknown", str(error)
    except TimeoutError:
        return "unknown", f"no answer in {_LIMIT_S:g} s; do the nodes reach the store?"
    except (RayferryError, OSError) as error:
        return "failed", root_line(error)
    except Exception as error:  # noqa: BLE001  # a fault of the look is none of the job
        return "unknown", f"the look broke off: {root_line(error)}"


def _capacity(spec: JobSpec) -> str:
    import ray  # noqa: PLC0415  # the other questions need none

    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    if not plan_here(spec).is_certain:
        msg = "the nodes that are there do not hold it, and the cluster does not tell what its autoscaler may start"
        raise UnseenError(msg)
    return "its nodes hold the replicas, or its autoscaler may start what they need"


def _input(found: sample.Listing) -> str:
    return f"{found.name}: {counted(len(found.files), 'file')}, {sum(file.num_bytes for file in found.files):,} bytes"


def _listing(spec: JobSpec) -> sample.Listing:
    uris = spec.input.uris
    name = uris[0] if len(uris) == 1 else f"{uris[0]} and {len(uris) - 1} more"
    return sample.Listing(name, storage.list_files(uris, anonymous=spec.input.is_anonymous))


def _output(spec: JobSpec, earlier: Earlier) -> str:
    layout = Layout(spec.output.uri)
    checkpoint.check_output(layout, earlier)
    if earlier.resume:
        identity.require_same(spec, layout, storage.read_bytes(layout.run_uri))
    held = "may hold an earlier attempt" if earlier.may_hold else "empty"
    if not layout.output_uri.startswith("s3://"):
        return f"{layout.output_uri}: {held}"
    probe = f"{layout.meta_uri}.write-probe"
    try:
        storage.write_bytes(probe, b"")
    except OSError as error:
        msg = f"{layout.output_uri}: cannot be written: {error}; check the permissions"
        raise JobError(msg) from error
    storage.remove(probe)
    return f"{layout.output_uri}: {held}, and can be written"


def _model(model: str) -> str:
    folder = model.rstrip("/") + "/"
    if model.startswith("s3://"):
        if not storage.children(folder):
            msg = f"{model}: no model there; check the job file's model"
            raise JobError(msg)
    elif not storage.children(folder):
        msg = f"{model}: not a folder of the head; it has to be one of the nodes that run replicas"
        raise UnseenError(msg)
    elif storage.read_bytes(folder + "config.json") is None:
        msg = f"{model}: the head's folder holds no config.json; it has to be a checkpoint on the replicas' nodes"
        raise UnseenError(msg)
    return f"{model}: there"


def _engine(spec: JobSpec) -> str:
    known = arguments.known()
    if known is None:
        msg = "engine: the head has no vLLM to ask"
        raise UnseenError(msg)
    try:
        known.check(spec.engine.to_kwargs())
    except EngineError as error:
        msg = f"{error} (the head's vLLM; --skip engine if the replicas' nodes have another)"
        raise EngineError(msg) from error
    return f"engine: vLLM {known.version} has every argument"


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a question that has no answer yet is not waited for
