"""The run: source, predictor, sink, manifest."""

import functools
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rayferry.job import RAY_FLOOR, hand_over, identity, nodes, storage, telling
from rayferry.job.earlier import NOTHING_EARLIER, Earlier, attempt_number
from rayferry.job.errors import JobError, TooManyErrorsError, TornError, root_line
from rayferry.job.layout import Layout
from rayferry.job.lease import Lease
from rayferry.job.log import say
from rayferry.job.placement import Placement, ReplicaGroups
from rayferry.job.rows import data_schema
from rayferry.job.spec import JobSpec

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.data import Dataset

    from rayferry.job.checkpoint import Done
    from rayferry.job.ids import Repeated
    from rayferry.job.look import Input
    from rayferry.job.progress import Snapshot
    from rayferry.job.sink import PartsDatasink

_BLOCKS_WAITING_PER_REPLICA = 24
_LEAST_WAITING_BYTES = 64 << 20
_SHARE_EXPIRES_S = "30"
_MOST_TORN = 3


def check_ray(version: str) -> None:
    """Refuses a Ray that lacks what the pipeline is built on.

    Raises:
        JobError: the cluster's Ray is older than the floor.
    """
    if _release(version) < _release(RAY_FLOOR):
        msg = f"the cluster runs Ray {version}; Rayferry needs {RAY_FLOOR} or newer: upgrade the cluster's image"
        raise JobError(msg)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def run(
    spec: JobSpec,
    submission_id: str,
    predictor: type | None = None,
    accepted: Callable[[Layout], None] = lambda _layout: None,
    earlier: Earlier = NOTHING_EARLIER,
) -> dict[str, Any]:
    """Answers every row of the input that is not done yet, and writes the manifest.

    Args:
        spec: the job.
        submission_id: the Ray job that this process is.
        predictor: stands in for `LLMPredictor`; for tests of the pipeline without an engine.
        accepted: called once it is known that the output is this run's to write to.
        earlier: what becomes of what is in the output.

    Returns:
        The manifest.

    Raises:
        RayferryError: the run cannot start, or cannot end well.
    """
    import ray

    check_ray(ray.__version__)
    layout = Layout(spec.output.uri)

    def may_be_dead(holder: str) -> bool:
        is_ours = earlier.later and earlier.first is not None and attempt_number(holder, earlier.first) is not None
        return earlier.resume or is_ours or holder == submission_id

    with Lease(layout.lease_uri, submission_id, patient_with=may_be_dead, over=earlier.over):
        started_at = time.time()
        num_torn = 0
        while True:
            try:
                return _run(spec, submission_id, predictor, accepted, earlier, started_at)
            except Exception as error:
                num_torn += 1
                # of a task's error, Ray's, it is not the class: then replicas may be busy yet, and end with the job
                if num_torn == _MOST_TORN or type(error) is not TornError:
                    raise
                say(f"{root_line(error)}: this job does so now")
            earlier = replace(earlier, resume=True, overwrite=False, retry_failed=False)


