"""The package that travels: `rayferry/job/**`, `spec.json` and the user's own files, as a zip of fixed bytes."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rayferry.job
from rayferry.job.spec import JobSpec
from rayferry.runtime_env.user_files import gather, names_of

SPEC_NAME = "spec.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can name
_MODE = 0o100644 << 16
_QUOTES = '"""'
_COMMENT = re.compile(r"""  # [^'"]*$""")  # behind code; one that quotes is left, as it may be in a string


@dataclass(frozen=True)
class Package:
    """A staged package.

    Attributes:
        content: the zip, deflated.
        files: (name, size in bytes) of what is in it, in order.
        left_out: (name, reason) of the user's files that stay at home, in order.
    """

    content: bytes
    files: tuple[tuple[str, int], ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def sha256(self) -> str:
        """Of the zip's bytes, in hex."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def name(self) -> str:
        """The zip's file name: the same content has the same name."""
        return f"rayferry-{self.sha256[:16]}.zip"


def stage(spec: JobSpec, values: Mapping[str, Any] | None = None) -> Package:
    """Builds the package of one job.

    The same spec and the same Rayferry give the same bytes on every machine: names are sorted, times and modes are
    fixed. Ray hashes a zip by its bytes, so that a package that the cluster has is not sent again.
    Source: https://docs.ray.io/en/latest/ray-core/handling-dependencies.html (working_dir as a local zip)

    Args:
        spec: the job.
        values: what travels in its place, where the job fills in templates itself; see `rayferry.job.tick`.

    Raises:
        SpecError: a file of the user's cannot travel; see `user_files.gather`.
    """
    root = Path(rayferry.job.__file__).parent
    contents = {
        f"rayferry/job/{path.relative_to(root).as_posix()}": _bare(path.read_bytes())
        for path in root.rglob("*")
        if path.is_file() and path.suffix in {".py", ".typed"}
    }
    theirs = gather(spec.runtime_env)
    contents |= theirs.contents  # below names that are neither `rayferry` nor `spec.json`
    # Where the cluster is belongs to the laptop; the job is already there.
    job = {key: value for key, value in (values or spec.to_json()).items() if key != "cluster"}
    if theirs_by_name := names_of(spec.runtime_env):
        job["runtime_env"] = job["runtime_env"] | theirs_by_name
    contents[SPEC_NAME] = json.dumps(job, indent=1, sort_keys=True, ensure_ascii=False).encode()
    files = tuple((name, len(content)) for name, content in sorted(contents.items()))
    return Package(zipped(contents), files, tuple(sorted(theirs.left_out)))


def zipped(contents: Mapping[str, bytes]) -> bytes:
    """A deflated zip of names and what they hold, whose bytes depend on nothing else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = _MODE
            entry.create_system = 3  # Unix, wherever it is made
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED, compresslevel=9)  # for an entry, not the archive's
    return buffer.getvalue()


def _bare(source: bytes) -> bytes:
    """A module of ours without docstrings and comments, a quarter of it; its lines keep their numbers."""
    lines = []
    inside = False
    for line in source.decode().splitlines():
        text = line.strip()
        if inside:
            inside = not text.endswith(_QUOTES)
            lines.append("")
        elif text.startswith(_QUOTES):
            inside = len(text) == len(_QUOTES) or not text.endswith(_QUOTES)
            lines.append(line[: len(line) - len(line.lstrip())] + '""')
        else:
            lines.append("" if text.startswith("#") else _COMMENT.sub("", line))
    return "".join(f"{line}\n" for line in lines).encode()
