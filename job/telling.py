"""What a run tells of itself in its log, and of its job file."""

from typing import TYPE_CHECKING, Any

from rayferry.job.log import counted, say
from rayferry.job.spec import JobSpec

if TYPE_CHECKING:
    from rayferry.job.look import Input
    from rayferry.job.progress import Snapshot

MASKED = "***"  # in spec.json, in place of the value of an environment variable


def tell_input(spec: JobSpec, found: "Input") -> None:
    """What was found of the input, and what was decided about it."""
    size = f"{counted(len(found.files), 'file')}, {found.num_bytes:,} bytes ({', '.join(sorted(found.formats))})"
    say(f"input: {size}; model: {spec.model}; task: {spec.task}")
    for name, (path, reason) in found.formats.items():
        if reason:
            say(f"input: {path} is read as {name}: {reason}")
    for setting in ("sampling_column", "adapter_column"):
        column = getattr(spec.input, setting)
        if column is not None and column not in found.columns.columns:
            say(f"input: no row that was looked at has a column {column!r} (input.{setting}): is it spelt so?")
    for name, renamed in found.columns.renamed.items():
        say(f"input: your column {name!r} is called {renamed!r} in the output, where {name!r} is ours")


def tell_end(now: "Snapshot") -> None:
    """What a user should know of a run that went to its end."""
    if now.num_rescued:
        say(f"{counted(now.num_rescued, 'row')} had values that fit no column: they are in rescued_data")
    if now.num_poison:
        say(f"{counted(now.num_poison, 'row')} killed the engine: see errors/ (error_type EngineDied)")


def masked(spec: JobSpec) -> dict[str, Any]:
    """The job file for readers of the output, who need not know the values of env_vars."""
    told = spec.to_json()
    if spec.runtime_env.env_vars:
        told["runtime_env"]["env_vars"] = dict.fromkeys(spec.runtime_env.env_vars, MASKED)
    return told
