"""Which engine arguments the vLLM of this node takes, read in its source: importing it takes ten seconds and more."""

import ast
import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayferry.job import leaks
from rayferry.job.errors import EngineError

_FARTHEST = 0.6


@dataclass(frozen=True)
class Known:
    """What `vllm.LLM` takes.

    Attributes:
        version: vLLM's.
        names: of its keyword arguments.
    """

    version: str
    names: frozenset[str]

    def check(self, given: Mapping[str, Any]) -> None:
        """Refuses arguments that this vLLM does not have.

        Raises:
            EngineError: one that is not there, and the one that is spelt most like it.
        """
        wrong = []
        for key in sorted(given.keys() - self.names):
            near = difflib.get_close_matches(key, self.names, n=1, cutoff=_FARTHEST)
            hint = f"did you mean {near[0]!r}?" if near else "see its documentation of engine arguments"
            wrong.append(f"engine.{key}: vLLM {self.version} has no such argument; {hint}")
        if wrong:
            raise EngineError("; ".join(wrong))


def known(package: Path | None = None) -> Known | None:
    """What the vLLM here takes; None if there is none, or if its source is not laid out as it is in 0.32.

    The arguments are the fields of `EngineArgs`, a dataclass without bases, and what `LLM.__init__` takes itself: its
    parameters, and words that it looks for among the others (such as `swap_space`, which some versions only warn of).

    Args:
        package: vLLM's folder; None: where Python would import it from.
    """
    with suppress(OSError, ValueError, SyntaxError, ImportError):
        folder = package or _installed()
        if folder is None:
            return None
        fields = _class_in(folder / "engine/arg_utils.py", "EngineArgs")
        init = next(_methods(_class_in(folder / "entrypoints/llm.py", "LLM"), "__init__"), None)
        if fields.bases or init is None:
            return None
        names = {field.target.id for field in _fields(fields) if isinstance(field.target, ast.Name)}
        names |= {argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)}
        words = (node.value for node in ast.walk(init) if isinstance(node, ast.Constant))
        names |= {word for word in words if isinstance(word, str) and word.isidentifier()}
        if "tensor_parallel_size" in names:
            return Known(_version(folder), frozenset(names - {"self"}))
    return None


def _installed() -> Path | None:
    found = importlib.util.find_spec("vllm")
    return Path(found.origin).parent if found and found.origin else None


def _class_in(path: Path, name: str) -> ast.ClassDef:
    """Raises ValueError if there is no such class."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise ValueError(name)


def _methods(of: ast.ClassDef, name: str) -> Iterator[ast.FunctionDef]:
    return (node for node in of.body if isinstance(node, ast.FunctionDef) and node.name == name)


def _fields(of: ast.ClassDef) -> Iterator[ast.AnnAssign]:
    return (node for node in of.body if isinstance(node, ast.AnnAssign))


def _version(folder: Path) -> str:
    for node in ast.parse((folder / "_version.py").read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            return str(node.value.value)
    return "here"


def refused(error: ValidationError, given: Mapping[str, Any], version: str) -> str:
    """What vLLM finds wrong with the values of its arguments, in a line that names those that the job gives.

    Args:
        error: vLLM's; its configurations are pydantic's, and some of their fields have names of their own.
        given: the arguments.
        version: vLLM's.
    """
    told: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False, include_context=False):
        message = detail["msg"].removeprefix("Value error, ")
        key = _key(detail["loc"], detail["input"], given)
        shown = f"engine.{key}: {leaks.shown(key, detail['input'])}" if key else ""
        told.setdefault(shown, []).append(message)
    ours = {shown: messages for shown, messages in told.items() if shown} or told
    lines = [f"{shown or 'the model or its arguments'}: {' or '.join(messages)}" for shown, messages in ours.items()]
    return f"vLLM {version} refuses {'; '.join(lines)}"


def _key(path: tuple[int | str, ...], value: object, given: Mapping[str, Any]) -> str:
    """The argument that a complaint is of, as the job file has it, or ""."""
    name = next((str(part) for part in path), "")
    if not name or name in given:
        nested = [str(part) for part in path[1:] if isinstance(given.get(name), dict)]
        return ".".join([name, *nested])
    for key, its in given.items():
        if isinstance(its, dict) and name in its:  # one of a configuration's own
            return f"{key}.{name}"
    return next((key for key, its in given.items() if key.endswith(name) and its == value), "")
