"""From a job file and flags to a `JobSpec`."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rayferry.job import leaks, templates
from rayferry.job.errors import SpecError
from rayferry.job.spec import JobSpec, parse
from rayferry.runtime_env.user_files import check_there


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which takes the last of two equal keys; this one refuses them."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    msg = f"the key {key.value!r} is there twice"
                    raise yaml.composer.ComposerError("in a mapping", node.start_mark, msg, key.start_mark)
                seen.add((key.tag, key.value))
        return node


def _from_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506  # it is a safe one


def _from_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_twins)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, if no key is in it twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        msg = f"the key {next(key for key in found if keys.count(key) > 1)!r} is there twice"
        raise ValueError(msg)
    return found


def load_job(path: Path, sets: Sequence[str] = ()) -> JobSpec:
    """Reads and validates a job file.

    Args:
        path: a YAML or JSON file.
        sets: `path=value` texts that change it; a value is read as YAML.

    Raises:
        SpecError: the file cannot be read, it or a change to it is not valid, a file that it names is not there, or it
            has the templates of a schedule's job.
    """
    data, origin = read_job(path, sets), str(path) if not sets else f"{path} with --set"
    _refuse_templates(data, path, origin)
    return validated(data, origin)


def _refuse_templates(data: object, path: Path, origin: str) -> None:
    """Nothing fills in a schedule's templates where a job is run by itself."""
    for place, key, where in templates.places(data) if isinstance(data, dict) else ():
        text = place[key]
        if isinstance(text, str) and templates.has_mark(text) and "schedule" in text:
            msg = (
                f"{origin}: {where}: {text!r}: only a schedule fills in its time; rayferry schedule add NAME "
                f"{shlex.quote(str(path))} --cron ..., then rayferry schedule trigger NAME runs it now"
            )
            raise SpecError(msg)


def read_job(path: Path, sets: Sequence[str] = ()) -> Any:
    """What a job file holds, as values that are not validated.

    Raises:
        SpecError: the file cannot be read, or a change to it cannot be made.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        msg = f"{path}: cannot be read: {reason}; to make a job file: rayferry init"
        raise SpecError(msg) from error
    try:
        data = _from_json(text) if path.suffix == ".json" else _from_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        msg = f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {_reason(error)}"
        raise SpecError(msg) from error
    for assignment in sets:
        data = _assign(data, assignment)
    _place_files(data, path.parent)
    return data


def validated(data: object, origin: str) -> JobSpec:
    """The job that such values are; `origin` is where they came from, for the message.

    Raises:
        SpecError: they are none, or a file that they name is not there.
    """
    spec = parse(data, origin)
    try:
        json.dumps(spec.to_json(), ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError is one
        msg = f"{origin}: holds what cannot be sent: a value inside of itself, or half a character (such as \\ud800)"
        raise SpecError(msg) from error
    check_there(spec.runtime_env)
    return spec


def _place_files(data: object, folder: Path) -> None:
    """Makes the paths of the user's own files absolute: they are below the job file's folder."""
    env = data.get("runtime_env") if isinstance(data, dict) else None
    for key in ("py_modules", "files"):
        paths = env.get(key) if isinstance(env, dict) else None
        if isinstance(paths, list):
            paths[:] = [str(folder.absolute() / one) if isinstance(one, str) and one else one for one in paths]


def _assign(data: object, assignment: str) -> object:
    """`data` with one value set. Maps on the way are made; nothing else is replaced by a map."""
    path, sign, text = assignment.partition("=")
    told = leaks.shown_assignment(assignment)
    keys = path.strip().split(".")
    if not sign or not all(keys):
        msg = f"--set {told}: write it as path=value, such as --set sampling.max_tokens=64"
        raise SpecError(msg)
    try:
        value: Any = _from_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        msg = f"--set {told}: the value is not valid YAML: {_reason(error)}"
        raise SpecError(msg) from error
    if not isinstance(data, dict):
        return data  # the validation says what is wrong with it
    here = data
    for depth, key in enumerate(keys[:-1], start=1):
        if here.get(key) is None:
            here[key] = {}
        here = here[key]
        if not isinstance(here, dict):
            place = ".".join(keys[:depth])
            msg = f"--set {told}: {place} is {leaks.shown(place, here)}, which has no keys"
            raise SpecError(msg)
    here[keys[-1]] = value
    return data


def _reason(error: Exception) -> str:
    """What is wrong and where, without YAML's quotation of the line: it may hold a secret."""
    problem = getattr(error, "problem", None)
    mark = getattr(error, "problem_mark", None)
    if not problem or mark is None:
        return leaks.mask(" ".join(str(error).split()))
    return leaks.mask(f"{problem}, in line {mark.line + 1}, column {mark.column + 1}")
