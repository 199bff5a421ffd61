"""What a node sees of a job's input, output and model: `python -m rayferry.job.probe spec.json`.

`rayferry check` runs it on the cluster for what the laptop has no credentials for, or what are paths there. Its
answer is the one line of the log that begins with MARK.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rayferry.job import checkpoint, secrets, storage
from rayferry.job.errors import JobError, RayferryError, root_line
from rayferry.job.layout import Layout
from rayferry.job.log import counted
from rayferry.job.spec import JobSpec, parse

MARK = "rayferry-probe "


def main(arguments: list[str] | None = None) -> int:
    """Looks, and tells."""
    parser = argparse.ArgumentParser(prog="python -m rayferry.job.probe")
    parser.add_argument("spec", type=Path)
    parser.add_argument("--may-hold", action="store_true")
    options = parser.parse_args(arguments)
    spec = parse(json.loads(options.spec.read_bytes()), str(options.spec))
    print(MARK + json.dumps(look(spec, may_hold=options.may_hold)), flush=True)  # noqa: T201
    return 0


def look(spec: JobSpec, *, may_hold: bool) -> dict[str, tuple[str, str]]:
    """What this node sees.

    Args:
        spec: the job.
        may_hold: the output may hold an earlier attempt.

    Returns:
        By the name of the check: `ok` or `failed`, and what was seen or what to do.
    """
    questions: dict[str, Callable[[], str]] = {
        "input": lambda: _input(spec),
        "output": lambda: _output(spec, may_hold=may_hold),
        "model": lambda: _model(spec.model),
    }
    try:
        secrets.settle(spec.runtime_env.secrets)
    except RayferryError as error:
        return dict.fromkeys(questions, ("failed", str(error)))
    return {name: _asked(ask) for name, ask in questions.items()}


def _asked(ask: Callable[[], str]) -> tuple[str, str]:
    try:
        return "ok", ask()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
        return "failed", root_line(error)


def _input(spec: JobSpec) -> str:
    uris = spec.input.uris
    files = storage.list_files(uris, anonymous=spec.input.is_anonymous)
    name = uris[0] if len(uris) == 1 else f"{uris[0]} and {len(uris) - 1} more"
    return f"{name}: {counted(len(files), 'file')}, {sum(file.num_bytes for file in files):,} bytes"


def _output(spec: JobSpec, *, may_hold: bool) -> str:
    layout = Layout(spec.output.uri)
    if not may_hold:
        checkpoint.check_output(layout, resume=False, overwrite=False)
    held = "may hold an earlier attempt" if may_hold else "empty"
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
    if not model.startswith(("s3://", "/", "file://")):
        return f"{model}: a hub id; the replicas load it when they start"
    folder = model.rstrip("/") + "/"
    if not storage.children(folder):
        msg = f"{model}: no model there; check the job file's model"
        raise JobError(msg)
    if not model.startswith("s3://") and storage.read_bytes(folder + "config.json") is None:
        msg = f"model {model!r}: the folder holds no config.json, so it is no Hugging Face checkpoint"
        raise JobError(msg)
    return f"{model}: there"


if __name__ == "__main__":
    sys.exit(main())
