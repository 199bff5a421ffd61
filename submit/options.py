"""From a job file and flags to a `JobSpec`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rayferry.job.errors import SpecError
from rayferry.job.spec import JobSpec, parse


def load_job(path: Path, sets: Sequence[str] = ()) -> JobSpec:
    """Reads and validates a job file.

    Args:
        path: a YAML or JSON file.
        sets: `path=value` texts that change it; a value is read as YAML.

    Raises:
        SpecError: the file cannot be read, or it or a change to it is not valid.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        msg = f"{path}: cannot be read: {reason}; to make a job file: rayferry init"
        raise SpecError(msg) from error
    try:
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        msg = f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {reason}"
        raise SpecError(msg) from error
    for assignment in sets:
        data = _assign(data, assignment)
    return parse(data, str(path) if not sets else f"{path} with --set")


def _assign(data: object, assignment: str) -> object:
    """`data` with one value set. Maps on the way are made; nothing else is replaced by a map."""
    path, sign, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys):
        msg = f"--set {assignment}: write it as path=value, such as --set sampling.max_tokens=64"
        raise SpecError(msg)
    try:
        value: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        msg = f"--set {assignment}: the value is not valid YAML: {' '.join(str(error).split())}"
        raise SpecError(msg) from error
    if not isinstance(data, dict):
        return data  # the validation says what is wrong with it
    here = data
    for depth, key in enumerate(keys[:-1], start=1):
        if here.get(key) is None:
            here[key] = {}
        here = here[key]
        if not isinstance(here, dict):
            msg = f"--set {assignment}: {'.'.join(keys[:depth])} is {here!r}, which has no keys"
            raise SpecError(msg)
    here[keys[-1]] = value
    return data
