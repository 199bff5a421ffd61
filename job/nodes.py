"""Where a run's replicas go, once there are nodes for them: after a failure they may come back one by one."""

import time
from collections.abc import Mapping
from typing import Any

from rayferry.job import storage
from rayferry.job.earlier import Earlier
from rayferry.job.errors import JobError, NodesError
from rayferry.job.layout import Layout
from rayferry.job.log import say
from rayferry.job.placement import Placement, plan_here
from rayferry.job.spec import JobSpec

_COME_BACK_S = 600.0
_POLL_S = 5.0
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")


def place(spec: JobSpec, layout: Layout, before: Mapping[str, Any] | None, earlier: Earlier) -> Placement:
    """Where the replicas are to be; of a run that goes on and asks what it did, the nodes may not be back yet.

    Raises:
        JobError: no node can hold a replica, or not all of them fit.
    """
    is_known = before is not None and _asks_for_the_same(spec, layout)
    if before is not None and before["device"] == "gpu" and spec.resources.device == "auto":
        spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"device": "gpu"})})
    placement = _wait_for_nodes(spec) if is_known or (before is None and earlier.later) else plan_here(spec)
    if placement.note:
        say(placement.note)
    return placement


def _asks_for_the_same(spec: JobSpec, layout: Layout) -> bool:
    """False if the last attempt had a job file that asked for other nodes, as far as is known."""
    before = storage.read_json(layout.spec_uri)
    return before is None or _needs(before) == _needs(spec.to_json())


def _needs(told: Mapping[str, Any]) -> list[Any]:
    """What of a job file decides which nodes can hold it."""
    engine = told.get("engine") or {}
    return [told.get("replicas"), told.get("resources"), *(engine.get(key) for key in _PARALLEL)]


def _wait_for_nodes(spec: JobSpec) -> Placement:
    """Plans once there are nodes for it.

    Raises:
        NodesError: no node can hold a replica, or not all of them fit.
    """
    until = time.monotonic() + _COME_BACK_S
    told = ""
    while True:
        try:
            return plan_here(spec)
        except JobError as error:
            if time.monotonic() > until:
                raise NodesError(str(error)) from None
            if str(error) != told:
                told = str(error)
                say(f"{error}; waiting up to {_COME_BACK_S / 60:g} minutes for nodes")
            time.sleep(_POLL_S)
