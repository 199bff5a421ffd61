"""The record of a finished run. Written last: who sees it may read the parts that it lists."""

import platform
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import ray

from rayferry.job import VERSION, identity, tally
from rayferry.job.errors import TornError
from rayferry.job.progress import Snapshot
from rayferry.job.rows import STAGES
from rayferry.job.sink import Part
from rayferry.job.spec import JobSpec

SCHEMA_VERSION = 1


def build(  # noqa: PLR0913  # what it brings together
    spec: JobSpec,
    *,
    asked: Mapping[str, Any],
    parts: list[Part],
    attempts: list[str],
    now: Snapshot,
    started_at: float,
    gpus_per_replica: float = 0,
) -> dict[str, Any]:
    """The manifest of a run that went to its end.

    Args:
        spec: the job as it ran.
        asked: what decided the answers.
        parts: what the write tasks of all attempts wrote.
        attempts: the Ray jobs that worked on the run, the one that ended it last.
        now: what the readers and replicas said.
        started_at: `time.time()` at the start.
        gpus_per_replica: GPUs, or the share of one, that each replica had.

    Raises:
        TornError: the rows written are not the rows read.
    """
    counts = {
        "total": now.rows_read,
        "succeeded": sum(part.num_rows for part in parts if part.kind == "data"),
        "failed": sum(part.num_rows for part in parts if part.kind == "errors"),
    }
    if counts["total"] != counts["succeeded"] + counts["failed"]:
        msg = (
            f"{counts['total']} rows were read, but {counts['succeeded']} answers and {counts['failed']} errors were "
            "written; no manifest is made, as the output is not whole; see the log, and go on with --resume"
        )
        raise TornError(msg)
    ended_at = time.time()
    generating_s = ended_at - now.ready_at if now.ready_at else None
    generated = sum(part.num_generated_tokens for part in parts)
    new = generated - now.num_earlier_tokens
    first_at = min(filter(None, (life.first_at for life in now.lives)), default=None)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": spec.name,
        "submission_id": attempts[-1],
        "attempts": attempts,
        "output_uri": spec.output.uri,
        "model": spec.model,
        "revision": spec.revision,
        "task": spec.task,
        "fingerprint": identity.fingerprint(asked),
        "counts": counts,
        "errors": _by_stage(parts),
        "num_rescued": sum(part.num_rescued for part in parts),
        "max_error_rate": spec.on_error.max_error_rate,
        "tokens": {"input": sum(part.num_input_tokens for part in parts), "generated": generated},
        "seconds": {
            "total": round(ended_at - started_at, 3),
            "load": [round(seconds, 3) for seconds in now.load_s],
            "first_answer": None if first_at is None else round(first_at - started_at, 3),
            "generate": None if generating_s is None else round(generating_s, 3),
            "write": round(now.write_s, 3),
        },
        "tokens_per_s": round(new / generating_s, 1) if generating_s else None,
        **tally.summary(now.lives, gpus_per_replica, ended_at),
        "engine": now.limits,
        "started_at": _iso(started_at),
        "ended_at": _iso(ended_at),
        "parts": [part.to_json() for part in sorted(parts, key=lambda part: part.uri)],
        "versions": {
            "rayferry": VERSION,
            "python": platform.python_version(),
            "ray": ray.__version__,
            "pyarrow": pa.__version__,
            "vllm": now.vllm,
        },
    }


def _by_stage(parts: list[Part]) -> dict[str, int]:
    """Failed rows by the stage at which they failed, in the order of STAGES."""
    found: Counter[str] = Counter()
    for part in parts:
        found.update(part.stages)
    return {stage: found[stage] for stage in STAGES if found[stage]}


def error_rate(manifest: dict[str, Any]) -> float:
    """Share of the rows that failed, 0 to 1."""
    total = manifest["counts"]["total"]
    return float(manifest["counts"]["failed"] / total) if total else 0.0


def too_many_errors(manifest: dict[str, Any]) -> bool:
    """True if more rows failed than the job file allows."""
    return error_rate(manifest) > float(manifest["max_error_rate"])


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
