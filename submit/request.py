"""What is sent to the cluster, as a value. A dry run prints it; a submission carries it out."""

import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rayferry.job import VERSION
from rayferry.job.earlier import NOTHING_EARLIER, Earlier
from rayferry.job.layout import Layout
from rayferry.job.spec import JobSpec
from rayferry.runtime_env.describe import describe, entrypoint, probe_entrypoint
from rayferry.runtime_env.staging import Package, stage

SCHEMA_VERSION = 1
METADATA_PREFIX = "rayferry_"


@dataclass(frozen=True)
class SubmitRequest:
    """One Ray job, whole.

    Attributes:
        address: the Jobs API.
        submission_id: chosen here, so that a repeated request cannot start a second job.
        entrypoint: the shell line that the head runs.
        runtime_env: Ray's; its working_dir names the package.
        metadata: strings that Ray keeps with the job.
        output_uri: where the answers will be.
        manifest_uri: what will be there once the run is done.
        package: the staged zip, described.
        content: the zip itself; not part of what is printed.
    """

    address: str
    submission_id: str
    entrypoint: str
    runtime_env: dict[str, Any]
    metadata: dict[str, str]
    output_uri: str
    manifest_uri: str
    package: dict[str, Any]
    content: bytes = field(repr=False)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """The request without the package's bytes."""
        value = asdict(self)
        del value["content"]
        return value


def new_submission_id(name: str) -> str:
    """An id that says what and when, and that nobody else chooses: `<name>-<UTC time>-<6 hex>`."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def is_submission_id(text: str) -> bool:
    """True if it can be an id: it becomes part of file names and of URLs."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text) is not None


def build_request(spec: JobSpec, address: str, submission_id: str, earlier: Earlier = NOTHING_EARLIER) -> SubmitRequest:
    """Builds the request. Touches no network, and for the same arguments gives the same value."""
    package: Package = stage(spec)
    layout = Layout(spec.output.uri)
    return SubmitRequest(
        address=address,
        submission_id=submission_id,
        entrypoint=entrypoint(submission_id, earlier.words),
        runtime_env=describe(spec, package.name),
        metadata={
            METADATA_PREFIX + "version": VERSION,
            METADATA_PREFIX + "name": spec.name,
            METADATA_PREFIX + "run": earlier.first or submission_id,
            METADATA_PREFIX + "output_uri": layout.output_uri,
        },
        output_uri=layout.output_uri,
        manifest_uri=layout.manifest_uri,
        package={
            "name": package.name,
            "sha256": package.sha256,
            "num_bytes": len(package.content),
            "files": [{"name": name, "num_bytes": size} for name, size in package.files],
            "left_out": [{"name": name, "reason": reason} for name, reason in package.left_out],
        },
        content=package.content,
    )


def build_probe(spec: JobSpec, address: str, names: Sequence[str], earlier: Earlier) -> SubmitRequest:
    """A small job that looks at what the job needs, from the cluster; it says nothing of an output that it writes."""
    request = build_request(spec, address, new_submission_id(f"{spec.name}-check"))
    metadata = {METADATA_PREFIX + "version": VERSION, METADATA_PREFIX + "name": f"{spec.name} (check)"}
    return replace(request, entrypoint=probe_entrypoint(names, earlier.words), metadata=metadata)
