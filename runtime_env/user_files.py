"""The user's own files that travel along: what goes, what stays, and why."""

import keyword
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from rayferry.job.errors import SpecError
from rayferry.job.leaks import kind_of
from rayferry.job.spec import RuntimeEnvSpec

FILES_FOLDER = "files"
_MAX_BYTES = 512 << 20
_SCANNED_BYTES = 16 << 20
_PRIVATE_FOLDERS = {".aws", ".azure", ".docker", ".git", ".gnupg", ".hg", ".kube", ".ssh", ".svn"}
_USELESS_FOLDERS = {
    "__pycache__": "compiled Python",
    ".venv": "a Python environment",
    "node_modules": "installed packages",
    ".ipynb_checkpoints": "a notebook's drafts",
    ".mypy_cache": "a cache",
    ".pytest_cache": "a cache",
    ".ruff_cache": "a cache",
}
_SECRET_FILES = {
    "an environment file": (".env*", "*.env"),
    "a key": (
        *("*.pem", "*.key", "*.ppk", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx"),
        *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    ),
    "credentials": (
        *("credentials*", ".netrc", "_netrc", ".git-credentials", ".pypirc", ".npmrc", ".pgpass", ".htpasswd"),
        *(".dockercfg", "secrets.json", "secrets.toml", "secrets.yaml", "secrets.yml", "*.tfstate*"),
    ),
}
_PRIVATE_KEY = re.compile(rb'"private_key"\s*:')
# A module of these names would be imported in place of the one that the job or vLLM means.
_TAKEN = {
    *("rayferry", "ray", "vllm", "torch", "transformers", "pyarrow", "numpy", "pydantic", "jinja2", "boto3", "fsspec"),
    FILES_FOLDER,
}


@dataclass
class UserFiles:
    """What is taken along.

    Attributes:
        contents: name in the package, with `/`, to content.
        left_out: (name in the package, reason) of what stays; a folder's name ends in `/`.
        num_bytes: of all contents.
    """

    contents: dict[str, bytes] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    num_bytes: int = 0


def gather(spec: RuntimeEnvSpec) -> UserFiles:
    """Reads `py_modules` and `files`; a path that is not absolute is below the current folder.

    Secrets stay, by their names and by what is in them, and so do links that lead out of their folder.

    Raises:
        SpecError: a path is not there, is itself a secret, or has a name that is taken.
    """
    found = UserFiles()
    for key, paths in (("py_modules", spec.py_modules), ("files", spec.files)):
        names: set[str] = set()
        for index, given in enumerate(paths):
            place = f"runtime_env.{key}.{index}: {given!r}"
            path = _resolved(given, place)
            name = _name_of(given)
            if key == "py_modules":
                _check_module(name, path, place)
            if name.removesuffix(".py") in names:
                raise SpecError(f"{place}: another one is called {name!r} as well; rename one of them")
            names.add(name.removesuffix(".py") if key == "py_modules" else name)
            top = name if key == "py_modules" else f"{FILES_FOLDER}/{name}"
            _check_itself(name, path, place)
            for at, one in _walk(path, top, path, found):
                _take(at, one, place, found)
            if not path.is_dir() and top not in found.contents:
                raise _stays(place, found.left_out[-1][1])
    return found


def check_there(spec: RuntimeEnvSpec) -> None:
    """Refuses paths that are not there, before anything is asked of a cluster.

    Raises:
        SpecError: naming the path.
    """
    for key, paths in (("py_modules", spec.py_modules), ("files", spec.files)):
        for index, given in enumerate(paths):
            _resolved(given, f"runtime_env.{key}.{index}: {given!r}")


def names_of(spec: RuntimeEnvSpec) -> dict[str, list[str]]:
    """`py_modules` and `files` as the cluster is told: names in the package, nothing of the laptop's folders."""
    told = {}
    if spec.py_modules:
        told["py_modules"] = [_name_of(given) for given in spec.py_modules]
    if spec.files:
        told["files"] = [f"{FILES_FOLDER}/{_name_of(given)}" for given in spec.files]
    return told


def _resolved(given: str, place: str) -> Path:
    try:
        path = Path(given).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no path"
        raise SpecError(f"{place}: cannot be read: {reason}; paths are below the job file's folder") from error
    if not _name_of(given):
        raise SpecError(f"{place}: the whole machine cannot travel; name a folder")
    return path


def _name_of(given: str) -> str:
    """The name that it is known by, which for a link is the link's."""
    return Path(os.path.abspath(given)).name  # noqa: PTH100  # pathlib's way follows the link


def _check_module(name: str, path: Path, place: str) -> None:
    is_module = path.is_file() and name.endswith(".py")
    name = name.removesuffix(".py") if is_module else name
    if not name.isidentifier() or keyword.iskeyword(name) or not (is_module or path.is_dir()):
        raise SpecError(f"{place}: cannot be imported; give a .py file or a package's folder, named by a Python name")
    if name.casefold() in _TAKEN or name in sys.stdlib_module_names:
        raise SpecError(f"{place}: would take the place of the module {name!r} that the job needs; rename it")


def _check_itself(name: str, path: Path, place: str) -> None:
    """Refuses a path that somebody names although it is a secret: it would silently not be there."""
    around = [part for part in path.parts if part.casefold() in _PRIVATE_FOLDERS]
    reasons = [f"it lies in {part}/" for part in around]
    reasons += [reason for one in (name, path.name) if (reason := _reason_by_name(one, is_folder=path.is_dir()))]
    if reasons:
        raise _stays(place, reasons[0])


def _stays(place: str, reason: str) -> SpecError:
    return SpecError(f"{place}: stays at home: {reason}; secrets go by runtime_env.secrets")


def _walk(path: Path, name: str, root: Path, found: UserFiles) -> Iterator[tuple[str, Path]]:
    """Every file below `path` whose name lets it travel, as (name in the package, path)."""
    if path.is_file():
        yield name, path
        return
    if not path.is_dir():
        found.left_out.append((name, "neither a file nor a folder"))
        return
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    for entry in entries:
        inner = f"{name}/{entry.name}"
        reason = _reason_by_name(entry.name, is_folder=entry.is_dir()) or _reason_by_link(entry, root)
        if reason is None and _is_venv(entry):
            reason = _USELESS_FOLDERS[".venv"]
        if reason:
            found.left_out.append((_printable(inner) + "/" * entry.is_dir(), reason))
        elif _printable(inner) != inner:
            found.left_out.append((_printable(inner), "its name is not UTF-8 text"))
        else:
            yield from _walk(entry, inner, root, found)


def _is_venv(folder: Path) -> bool:
    try:
        return folder.is_dir() and (folder / "pyvenv.cfg").is_file()
    except OSError as error:
        raise SpecError(f"{folder}: cannot be read: {error.strerror}") from error


def _reason_by_name(name: str, *, is_folder: bool) -> str | None:
    name = name.casefold()
    if name in _PRIVATE_FOLDERS:  # `.git` is a file in a worktree
        return "a private folder" if is_folder else "a private file"
    if is_folder and name in _USELESS_FOLDERS:
        return _USELESS_FOLDERS[name]
    for reason, patterns in _SECRET_FILES.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return f"{reason}, by its name"
    return None


def _reason_by_link(path: Path, root: Path) -> str | None:
    """A link may name a file beside it by another name, and nothing else."""
    if not path.is_symlink():
        return None
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a link to nowhere"
    if not target.is_relative_to(root):
        return "a link that leads out of the folder"
    if target.is_dir():
        return "a link to a folder"
    parts = target.relative_to(root).parts
    reasons = [_reason_by_name(part, is_folder=index < len(parts) - 1) for index, part in enumerate(parts)]
    return next((f"a link to {reason}" for reason in reasons if reason), None)


def _take(name: str, path: Path, place: str, found: UserFiles) -> None:
    try:
        num_bytes = path.stat().st_size
        if num_bytes + found.num_bytes > _MAX_BYTES:
            raise SpecError(f"{place}: more than {_MAX_BYTES >> 20} MiB; put large files into S3 or onto the nodes")
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{place}: {name} cannot be read: {error.strerror}") from error
    reason = _reason_by_content(name, content)
    if reason:
        found.left_out.append((name, reason))
    else:
        found.contents[name] = content
        found.num_bytes += len(content)


def _reason_by_content(name: str, content: bytes) -> str | None:
    """A secret in the first 16 MiB; UTF-16 is read as well."""
    head = content[:_SCANNED_BYTES].replace(b"\0", b"")
    if name.casefold().endswith(".json") and _PRIVATE_KEY.search(head):
        return "it holds a service account's key"
    is_text = b"\0" not in content[:8192]
    kind = kind_of(head.decode("latin-1"), urls=is_text)
    return f"it holds what looks like {kind}" if kind else None


def _printable(name: str) -> str:
    return name.encode(errors="replace").decode()