def _run(
    spec: JobSpec,
    submission_id: str,
    predictor: type | None,
    accepted: Callable[[Layout], None],
    earlier: Earlier,
    started_at: float,
) -> dict[str, Any]:
    import ray

    _before_ray_data()
    from rayferry.job import attempts, checkpoint, manifest, progress, reporter, sink, source  # they import it
    from rayferry.job.look import look

    layout = Layout(spec.output.uri)
    before = checkpoint.check_output(layout, earlier)
    is_new = before is None and not earlier.overwrite
    if is_new:
        accepted(layout)
    settings = identity.settings(spec)
    if before is not None:  # before a look, which takes them for granted
        identity.refuse_other(layout, before["settings"], settings)
    found = look(spec, before)
    telling.tell_input(spec, found)

    _connect()
    asked = identity.asked(settings, found.files)
    if before is not None:
        identity.refuse_other_input(layout, before["files"], asked["files"], new_files=earlier.new_input)
    done, placement = _begin(spec, submission_id, before, found, asked, earlier)
    jobs = attempts.jobs_of(done.attempts)
    if not is_new:  # only now is what was there this run's, or gone
        accepted(layout)
    if placement is None or done.manifest is not None:
        say("the run is over already: nothing is left to do")
        told = {"submission_id": submission_id, "attempts": jobs, "max_error_rate": spec.on_error.max_error_rate}
        return _write_manifest(layout, (done.manifest or {}) | told)
    if done.records:
        say(f"resumed: {sum(map(len, done.spans.values())):,} rows are done already")
    storage.write_bytes(layout.spec_uri, json.dumps(telling.masked(spec), indent=1).encode())
    board = progress.start_board(len(found.files), found.num_bytes, spec.on_error.max_error_rate)
    schema = data_schema(spec, found.columns.schema, openai=found.openai)
    parts = sink.PartsDatasink(layout, done.attempts[-1], spec.output.rows_per_part, schema, board, found.copied)
    parts.records.update(done.records)
    _go_on(board, done, found)
    num_left = max(0, found.num_rows - sum(map(len, done.spans.values())))
    fleet, placement = _share(spec, placement, num_left)
    _set_up_ray_data(hand_over.block_rows(fleet, found) * found.row_bytes, fleet.max_replicas)
    dataset = source.read(spec, found, board, _repeated_ids(spec, found), done)
    if dataset is not None:
        save_files = functools.partial(checkpoint.save_files, layout, done.attempts[-1])
        with reporter.Reporter(board, layout.progress_uri, len(found.files), spec.output.preview_rows, save_files):
            _answer(fleet, found, dataset, num_left, predictor=predictor, placement=placement, board=board, parts=parts)
    now = ray.get(board.snapshot.remote())
    _conclude(layout, now, parts, done)
    result = manifest.build(
        spec,
        asked=asked,
        parts=parts.parts,
        attempts=jobs,
        now=now,
        started_at=started_at,
        gpus_per_replica=spec.engine.world_size / placement.engines_per_gpu if placement.device == "gpu" else 0,
    )
    return _write_manifest(layout, result)


def _begin(
    spec: JobSpec,
    submission_id: str,
    before: Mapping[str, Any] | None,
    found: "Input",
    asked: Mapping[str, Any],
    earlier: Earlier,
) -> "tuple[Done, Placement | None]":
    """Makes the output this attempt's, once there are nodes for it.

    Returns:
        What is done, without what is to be tried again; and where the replicas are to be, or None if the run is over.
    """
    from rayferry.job import checkpoint, failed_rows

    layout = Layout(spec.output.uri)
    retry_failed = earlier.retry_failed and not failed_rows.was_done(layout, earlier.run)
    if before is not None and checkpoint.is_over(layout, before, asked, retry_failed=retry_failed):
        return checkpoint.begin(layout, submission_id, before, asked, stays_over=True), None
    placement = nodes.place(spec, layout, before, earlier)
    device = placement.device if before is None else before["device"]
    now = {**asked, "columns": found.columns.to_json(), "openai": found.openai, "device": device}
    done = checkpoint.begin(layout, submission_id, before, now, token=earlier.run)
    return failed_rows.forget(layout, done, earlier.run) if retry_failed else done, placement


def _conclude(layout: Layout, now: "Snapshot", parts: "PartsDatasink", done: "Done") -> None:
    """Leaves the parts of the run in its output, and no others.

    Raises:
        JobError: a row was answered twice, or somebody else writes here.
    """
    from rayferry.job import checkpoint

    telling.tell_end(now)
    storage.write_bytes(layout.progress_uri, json.dumps(now.to_json()).encode())
    if not any(part.kind == "data" for part in parts.parts):
        parts.write_empty()
    checkpoint.check_once(parts.records)
    checkpoint.remove_orphans(layout, [part.uri for part in parts.parts], done.attempts + done.overwritten)


def _connect() -> None:
    import ray

    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init()
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own there


def _write_manifest(layout: Layout, manifest: dict[str, Any]) -> dict[str, Any]:
    storage.write_bytes(layout.manifest_uri, json.dumps(manifest, indent=1).encode())
    return manifest


