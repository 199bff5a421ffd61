"""What pydantic finds wrong in a job file, in words."""

import difflib
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from rayferry.job import leaks

_MAX_CHARS = 80
_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "none_required": "left out",
}
# names of a union's members, which pydantic puts into the path
_MEMBERS = {"int", "ReplicaRange", "str", "list[str]"}


def explain(details: Sequence[ErrorDetails], model: type[BaseModel]) -> list[str]:
    """One line for everything that is wrong: where, the value, and what it should be.

    Args:
        details: what `ValidationError.errors()` gives.
        model: the model that was validated; its keys are what unknown ones are compared with.
    """
    found: dict[str, list[ErrorDetails]] = {}
    for detail in details:
        found.setdefault(".".join(map(str, _location(detail))), []).append(detail)
    lines = []
    for path, several in found.items():
        deeper = any(other.startswith(path + ".") for other in found) if path else False
        # a union's members all complain of their own kind: only what they say of the right kind is of use
        told = [detail for detail in several if detail["type"] not in _KINDS]
        if told:
            lines += [_explain(path, detail, model) for detail in told]
        elif not deeper:
            kinds = " or ".join(dict.fromkeys(_KINDS[detail["type"]] for detail in several))
            lines.append(f"{path or '(top level)'}: {_shorten(path, several[0]['input'])}: must be {kinds}")
    return list(dict.fromkeys(lines))


def _location(detail: ErrorDetails) -> list[int | str]:
    return [part for part in detail["loc"] if part not in _MEMBERS and not str(part).startswith("function-")]


def _explain(path: str, detail: ErrorDetails, model: type[BaseModel]) -> str:
    if detail["type"] == "extra_forbidden":
        last = path.rpartition(".")[2]
        known = list(_known_paths(model))
        siblings = [key.rsplit(".", 1)[-1] for key in known if key.rpartition(".")[0] == path.rpartition(".")[0]]
        near = difflib.get_close_matches(last, siblings, n=1, cutoff=0.7)
        elsewhere = [key for key in known if key.rsplit(".", 1)[-1] == last]
        hint = near or elsewhere
        return f"{path}: unknown key" + (f"; did you mean {hint[0]!r}?" if hint else f"; known: {', '.join(siblings)}")
    if detail["type"] == "missing":
        return f"{path}: required, but not there"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "string_pattern_mismatch":
        name = "must be letters, digits, '.', '_' and '-', at most 63, beginning with a letter or a digit"
        message = name if path == "name" else "must not be blank"
    if isinstance(detail["input"], dict):
        return f"{path}: {message}" if path else message
    return f"{path}: {_shorten(path, detail['input'])}: {message[:1].lower()}{message[1:]}"


def _shorten(path: str, value: object) -> str:
    text = leaks.shown(path, value)
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 3] + "..."


def _known_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        key = prefix + (info.alias or name)
        yield key
        for kind in _leaves(info.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _known_paths(kind, f"{key}.")


def _leaves(annotation: object) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
