"""The run: source, predictor, sink, manifest."""

import functools
import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rayferry.job import RAY_FLOOR, answering, hand_over, identity, nodes, storage, telling, weights
from rayferry.job.earlier import NOTHING_EARLIER, Earlier, attempt_number
from rayferry.job.errors import JobError, TornError, root_line
from rayferry.job.layout import Layout
from rayferry.job.lease import Lease
from rayferry.job.log import say
from rayferry.job.rows import data_schema
from rayferry.job.spec import JobSpec

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from rayferry.job.checkpoint import Done
    from rayferry.job.ids import Repeated
    from rayferry.job.look import Input
    from rayferry.job.placement import Placement
    from rayferry.job.progress import Snapshot
    from rayferry.job.sink import PartsDatasink

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

    answering.before_ray_data()
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
    asked: Mapping[str, Any] = identity.asked(settings, found.files)
    if before is not None:
        identity.refuse_other_files(layout, "input", before["files"], asked["files"], new_files=earlier.new_input)
    done, placement, asked = _begin(spec, submission_id, before, found, asked, earlier)
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
    num_left = done.num_left(found.files, found.num_rows)
    fleet, placement = answering.share(spec, placement, num_left)
    pieces = hand_over.pieces(fleet, found, placement.device, num_left)
    answering.set_up_ray_data(pieces, fleet.max_replicas)
    dataset = source.read(spec, found, board, _repeated_ids(spec, found), done)
    if dataset is not None:
        save_files = functools.partial(checkpoint.save_files, layout, done.attempts[-1])
        with reporter.Reporter(board, layout.progress_uri, len(found.files), spec.output.preview_rows, save_files):
            answering.answer(
                fleet, found, dataset, pieces, predictor=predictor, placement=placement, board=board, parts=parts
            )
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
) -> "tuple[Done, Placement | None, Mapping[str, Any]]":
    """Makes the output this attempt's, once there are nodes for it.

    Returns:
        What is done, without what is to be tried again; where the replicas are to be, or None if the run is over; and
        what was asked, with the weights.
    """
    from rayferry.job import checkpoint, failed_rows

    layout = Layout(spec.output.uri)
    retry_failed = earlier.retry_failed and not failed_rows.was_done(layout, earlier.run)
    if before is not None and checkpoint.is_over(layout, before, asked, retry_failed=retry_failed):
        return checkpoint.begin(layout, submission_id, before, asked, stays_over=True), None, asked
    asked = {**asked, "weights": identity.identities(weights.stored(spec))}
    if before is not None:
        identity.refuse_other_files(layout, "model", before["weights"], asked["weights"])
    placement = nodes.place(spec, layout, before, earlier)
    device = placement.device if before is None else before["device"]
    now = {**asked, "columns": found.columns.to_json(), "openai": found.openai, "device": device}
    done = checkpoint.begin(layout, submission_id, before, now, token=earlier.run)
    return failed_rows.forget(layout, done, earlier.run) if retry_failed else done, placement, asked


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


def _go_on(board: "ActorHandle[Any]", done: "Done", found: "Input") -> None:
    """Tells the board what earlier attempts did."""
    if not done.records:
        return
    whole = {file.path: (done.num_rows[file.path], file.num_bytes) for file in found.files if done.whole(file)}
    board.go_on.remote(done.parts, whole)


def _repeated_ids(spec: JobSpec, found: "Input") -> "Repeated | None":
    """The ids that come more than once, where rows name themselves."""
    if not found.openai and spec.input.id_column is None:
        return None
    from rayferry.job import ids, row_maker

    repeated = ids.find_repeated(found.filesystem, found.files, row_maker.RowMaker(spec, found).names)
    if repeated:
        say(f"ids used more than once: {len(repeated):,}; the first row of each keeps it, others fail")
    return repeated