def _answer(  # noqa: PLR0913  # what it brings together
    spec: JobSpec,
    found: "Input",
    dataset: "Dataset",
    num_rows: int,
    *,
    predictor: type | None,
    placement: Placement,
    board: "ActorHandle[Any]",
    parts: "PartsDatasink",
) -> None:
    """Sends all rows of the dataset through the replicas into parts."""
    import ray

    from rayferry.job.predictor import LLMPredictor

    groups = ReplicaGroups(placement.bundles, placement.engines_per_gpu)
    rows_per_block = hand_over.block_rows(spec, found)
    rows_at_once = hand_over.rows_at_once(spec, placement.device, num_rows)
    dataset = dataset.map_batches(
        predictor or LLMPredictor,
        fn_constructor_kwargs={
            "spec": spec,
            "device": placement.device,
            "progress": board,
            "openai": found.openai,
            "all_here": num_rows <= rows_at_once * spec.min_replicas,
        },
        batch_size=max(spec.batch_size, rows_per_block // hand_over.BATCHES_PER_BLOCK),
        batch_format="pyarrow",
        ray_remote_args_fn=groups.as_remote_args_fn() if placement.bundles else None,
        **hand_over.pool(spec, -(-rows_at_once // rows_per_block)),
        **placement.actor_args,
    )
    try:
        dataset.write_datasink(parts)
    except Exception as error:
        now = ray.get(board.snapshot.remote())  # raises what a dead board is: in a task's error it may not be told
        # told by a write task or a replica itself; Ray's error only quotes it
        if now.hopeless:
            raise TooManyErrorsError(now.hopeless) from error
        if now.failure:
            raise JobError(now.failure) from error
        raise
    finally:
        groups.remove()


def _go_on(board: "ActorHandle[Any]", done: "Done", found: "Input") -> None:
    """Tells the board what earlier attempts did."""
    if not done.records:
        return
    whole = {file.path: (done.num_rows[file.path], file.num_bytes) for file in found.files if done.whole(file)}
    board.go_on.remote(done.parts, whole)


def _share(spec: JobSpec, placement: Placement, num_rows: int) -> tuple[JobSpec, Placement]:
    """The job and the placement with a replica for each engine, where several share a GPU; `num_rows`: still to do."""
    from rayferry.job import sharing

    number, why = sharing.chosen(spec, num_rows) if placement.device == "gpu" else (1, "")
    if why:
        say(why)
    return sharing.with_engines(spec, number), placement.shared(number)


def _repeated_ids(spec: JobSpec, found: "Input") -> "Repeated | None":
    """The ids that come more than once, where rows name themselves."""
    if not found.openai and spec.input.id_column is None:
        return None
    from rayferry.job import ids, row_maker

    repeated = ids.find_repeated(found.filesystem, found.files, row_maker.RowMaker(spec, found).names)
    if repeated:
        say(f"ids used more than once: {len(repeated):,}; the first row of each keeps it, others fail")
    return repeated


def _before_ray_data() -> None:
    """Sets what Ray Data reads when it is imported.

    A killed attempt's share of the cluster is kept for it, by Ray Data, until it expires: three minutes in which the
    next one has half of the nodes, too little to write what a busy engine answers. A living one renews it every 10 s.
    Source: `AUTOSCALING_REQUEST_EXPIRE_TIME_S` in ray/data/_internal/cluster_autoscaler/ (Ray 2.60).
    """
    os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", _SHARE_EXPIRES_S)


def _set_up_ray_data(block_bytes: int, replicas: int) -> None:
    from ray.data import DataContext, ExecutionResources

    context = DataContext.get_current()
    context.target_max_block_size = block_bytes
    # else reading runs ahead until it fills a share of the object store, however large that is
    waiting = max(_LEAST_WAITING_BYTES, _BLOCKS_WAITING_PER_REPLICA * replicas * block_bytes)
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=waiting)
    context.execution_no_progress_timeout_s = -1  # waiting for nodes, or for a model, is no fault; `timeout` bounds it
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # One of them asks for a new replica's arguments each time it looks, so for a placement group that nobody uses.
    # Source: https://github.com/ray-project/ray/issues/55995
    context.issue_detectors_config.detectors = []
