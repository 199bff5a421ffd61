"""The attempts of a run: a name for each, that its records and parts begin with, and when it began.

An attempt's name is the submission id of its Ray job, with a number (`nightly~2`) where one was there already.
"""

import itertools
import json
import re
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rayferry.job import storage
from rayferry.job.layout import Layout

FILES = "-files.json"
SCHEMA_VERSION = 1
_THREADS = 32
_AGAIN = re.compile(r"~\d+$")  # no id that is given has such a sign


def new_name(layout: Layout, submission_id: str, overwritten: Sequence[str]) -> str:
    """A name that no attempt before had, of this run or of those it overwrote.

    A cluster that is new, or has forgotten its jobs, takes a submission id that was there already.
    """
    taken = {*recorded(layout), *overwritten}
    names = itertools.chain([submission_id], (f"{submission_id}~{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def jobs_of(names: Sequence[str]) -> list[str]:
    """The submission ids of attempts by their names, each once, where it comes last."""
    return list(dict.fromkeys(_AGAIN.sub("", name) for name in reversed(names)))[::-1]


def recorded(layout: Layout) -> list[str]:
    """The names of the attempts that began, in no order."""
    return [found.removesuffix(".json") for found in storage.children(layout.attempts_uri)]


def in_order(layout: Layout) -> list[str]:
    """Their names by when they began."""
    began_at = {name: found.get("began_at", 0.0) for name, found in _read(layout).items()}
    return sorted(began_at, key=lambda name: (began_at[name], name))


def record(layout: Layout, name: str, submission_id: str, run: str | None) -> None:
    """Keeps that an attempt begins; `run`: the run's name, for `spent_s`."""
    told = {"schema_version": SCHEMA_VERSION, "submission_id": submission_id, "run": run, "began_at": time.time()}
    storage.write_bytes(f"{layout.attempts_uri}{name}.json", json.dumps(told).encode())


def spent_s(layout: Layout, run: str | None) -> float:
    """How long ago a run's first attempt began, in seconds, where later ones go on by themselves; 0 if none did."""
    began_at = [found["began_at"] for found in _read(layout).values() if run is not None and found.get("run") == run]
    return max(0.0, time.time() - min(began_at)) if began_at else 0.0


def of_record(name: str) -> str:
    """The name of the attempt that wrote a record, or how many rows files have, by its file's name."""
    return name.removesuffix(FILES) if name.endswith(FILES) else name.rpartition("-")[0]


def record_uri(layout: Layout, attempt: str, task: int) -> str:
    """Where a write task's record is: one that is tried again finds it."""
    return f"{layout.checkpoint_uri}{attempt}-{task:06d}.json"


def part_name(attempt: str, task: int) -> str:
    """A name for one try of a write task's parts, without the suffix: no two tries share one."""
    return f"{attempt}-{task:06d}-{secrets.token_hex(2)}"


def _read(layout: Layout) -> dict[str, dict[str, Any]]:
    """What is kept of each attempt, by its name."""
    names = recorded(layout)
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda name: storage.read_json(f"{layout.attempts_uri}{name}.json"), names)
        return {name: one or {} for name, one in zip(names, found, strict=True)}
